"""Stage 3, train. Reads the arrays and the passed validation; writes the model: ONNX, weights, card and history.

    python -m src.stages.train out/arrays out/validation.json out/model --checkpoints out/checkpoints

The decoded split lies on the device as uint8 and is augmented there in batches. The weights that are kept are those of
the epoch with the lowest validation loss. A killed run goes on from its last checkpoint when the same command is run.
"""

import argparse
import csv
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src import arrays, augment, batches, checkpoint, export, metrics, model, tracking
from src.arrays import Arrays, Split
from src.batches import Batches
from src.checkpoint import Checkpoint
from src.command import UserError, cores, progress, run
from src.files import check_outputs, read_json, replacing, rounded, sha256, write_json
from src.model import Classifier, Shape
from src.params import Train, load

_CHECK_EVERY = 200  # steps between looks at the loss; each look makes the device wait
_EVALUATION_BATCH = 512
_SMALL = 2**19  # numbers a batch makes in the first layer; a batch of 64 of 32x32 at width 32 makes four times as many
_CODE = [Path(module.__file__) for module in (arrays, augment, batches, model) if module.__file__] + [Path(__file__)]

History = list[dict[str, float]]


def train(folder: Path, validation: Path, out: Path, checkpoints: Path, params: Train) -> None:
    """Train on the arrays in `folder` and write the model into `out`.

    Raises:
        UserError: the data did not pass validation, params ask for what is not there, or the loss is not finite.
    """
    data = arrays.load(folder)
    require_passed(validation, data)
    device = _device(params)
    torch.set_num_threads(_threads(data, params))
    torch.manual_seed(params.seed)
    classifier, frozen = _start(data, params)
    _require_trainable(classifier, data)
    print(_headline(classifier, device, params, data))
    started = time.monotonic()
    best, history = _fit(classifier, frozen, data, device, checkpoints, params)
    classifier.load_state_dict(best["weights"])
    _calibrate(classifier, Batches(data.split("validation"), device, params.augment), device, params)
    _write(classifier.cpu().eval(), best, history, data, out, params)
    seconds = time.monotonic() - started
    print(f"trained in {seconds:.1f} s; best epoch {best['epoch']} of {params.epochs}: {_result(best)}")


def require_passed(validation: Path, data: Arrays) -> None:
    """Refuse data that `validate` has not passed, or arrays that are not those it looked at."""
    report = read_json(validation, made_by="validate", keys=("passed", "findings", "manifest_sha256"))
    if not report["passed"]:
        failed = ", ".join(finding["check"] for finding in report["findings"] if finding["level"] == "error")
        raise UserError(f"the data did not pass validation ({failed}; see {validation}): mend it, then run `dvc repro`")
    if report["manifest_sha256"] != data.manifest_sha256:
        raise UserError(f"{validation} speaks of other data than {data.folder} holds: run `dvc repro validate`")


# ---------------------------------------------------------------------------------------------------------------------
# Setting up
# ---------------------------------------------------------------------------------------------------------------------


def _device(params: Train) -> torch.device:
    if params.device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device is 'cuda', but PyTorch sees no GPU here: check the driver, or set it to auto")
    wanted = params.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _threads(data: Arrays, params: Train) -> int:
    """Choose one thread for a small network, all cores for others.

    A second thread gains a small network a fifth at best, and costs it tenfold when other processes want the core, since
    each of the hundred short operations of a step then waits for it (10 epochs of digits with both of 2 cores busy:
    10.5 s on one thread, over 60 s on two).
    """
    first_layer = params.batch_size * data.size[0] * data.size[1] * params.width
    return 1 if first_layer < _SMALL else cores()


def _bf16(params: Train, device: torch.device) -> bool:
    """Choose the precision: bf16 where the hardware computes in it; elsewhere it is emulated, and slower."""
    if params.precision != "auto":
        return params.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - torch has no public question for it


def _start(data: Arrays, params: Train) -> tuple[Classifier, list[nn.Module]]:
    """Build the network, copy in the given weights, freeze what is to stay."""
    images = data.split("train").images
    if not len(images):
        raise UserError("there is no training image: lower prepare.validation_share and prepare.test_share, or add images")
    mean, deviation = _channel_statistics(images)
    shape = Shape(data.size, data.channels, len(data.classes))
    classifier = model.build(params.network, shape, params.width, mean, deviation)
    if params.weights:
        _load_start(classifier, params)
    return classifier, model.freeze(classifier, params.freeze)


def _channel_statistics(images: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over the split, in grey levels, from 64-bit sums of bounded pieces."""
    total, squares, count = np.zeros(images.shape[-1]), np.zeros(images.shape[-1]), 0
    step = max(1, 2**24 // images[0].size)
    for start in range(0, len(images), step):
        piece = images[start : start + step].reshape(-1, images.shape[-1])
        values = np.arange(256, dtype=np.float64)
        for channel in range(images.shape[-1]):
            histogram = np.bincount(piece[:, channel], minlength=256)
            total[channel] += histogram @ values
            squares[channel] += histogram @ values**2
        count += len(piece)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1.0))  # never under one grey level: a blank channel
    return mean.round(4).tolist(), deviation.round(4).tolist()


def _load_start(classifier: Classifier, params: Train) -> None:
    path = Path(params.weights or "")
    weights = model.read_weights(path)
    digest = sha256(path)
    if digest != params.weights_sha256:
        raise UserError(
            f"train.weights_sha256 is {params.weights_sha256!r}, but {path} has {digest}: "
            "put that into params.yaml if this is the file you mean (DVC then notices when it changes)"
        )
    copied, fresh = model.start_from(classifier, weights)
    if not any(classifier.network.state_dict()[name].ndim > 1 for name in copied):
        raise UserError(f"not one layer of {path} fits network {params.network}: check train.network and train.width")
    print(f"start from {path}: {len(copied)} tensors copied, {len(fresh)} fresh")
    for line in fresh:
        print(f"  fresh: {line}")


def _require_trainable(classifier: Classifier, data: Arrays) -> None:
    """Find out now rather than after the last epoch that a network does not fit the data or cannot be exported."""
    export.to_onnx(classifier, data.size, data.channels, data.classes)
    with torch.inference_mode():
        shape = tuple(classifier.eval()(torch.zeros(2, data.channels, *data.size)).shape)
    if shape != (2, len(data.classes)):
        raise UserError(f"the network of src/model.py returns shape {shape} for 2 images, expected {(2, len(data.classes))}")


def _headline(classifier: Classifier, device: torch.device, params: Train, data: Arrays) -> str:
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    precision = "bf16" if _bf16(params, device) else "fp32"
    shape = "x".join(map(str, (*data.size, data.channels)))
    return f"{params.network}, {parameters:,} parameters, {len(data.classes)} classes of {shape}; {where}, {precision}"


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------


def _fit(
    classifier: Classifier, frozen: list[nn.Module], data: Arrays, device: torch.device, checkpoints: Path, params: Train
) -> tuple[dict[str, Any], History]:
    """Train for all epochs, from the last checkpoint where there is one; return the best state and the history."""
    classifier.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    training, held_out = (Batches(data.split(name), device, params.augment) for name in ("train", "validation"))
    generator = torch.Generator(device).manual_seed(params.seed)
    optimizer = _optimizer(classifier, params)
    steps = max(1, len(training) // params.batch_size)
    weights = _class_weights(data.split("train"), len(data.classes), params).to(device)
    saved = _checkpoint(checkpoints, data, device, params)
    state = saved.load() or _fresh_state()
    if state["epoch"]:
        _restore(state, classifier, optimizer, generator)
        print(f"going on after epoch {state['epoch']} of an earlier run that was stopped")
    tracked = tracking.start(_flat(params), {"manifest_sha256": data.manifest_sha256}, state["run"])
    with _reporting(tracked), progress(params.epochs, "epoch", "train") as bar:
        bar.update(state["epoch"])
        for epoch in range(state["epoch"] + 1, params.epochs + 1):
            classifier.train()
            for module in frozen:
                module.eval()
            loss = _epoch(classifier, optimizer, training, weights, generator, epoch, steps, device, params)
            row = {"epoch": epoch, "learning_rate": _learning_rate(epoch * steps - 1, steps, params), "train_loss": loss}
            row |= _validate(classifier, held_out, device, params)
            state["history"].append({name: value if name == "epoch" else rounded(value) for name, value in row.items()})
            if row["validation_loss"] <= state["best"].get("validation_loss", math.inf):
                state["best"] = {**row, "weights": _copy(classifier)}
            state |= {"epoch": epoch, "run": tracked.id if tracked else None}
            saved.save(_snapshot(state, classifier, optimizer, generator))
            if tracked:
                tracked.log(epoch, {name: value for name, value in row.items() if name != "epoch"})
            bar.set_postfix_str(_result(row), refresh=False)
            bar.update()
    saved.finish()
    return state["best"], state["history"]


def _epoch(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    training: Batches,
    weights: Tensor,
    generator: torch.Generator,
    epoch: int,
    steps: int,
    device: torch.device,
    params: Train,
) -> float:
    """Train for one epoch; return the mean loss."""
    learning = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    total = torch.zeros((), device=device)
    for i, (images, labels) in enumerate(training.epoch(params.batch_size, generator)):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate((epoch - 1) * steps + i, steps, params)
        with torch.autocast(device.type, torch.bfloat16, enabled=_bf16(params, device)):
            logits = classifier(images)
        loss = F.cross_entropy(logits.float(), labels, weights, label_smoothing=params.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if params.gradient_clip:
            nn.utils.clip_grad_norm_(learning, params.gradient_clip)
        optimizer.step()
        total += loss.detach()
        if (i + 1) % _CHECK_EVERY == 0 or i + 1 == steps:
            _require_finite(total, epoch, i + 1, params)
    return total.item() / steps


def _require_finite(loss: Tensor, epoch: int, step: int, params: Train) -> None:
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss is {loss.item()} in epoch {epoch}, by step {step}: lower train.learning_rate "
            f"({params.learning_rate:g}), raise train.warmup_epochs, set train.gradient_clip, or use precision fp32"
        )


def _validate(classifier: Classifier, held_out: Batches, device: torch.device, params: Train) -> dict[str, float]:
    """Measure loss and accuracy on the validation split; without one, the last epoch counts as the best."""
    if not len(held_out):
        return {"validation_loss": 0.0, "validation_accuracy": 0.0}
    logits = _logits(classifier, held_out, device, params)
    right = (logits.argmax(dim=1) == held_out.labels).float().mean()
    # smoothed as in training: unsmoothed, it prefers the early epochs, whose probabilities happen to be bolder
    loss = F.cross_entropy(logits, held_out.labels, label_smoothing=params.label_smoothing)
    result = {"validation_loss": loss.item(), "validation_accuracy": right.item()}
    if not math.isfinite(result["validation_loss"]):
        raise UserError("the validation loss is not finite: lower train.learning_rate, or use train.precision fp32")
    return result


@torch.inference_mode()
def _logits(classifier: Classifier, split: Batches, device: torch.device, params: Train) -> Tensor:
    """Return the logits of a whole split, float32 of shape (n, classes)."""
    classifier.eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=_bf16(params, device)):
        return torch.cat([classifier(images).float() for images, _ in split.in_order(_EVALUATION_BATCH)])


def _calibrate(classifier: Classifier, held_out: Batches, device: torch.device, params: Train) -> None:
    """Fit the temperature on the validation split: label smoothing leaves a network less sure than it should be."""
    if len(held_out):
        logits = _logits(classifier, held_out, device, params)
        fitted = metrics.fitted_temperature(held_out.labels.cpu().numpy(), logits.cpu().numpy())
        classifier.temperature.fill_(fitted)


def _optimizer(classifier: Classifier, params: Train) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; weight decay only on weights of two dimensions and more."""
    learning = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": params.weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if params.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=params.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=params.learning_rate, momentum=0.9, nesterov=True, fused=True)


def _learning_rate(step: int, steps_per_epoch: int, params: Train) -> float:
    """Linear warm-up, then half a cosine down to zero. Source: Loshchilov and Hutter, "SGDR" (2017), without restarts."""
    total, warm = params.epochs * steps_per_epoch, min(params.warmup_epochs, params.epochs / 2) * steps_per_epoch
    if step < warm:
        return params.learning_rate * (step + 1) / (warm + 1)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _class_weights(split: Split, classes: int, params: Train) -> Tensor:
    """Ones, or for `balanced` the inverse of each class's frequency, 1 on average over the images."""
    if params.class_weights == "none":
        return torch.ones(classes)
    counts = np.maximum(np.bincount(split.labels, minlength=classes), 1)
    return torch.from_numpy(len(split.labels) / (classes * counts)).float()


@contextmanager
def _reporting(tracked: tracking.Run | None) -> Iterator[None]:
    """Tell MLflow how the run ended."""
    try:
        yield
    except BaseException as error:
        if tracked:
            tracked.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    if tracked:
        tracked.finish("FINISHED")


# ---------------------------------------------------------------------------------------------------------------------
# State
# ---------------------------------------------------------------------------------------------------------------------


def _checkpoint(folder: Path, data: Arrays, device: torch.device, params: Train) -> Checkpoint:
    settings = [data.manifest_sha256, data.classes, data.size, data.channels, params.model_dump(), device.type]
    return Checkpoint(folder, checkpoint.key(settings, torch.__version__, *_CODE))


def _fresh_state() -> dict[str, Any]:
    return {"epoch": 0, "run": None, "best": {}, "history": []}


def _snapshot(
    state: dict[str, Any], classifier: Classifier, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Any]:
    moving = {"optimizer": optimizer.state_dict(), "generator": generator.get_state(), "random": torch.get_rng_state()}
    return {**state, **moving, "weights": classifier.state_dict()}


def _restore(
    state: dict[str, Any], classifier: Classifier, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    classifier.load_state_dict(state.pop("weights"))
    optimizer.load_state_dict(state.pop("optimizer"))
    generator.set_state(state.pop("generator"))
    torch.set_rng_state(state.pop("random"))


def _copy(classifier: Classifier) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in classifier.state_dict().items()}


def _flat(params: Train) -> dict[str, Any]:
    values = params.model_dump()
    return {**values, **{f"augment.{name}": value for name, value in values.pop("augment").items()}}


def _result(row: dict[str, Any]) -> str:
    return f"validation loss {row['validation_loss']:.4f}, accuracy {row['validation_accuracy']:.2%}"


# ---------------------------------------------------------------------------------------------------------------------
# Write
# ---------------------------------------------------------------------------------------------------------------------


def _write(classifier: Classifier, best: dict[str, Any], history: History, data: Arrays, out: Path, params: Train) -> None:
    with replacing(out) as fresh:
        fresh.mkdir()
        export.write(export.to_onnx(classifier, data.size, data.channels, data.classes), fresh / "model.onnx")
        model.save(classifier, fresh / "weights.safetensors")
        with (fresh / "history.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, history[0].keys(), lineterminator="\n")
            rows.writeheader()
            rows.writerows(history)
        write_json(fresh / "card.json", _card(classifier, best, data, fresh, params))


def _card(classifier: Classifier, best: dict[str, Any], data: Arrays, folder: Path, params: Train) -> dict[str, Any]:
    """What the model is, for whoever loads it; nothing in it differs between equal runs."""
    return {
        "channels": data.channels,
        "classes": data.classes,
        "epoch": best["epoch"],
        "epochs": params.epochs,
        "fit": data.fit,
        "flops": export.flops(classifier, data.size, data.channels),
        "input": {"name": export.INPUT, "dtype": "uint8", "shape": ["batch", *data.size, data.channels]},
        "manifest_sha256": data.manifest_sha256,
        "model_sha256": sha256(folder / "model.onnx"),
        "network": params.network,
        "output": {"name": export.OUTPUT, "dtype": "float32", "shape": ["batch", len(data.classes)]},
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        "seed": params.seed,
        "size": list(data.size),
        "start_weights_sha256": params.weights_sha256 if params.weights else None,
        "temperature": rounded(float(classifier.temperature)),
        "torch": torch.__version__,
        "validation": {name: rounded(best[f"validation_{name}"]) for name in ("accuracy", "loss")},
        "weights_sha256": sha256(folder / "weights.safetensors"),
        "width": params.width,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the network of params.yaml; write ONNX, weights, card, history.")
    parser.add_argument("arrays", type=Path, help="folder that prepare wrote")
    parser.add_argument("validation", type=Path, help="validation.json that validate wrote")
    parser.add_argument("out", type=Path, help="folder to write the model into")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for the state of a run that is stopped")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    args = parser.parse_args()
    check_outputs([args.arrays, args.validation, args.checkpoints], folders=[args.out])
    train(args.arrays, args.validation, args.out, args.checkpoints, load(args.params).train)


if __name__ == "__main__":
    run("train", main)
