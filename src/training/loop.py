"""The loop: one network trained on one task, with the best weights kept, resumed where an earlier run was stopped."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from src.core import metrics
from src.core.arrays import Split
from src.core.command import UserError, progress
from src.core.files import rounded
from src.training import checkpoint, export, machine, onednn, optimizer, start
from src.training.batches import Batches
from src.training.callbacks import NO_CALLBACKS, Callbacks, TrackedRun
from src.training.checkpoint import Checkpoint
from src.training.classifier import Classifier
from src.training.meter import Meter
from src.training.task import Task
from src.training.train_params import Train
from src.training.world import World

_CHECK_EVERY = 200  # steps between looks at the loss
_EVALUATION_BATCH = 512
_WORTH_A_LOOK = 1e13  # operations of a training, about a minute of two cores: a shorter one is its own look ahead
_SRC = Path(__file__).parents[1]
CODE = [  # whatever of it changes, a state saved before is no state of this run
    _SRC / "model.py",
    *(path for folder in ("core", "images", "training") for path in sorted((_SRC / folder).rglob("*.py"))),
]

Row = dict[str, float]


class DivergedError(UserError):
    """The loss is no longer finite: these params do not train."""


class Halt(Exception):  # noqa: N818 - it is no error
    """Raised by `on_epoch`: the run is to end here, without a model and without blame."""


@dataclass(frozen=True)
class Fitted:
    """What a run came to.

    `classifier` holds the best epoch's weights, on the CPU, in evaluation mode, with its temperature fitted; `best` is
    that epoch's row of `history`; `throughput` has a row an epoch that this process trained, and `summary` its whole.
    `predicted` has how many validation images were given to each class.
    """

    classifier: Classifier
    best: dict[str, Any]
    history: list[Row]
    throughput: list[Row]
    summary: dict[str, Any]
    predicted: list[int] = field(default_factory=list)
    run_id: str | None = None  # of the tracker


@dataclass
class Learner:
    """The moving parts of a run: what `fit` hands to its steps."""

    classifier: Classifier
    forward: nn.Module  # the classifier as it is trained: compiled, or averaging over several processes
    frozen: list[nn.Module]
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    weights: Tensor  # of the classes
    device: torch.device
    bf16: bool
    world: World
    params: Train
    learning: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.learning = [parameter for parameter in self.classifier.parameters() if parameter.requires_grad]

    @property
    def judged(self) -> Classifier:
        """The weights that are validated and kept: the moving average where there is one."""
        return cast("Classifier", self.average.module) if self.average else self.classifier

    @property
    def stateful(self) -> dict[str, Any]:
        """Return by name what has a state that a resumed run needs."""
        parts = {"weights": self.classifier, "optimizer": self.optimizer}
        return {**parts, "average": self.average} if self.average else parts

    def autocast(self) -> torch.autocast:
        """Return the context that steps compute in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def fit(
    task: Task,
    params: Train,
    checkpoints: Path | None,
    *,
    world: World | None = None,
    tags: Mapping[str, str] | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
    on_epoch: Callable[[Row], None] | None = None,
    exportable: bool = True,
    quiet: bool = False,
    keep: bool = False,
) -> Fitted:
    """Train on a task, from the last checkpoint where there is one.

    Args:
        task: what to learn from and what to be held against.
        params: the section `train`; its `folds`, `repeats` and `processes` are the caller's business.
        checkpoints: a folder for the state of this run alone, or None for none.
        world: the processes that train together.
        tags: of the tracked run; None tracks nothing.
        callbacks: what tracks it, and fetches the champion to start from.
        on_epoch: called on rank 0 with the row of each epoch that has ended; may raise Halt.
        exportable: where the training is long, try first whether the network can be exported to ONNX.
        quiet: print nothing and draw no progress bar.
        keep: leave the last checkpoint where it is: the caller has more to do before all is safe.

    Raises:
        UserError: params ask for what is not there, the network does not fit the data or ONNX, or the loss is not finite.
    """
    world = world or World()
    quiet = quiet or not world.writes
    say = (lambda _: None) if quiet else print
    torch.manual_seed(params.seed)
    classifier, frozen = start.start(task, params, say, callbacks)
    with torch.inference_mode():  # now rather than after the last epoch
        shape = tuple(classifier.eval()(torch.zeros(2, task.shape.channels, *task.shape.size)).shape)
    if shape != (2, len(task.classes)):
        raise UserError(f"the network of src/model.py returns shape {shape} for 2 images, expected {(2, len(task.classes))}")
    flops = export.training_flops(classifier, task.spec)
    if exportable and flops * len(task.training.labels) * params.epochs > _WORTH_A_LOOK:
        export.to_onnx(classifier, task.spec, task.classes)
    learner, training, held_out = prepare(classifier, frozen, task, params, world, say)
    saved = _checkpoint(checkpoints, task, learner) if checkpoints else None
    state = world.share(saved.load() if saved and world.writes else None)
    state = state or {"epoch": 0, "run": None, "best": {}, "history": []}
    if state["epoch"]:
        for name, part in learner.stateful.items():
            part.load_state_dict(state.pop(name))
        say(f"going on after epoch {state['epoch']} of an earlier run that was stopped")
    tracked: TrackedRun | None = None
    if callbacks.track and world.writes and tags is not None:
        values = params.model_dump()
        values |= {f"augment.{name}": value for name, value in values.pop("augment").items()}
        tracked = callbacks.track(values, {"manifest_sha256": task.manifest_sha256, **tags}, state["run"])
    meter = Meter(learner.device, world)
    with _reporting(tracked), progress(params.epochs, "epoch", "train", quiet) as bar:
        bar.update(state["epoch"])
        while state["epoch"] < params.epochs and not (
            params.patience and state["best"] and state["epoch"] - state["best"]["epoch"] >= params.patience
        ):
            row = _one_epoch(learner, training, held_out, meter, state)
            if saved and world.writes:
                parts = {name: part.state_dict() for name, part in learner.stateful.items()}
                saved.save({**state, "run": tracked.id if tracked else None, **parts})
            if tracked:
                told = row | meter.rows[-1]
                tracked.log(int(row["epoch"]), {name: value for name, value in told.items() if name != "epoch"})
            if on_epoch and world.writes:
                on_epoch(row)
            bar.set_postfix_str(result(row), refresh=False)
            bar.update()
    if state["epoch"] < params.epochs:
        say(f"stopped after epoch {state['epoch']}: the validation loss has not fallen for {params.patience} epochs")
    best = state["best"]
    classifier.load_state_dict(best.pop("weights"))
    predicted = _calibrate(learner, held_out)
    if saved and world.writes and not keep:
        saved.finish()
    run_id = tracked.id if tracked else None
    return Fitted(classifier.cpu().eval(), best, state["history"], meter.rows, meter.summary(), predicted, run_id)


def result(row: Mapping[str, Any]) -> str:
    """Say in a few words how well an epoch did."""
    return f"validation loss {row['validation_loss']:.4f}, accuracy {row['validation_accuracy']:.2%}"


# ---------------------------------------------------------------------------------------------------------------------
# Setting up
# ---------------------------------------------------------------------------------------------------------------------


def prepare(
    classifier: Classifier,
    frozen: list[nn.Module],
    task: Task,
    params: Train,
    world: World,
    say: Callable[[str], None],
) -> tuple[Learner, Batches, Batches]:
    """Build everything that a run moves, and say on what it runs."""
    machine.keep_memory()
    device = machine.device(params, world)
    bf16 = machine.bf16(params, device)
    onednn.require_sound(classifier.network, device)
    flops = export.training_flops(classifier, task.spec)
    classifier.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stubs lack it
    training, held_out = (
        Batches(split, device, params.augment, len(task.classes), world) for split in (task.training, task.validation)
    )
    images, labels = training.example(-(-len(training) // (training.steps(params.batch_size) * world.size)))
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else "CPU, " + machine.threads(flops * len(images), world)
    )
    parameters = sum(each.numel() for each in classifier.parameters())
    precision = "bf16" if bf16 else "fp32"
    say(f"{params.network}, {parameters:,} parameters, {len(task.classes)} classes of {task.spec}; {precision} on {where}")
    if world.size > 1:
        say(world.headline(params.batch_size))
    steps = params.epochs * training.steps(params.batch_size)
    forward, sentence = machine.compiled(classifier, images, labels, bf16, steps, params)
    say(f"{sentence}; training images {training.where}")
    learner = Learner(
        classifier,
        world.wrap(forward),
        frozen,
        optimizer.build(classifier, params),
        optimizer.averaged(classifier, params),
        class_weights(task.training, len(task.classes), params).to(device),
        device,
        bf16,
        world,
        params,
    )
    return learner, training, held_out


def class_weights(split: Split, classes: int, params: Train) -> Tensor:
    """Ones, or the inverse of each class's frequency, or its root, 1 on average over the images; float32 (classes,)."""
    if params.class_weights == "none":
        return torch.ones(classes)
    counts = np.maximum(np.bincount(split.labels, minlength=classes), 1)
    weights = 1 / counts if params.class_weights == "balanced" else 1 / np.sqrt(counts)
    return torch.from_numpy(weights * len(split.labels) / (weights * counts).sum()).float()


# ---------------------------------------------------------------------------------------------------------------------
# One epoch
# ---------------------------------------------------------------------------------------------------------------------


def _one_epoch(learner: Learner, training: Batches, held_out: Batches, meter: Meter, state: dict[str, Any]) -> Row:
    """Train and validate for an epoch; bring the state up to it and return its row."""
    params, epoch = learner.params, state["epoch"] + 1
    learner.classifier.train()
    for module in learner.frozen:
        module.eval()
    steps = training.steps(params.batch_size)
    loss = train_epoch(learner, training, meter, epoch)
    learner.world.level(learner.classifier, learner.judged)
    row = {"epoch": epoch, "learning_rate": optimizer.learning_rate(epoch * steps - 1, steps, params), "train_loss": loss}
    row |= _validate(learner, held_out)
    state["history"].append({name: value if name == "epoch" else rounded(value) for name, value in row.items()})
    if row["validation_loss"] <= state["best"].get("validation_loss", math.inf):
        weights = {name: value.detach().to("cpu", copy=True) for name, value in learner.judged.state_dict().items()}
        state["best"] = {**row, "weights": weights}
    state["epoch"] = epoch
    return row


def train_epoch(learner: Learner, training: Batches, meter: Meter, epoch: int) -> float:
    """Train for one epoch, counted from 1; return the mean loss. It waits for the device once in 200 steps."""
    params, world = learner.params, learner.world
    steps, seed = training.steps(params.batch_size), epoch_seed(params.seed, epoch)
    torch.manual_seed(seed + world.rank)  # for networks with dropout: a resumed epoch draws as an unbroken one
    total = torch.zeros((), device=learner.device)
    meter.begin()
    for i, (images, targets) in enumerate(meter.timed(training.epoch(params.batch_size, seed))):
        optimizer.set_rate(learner.optimizer, optimizer.learning_rate((epoch - 1) * steps + i, steps, params))
        total += step(learner, images, targets)
        if (i + 1) % _CHECK_EVERY == 0 and world.size == 1:  # of several, all must stop at the same place: the end
            _require_finite(total.item(), epoch, i + 1, params)
    loss = world.sum(total).item() / (steps * world.size)
    meter.end(epoch, len(training))
    _require_finite(loss, epoch, steps, params)
    return loss


def step(learner: Learner, images: Tensor, targets: Tensor) -> Tensor:
    """Take one step; return the loss, on the device."""
    params = learner.params
    with learner.autocast():
        logits = learner.forward(images)
    loss = F.cross_entropy(logits.float(), targets, learner.weights, label_smoothing=params.label_smoothing)
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if params.gradient_clip:
        nn.utils.clip_grad_norm_(learner.learning, params.gradient_clip)
    learner.optimizer.step()
    if learner.average:
        learner.average.update_parameters(learner.classifier)
    return loss.detach()


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch's order and augmentation: no state has to be kept for a run to go on."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def _require_finite(loss: float, epoch: int, step: int, params: Train) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss is {loss} in epoch {epoch}, by step {step}: lower train.learning_rate ({params.learning_rate:g}), "
            "raise train.warmup_epochs, set train.gradient_clip, or use precision fp32"
        )


def _validate(learner: Learner, held_out: Batches) -> Row:
    """Measure loss and accuracy on the validation split; without one, the last epoch counts as the best."""
    if not len(held_out):
        return {"validation_loss": 0.0, "validation_accuracy": 0.0}
    learner.judged.eval()
    sums = torch.zeros(3, device=learner.device, dtype=torch.float64)
    with torch.inference_mode(), learner.autocast():
        for images, labels in held_out.in_order(_EVALUATION_BATCH):
            logits = learner.judged(images).float()
            # smoothed as in training: unsmoothed, it prefers the early epochs, whose probabilities happen to be bolder
            losses = F.cross_entropy(logits, labels, label_smoothing=learner.params.label_smoothing, reduction="sum")
            right = (logits.argmax(dim=1) == labels).sum()
            sums += torch.stack([losses.double(), right.double(), torch.full_like(losses, len(labels)).double()])
    loss, right, count = learner.world.sum(sums).tolist()
    if not math.isfinite(loss):
        raise DivergedError("the validation loss is not finite: lower train.learning_rate, or use train.precision fp32")
    return {"validation_loss": loss / count, "validation_accuracy": right / count}


# ---------------------------------------------------------------------------------------------------------------------
# The end, and the state on the way there
# ---------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _calibrate(learner: Learner, held_out: Batches) -> list[int]:
    """Fit the temperature on the validation split: label smoothing leaves a network less sure than it should be.

    Returns:
        How many of the images were given to each class.
    """
    if not len(held_out):
        return []
    learner.classifier.eval()
    with learner.autocast():
        parts = [
            (learner.classifier(images).float(), labels)
            for images, labels in held_out.in_order(_EVALUATION_BATCH, whole=True)
        ]
    logits, labels = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    learner.classifier.temperature.fill_(metrics.fitted_temperature(labels, logits))
    return [int(count) for count in np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])]


def _checkpoint(folder: Path, task: Task, learner: Learner) -> Checkpoint:
    rows = hashlib.sha256(getattr(task.training.examples, "rows", task.training.labels).tobytes()).hexdigest()
    settings = [task.manifest_sha256, task.classes, str(task.spec), rows]
    params = learner.params.model_dump(exclude={"folds", "repeats", "processes"})
    return Checkpoint(folder, checkpoint.key([settings, params, learner.device.type], torch.__version__, *CODE))


@contextmanager
def _reporting(tracked: TrackedRun | None) -> Iterator[None]:
    """Tell the tracker how the run ended."""
    try:
        yield
    except BaseException as error:
        if tracked:
            tracked.finish("FAILED" if isinstance(error, Exception) and not isinstance(error, Halt) else "KILLED")
        raise
    if tracked:
        tracked.finish("FINISHED")
