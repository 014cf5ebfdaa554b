"""params.yaml, read once: typed, frozen, in range. An unknown key, a wrong type or a bad value is refused by name.

params = load(Path("params.yaml"))
params.train.epochs
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from src.core.command import UserError

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

    image_size: Size
    channels: Literal[1, 3]
    fit: Literal["crop", "pad", "stretch"]
    max_megapixels: float = Field(gt=0, le=1000)
    validation_share: Share
    test_share: Share
    use_given_splits: bool

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_name(cls, values: object) -> object:
        """DVC's run cache leaves every key called `size` or `nfiles` out of its own key: no param may have that name."""
        if isinstance(values, dict) and "size" in values:
            raise ValueError("size was renamed to image_size: write `image_size:` with the same value")
        return values

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
    image_size: Level
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
    class_weights: Literal["none", "sqrt", "balanced"]
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
    no_worse_than_anchor: GateLevel
    test_set: GateLevel
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
    pass_confidence: float = Field(gt=0.5, lt=1)
    fail_confidence: float = Field(gt=0.5, lt=1)
    resamples: int = Field(ge=100, le=100_000)
    min_accuracy: float = Field(ge=0, le=1)
    min_macro_f1: float = Field(ge=0, le=1)
    min_baseline_margin: float = Field(ge=-1, le=1)
    min_class_recall: float = Field(ge=0, le=1)
    min_slice_accuracy: float = Field(ge=0, le=1)
    min_slice_images: int = Field(ge=1)
    max_accuracy_drop: float = Field(ge=0, le=1)
    max_total_drop: float = Field(ge=0, le=1)
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


class Report(_Section):
    """What a report shows of the data."""

    pictures: Literal["all", "charts", "none"] = "all"


class Quantize(_Section):
    """How the INT8 model is made, and what it must keep to before it may be served."""

    release: bool
    calibration_images: int = Field(ge=1, le=100_000)
    max_accuracy_drop: float = Field(ge=0, le=1)
    min_speedup: float = Field(gt=0, le=100)


class Range(_Section):
    """Numbers from `low` to `high`, both included: by their logarithm, in steps, or neither."""

    low: float
    high: float
    log: bool = False
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _runs_upwards(self) -> "Range":
        if self.low >= self.high:
            raise ValueError("low must be under high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log must have a low over 0 and no step")
        return self


def _searched(value: object) -> "list[Scalar] | Range":
    """Read what one key may become; a union of types would be refused in the words of each."""
    if isinstance(value, dict):
        try:
            return Range.model_validate(value)
        except ValidationError as error:
            fault = error.errors()[0]
            reason = f"{'.'.join(map(str, fault['loc']))} {fault['msg'].removeprefix('Value error, ')}".strip()
            raise ValueError(f"should be {{low, high}}, with log: true or step if need be ({reason})") from None
    scalars = isinstance(value, list) and all(one is None or isinstance(one, str | bool | int | float) for one in value)
    if not isinstance(value, list) or not scalars or not value or len(set(map(repr, value))) < len(value):
        raise ValueError("should be a list of different choices, or {low, high}")
    return value


Scalar = str | bool | int | float | None
Searched = Annotated[list[Scalar] | Range, BeforeValidator(_searched)]

# what picks luck, or how fast and where a model is trained rather than how good it is
_NOT_SEARCHED = {"seed", "weights", "weights_sha256", "device", "compile", "processes", "folds", "repeats", "precision"}


class Sweep(_Section):
    """How `make sweep` searches, and over what."""

    trials: int = Field(ge=1, le=100_000)
    random: int = Field(ge=0, le=100_000)
    objective: Literal["accuracy", "log_loss"]
    prune_after: float = Field(ge=0, le=1)
    space: dict[str, Searched] = Field(min_length=1)

    @model_validator(mode="after")
    def _searches_keys_of_train(self) -> "Sweep":
        keys = [name for name in Train.model_fields if name not in {*_NOT_SEARCHED, "freeze", "augment"}]
        keys += [f"augment.{name}" for name in Augment.model_fields]
        for key in self.space:
            if key not in keys:
                raise ValueError(f"space.{key} is no key of train that can be searched; expected one of {', '.join(keys)}")
        return self


class Energy(_Section):
    """What energy costs."""

    price: float | None = Field(ge=0)


class Params(_Section):
    """All of params.yaml, one attribute a section."""

    kind: Literal["images"] = "images"
    prepare: Prepare
    validation: Validate = Field(alias="validate")
    train: Train
    evaluate: Evaluate
    gates: Gates
    report: Report = Report()
    quantize: Quantize
    sweep: Sweep
    energy: Energy


def load(path: Path) -> Params:
    """Read and check params.yaml, or a recipe: a file that names another one in `extends` and holds only what differs.

    Raises:
        UserError: the file is missing or no YAML, or a key is unknown, missing, of the wrong type or out of range;
            the text names each key with its value and what is expected.
    """
    try:
        return Params.model_validate(content(path))
    except ValidationError as error:
        raise UserError(_sentences(path, error)) from None


def content(path: Path) -> dict[str, Any]:
    """Read the values of a file over those of the file that its `extends` names, relative to its own folder.

    Raises:
        UserError: a file is missing or no YAML, or extends what extends it.
    """
    own, chain = _read(path), [path]
    while (base := own.pop("extends", None)) is not None:
        if not isinstance(base, str):
            raise UserError(f"{chain[-1]}: extends is {base!r}, expected the path of another file of params")
        following = chain[-1].parent / base
        if following.resolve() in {one.resolve() for one in chain}:
            raise UserError(f"{chain[-1]} extends {base}, which extends it in turn: take one `extends` out")
        if not following.is_file():
            raise UserError(f"{chain[-1]} extends {base}, but there is no {following}: correct the path")
        chain.append(following)
        own = _over(_read(following), own)
    return own


def _read(path: Path) -> dict[str, Any]:
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository's root, or restore it with `git checkout`") from None
    except (YAMLError, OSError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not valid YAML: {problem}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} holds no sections: expected {', '.join(_section_names())}")
    return values


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the base with the changes put in, section by section; a list or a search space is replaced as a whole."""
    merged = dict(base)
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(base.get(key), dict) and key != "space"
        merged[key] = _over(base[key], value) if inside else value
    return merged


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
