"""params.yaml, read once: typed, frozen, in range. An unknown key, a wrong type or a bad value is refused by name.

params = load(Path("params.yaml"))
params.train.epochs
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from src.command import UserError

Level = Literal["error", "warn", "off"]
Share = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=2, le=1024)]


def _pair(value: object) -> object:
    """Accept one side for a square, or [height, width]."""
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise ValueError("should be one side or [height, width]")
        return tuple(value)
    return (value, value)


Size = Annotated[tuple[Side, Side], BeforeValidator(_pair)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Prepare(_Section):
    """What the model sees of an image, and which side of the split it falls on."""

    size: Size
    channels: Literal[1, 3]
    fit: Literal["crop", "pad", "stretch"]
    max_megapixels: float = Field(gt=0, le=1000)
    validation_share: Share
    test_share: Share
    use_given_splits: bool

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> "Prepare":
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must leave something to train on (under 1)")
        return self


class Checks(_Section):
    """How serious each finding of `validate` is."""

    labels: Level
    min_images: Level
    corrupt: Level
    conflicts: Level
    duplicates: Level
    leakage: Level
    near_duplicates: Level
    group_leakage: Level
    imbalance: Level
    drift: Level


class Validate(_Section):
    """The limits of `validate`."""

    labels: list[str] | None
    min_images: int = Field(ge=1)
    max_corrupt: float = Field(ge=0, le=1)
    max_duplicates: float = Field(ge=0, le=1)
    max_imbalance: float = Field(ge=1)
    max_drift: float = Field(gt=0)
    checks: Checks


class Augment(_Section):
    """Strength of each augmentation; 0 or false switches it off."""

    crop: int = Field(ge=0, le=128)
    flip: bool
    rotate: float = Field(ge=0, le=180)
    scale: float = Field(ge=0, lt=1)
    brightness: float = Field(ge=0, lt=1)
    contrast: float = Field(ge=0, lt=1)
    cutout: int = Field(ge=0, le=512)
    erase: float = Field(ge=0, le=1)
    mixup: float = Field(ge=0, le=10)
    cutmix: float = Field(ge=0, le=10)


class Train(_Section):
    """The network and its recipe."""

    seed: int = Field(ge=0, lt=2**32)
    network: str
    width: int = Field(ge=4, le=1024)
    weights: str | None
    weights_sha256: str | None
    freeze: list[str]
    freeze_until: str | None
    layer_decay: float = Field(gt=0, le=1)
    epochs: int = Field(ge=1, le=100_000)
    patience: int = Field(ge=0, le=100_000)
    batch_size: int = Field(ge=2, le=65_536)
    optimizer: Literal["sgd", "adamw", "muon"]
    learning_rate: float = Field(gt=0, le=100)
    schedule: Literal["cosine", "linear"]
    weight_decay: float = Field(ge=0, le=10)
    warmup_epochs: float = Field(ge=0)
    label_smoothing: Share
    gradient_clip: float = Field(ge=0)
    class_weights: Literal["none", "balanced"]
    ema: Share
    tta: Literal["none", "flip", "flip_shift"]
    precision: Literal["auto", "bf16", "fp32"]
    device: Literal["auto", "cpu", "cuda"]
    compile: Literal["auto", "on", "off"]
    processes: int = Field(ge=1, le=1024)
    folds: int = Field(ge=0, le=100)
    repeats: int = Field(ge=1, le=100)
    augment: Augment

    @model_validator(mode="after")
    def _one_fold_is_none(self) -> "Train":
        if self.folds == 1:
            raise ValueError("folds must be 0 (off) or at least 2")
        return self


class Evaluate(_Section):
    """How the test results are told."""

    confidence: float = Field(gt=0.5, lt=1)
    calibration_bins: int = Field(ge=2, le=100)
    golden: int = Field(ge=1, le=1000)
    worst: int = Field(ge=1, le=100)
    parity_tolerance: float = Field(gt=0, le=0.5)


GateLevel = Literal["enforce", "warn", "off"]


class GateLevels(_Section):
    """What each gate may do."""

    accuracy: GateLevel
    macro_f1: GateLevel
    baseline_margin: GateLevel
    no_worse_than_main: GateLevel
    worst_class: GateLevel
    worst_slice: GateLevel
    log_loss: GateLevel
    calibration: GateLevel
    churn: GateLevel
    latency: GateLevel
    model_size: GateLevel
    data_checks: GateLevel
    judging: GateLevel
    stale_base: GateLevel
    budget: GateLevel


class Gates(_Section):
    """What a model must keep to before it may replace main's."""

    confidence: float = Field(gt=0.5, lt=1)
    fail_confidence: float = Field(gt=0.5, lt=1)
    resamples: int = Field(ge=100, le=100_000)
    min_accuracy: float = Field(ge=0, le=1)
    min_macro_f1: float = Field(ge=0, le=1)
    min_baseline_margin: float = Field(ge=-1, le=1)
    min_class_recall: float = Field(ge=0, le=1)
    min_slice_accuracy: float = Field(ge=0, le=1)
    min_slice_images: int = Field(ge=1)
    max_accuracy_drop: float = Field(ge=0, le=1)
    max_class_drop: float = Field(ge=0, le=1)
    max_slice_drop: float = Field(ge=0, le=1)
    max_log_loss_rise: float = Field(ge=0)
    max_ece: float = Field(ge=0, le=1)
    max_ece_rise: float = Field(ge=0, le=1)
    max_churn: float = Field(ge=0, le=1)
    max_latency_ms: float = Field(gt=0)
    max_latency_ratio: float = Field(gt=0)
    max_model_mb: float = Field(gt=0)
    levels: GateLevels


class Quantize(_Section):
    """How the INT8 model is made, and what it must keep to before it may be served."""

    release: bool
    calibration_images: int = Field(ge=1, le=100_000)
    max_accuracy_drop: float = Field(ge=0, le=1)
    min_speedup: float = Field(gt=0, le=100)


class Sweep(_Section):
    """How `make sweep` searches, and over what."""

    trials: int = Field(ge=1, le=100_000)
    random: int = Field(ge=0, le=100_000)
    space: dict[str, Any]


class Energy(_Section):
    """What energy costs."""

    price: float | None = Field(ge=0)


class Params(_Section):
    """All of params.yaml, one attribute a section."""

    prepare: Prepare
    validation: Validate = Field(alias="validate")
    train: Train
    evaluate: Evaluate
    gates: Gates
    quantize: Quantize
    sweep: Sweep
    energy: Energy


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing or no YAML, or a key is unknown, missing, of the wrong type or out of range;
            the text names each key with its value and what is expected.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository's root, or restore it with `git checkout`") from None
    except (YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not valid YAML: {problem}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds no sections: expected {', '.join(_section_names())}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError(_sentences(path, error)) from None


def _section_names() -> list[str]:
    return [field.alias or name for name, field in Params.model_fields.items()]


def _sentences(path: Path, error: ValidationError) -> str:
    """One sentence a fault: key, value, what is expected."""
    faults: dict[str, str] = {}
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"] if isinstance(part, str))
        faults.setdefault(key, _sentence(key, fault["type"], fault["msg"], fault["input"]))
    return f"{path}: " + "; ".join(faults.values())


def _sentence(key: str, kind: str, message: str, value: object) -> str:
    expected = message.removeprefix("Value error, ").removeprefix("Input ")
    if kind == "extra_forbidden":
        return f"{key} is unknown; expected one of {', '.join(_keys_beside(key))}"
    if kind == "missing":
        return f"{key} is missing; copy it from the template's params.yaml"
    if isinstance(value, dict):
        return f"{key}: {expected}"
    return f"{key} is {value!r}, but it {expected}"


def _keys_beside(key: str) -> list[str]:
    """The keys that are allowed where the unknown `key` stood."""
    section: type[BaseModel] = Params
    for part in key.split(".")[:-1]:
        fields = {field.alias or name: field for name, field in section.model_fields.items()}
        annotation = fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        section = annotation
    return [field.alias or name for name, field in section.model_fields.items()]
