"""All of params.yaml, for commands that need more than one section.

params = load(Path("params.yaml"))
params.train.epochs
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from src.core.params import Section, checked, content, merged
from src.evaluation.evaluate_params import Evaluate
from src.images.prepare_params import Prepare
from src.judging.gates_params import Gates, Quantize
from src.reporting.report_params import Report
from src.system.sweep_params import Range, Sweep
from src.training.train_params import Train
from src.validation.validate_params import Validate


class Params(Section):
    """All of params.yaml, one attribute a section. Sections of stages must be there, since DVC looks for them."""

    kind: Literal["images"] = Field(
        default="images", description="what an example is: the folder of src/ that reads and prepares it"
    )
    prepare: Prepare
    validation: Validate = Field(alias="validate")
    train: Train
    evaluate: Evaluate
    gates: Gates = Gates()
    report: Report = Report()
    quantize: Quantize = Quantize()
    sweep: Sweep = Sweep()


def load(path: Path) -> Params:
    """Read and check params.yaml, or a recipe: a file that names another one in `extends` and holds only what differs.

    Raises:
        UserError: the file or a stage's section is missing, it is no YAML, or a key is unknown, of the wrong type or out of
            range; the text names each key with its value and what is expected.
    """
    return checked(path, content(path), Params)


def filled(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file, of whatever day, with the defaults of the keys that it lacks; 1.0 is written as 1."""
    stages = {name: None for name, field in _keys(Params).items() if field.is_required()}
    return dict(_plain(merged(_plain(Params.model_validate(stages)), values)))


def remark(place: Sequence[str]) -> str:
    """Return what a key or a section means; "" where there is no such key."""
    found, kind = "", cast("Any", Params)
    for name in place:
        field = _keys(kind).get(name)
        kind = field.annotation if field else None
        found = (field.description or str(kind.__doc__)) if field else ""
    return found


def _keys(kind: Any) -> dict[str, FieldInfo]:
    """Return the fields of a section's class by their names in the file."""
    sections = isinstance(kind, type) and issubclass(kind, BaseModel)
    return {field.alias or name: field for name, field in kind.model_fields.items()} if sections else {}


def _plain(value: Any) -> Any:
    """Return a value as a file of params has it."""
    if isinstance(value, Range):
        return _plain(value.model_dump(exclude_defaults=True))
    if isinstance(value, BaseModel):
        return {field.alias or name: _plain(getattr(value, name)) for name, field in type(value).model_fields.items()}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return value[0] if len(set(value)) == 1 else list(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
