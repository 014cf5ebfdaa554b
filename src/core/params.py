"""Read a section of params.yaml: typed, frozen, in range. An unknown key, a wrong type or a bad value is refused by name.

The class of a section, with its defaults, lies in the folder of what it steers: `src/training/train_params.py` has Train.

params = section(Path("params.yaml"), "train", Train)
params.epochs
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from src.core.command import UserError
from src.core.yaml_files import read_yaml

Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Some keys of params.yaml. Each key has a default, and its remark as the description of its field."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_all_defaults(cls, values: object) -> object:
        return {} if values is None else values


S = TypeVar("S", bound=Section)


def section(path: Path, name: str, kind: type[S]) -> S:
    """Read and check one section of a file of params, whatever the other sections hold.

    Raises:
        UserError: the file or the section is missing, or a key is unknown, of the wrong type or out of range;
            the text names each key with its value and what is expected.
    """
    values = content(path)
    if name not in values:
        raise UserError(f"{path}: {_missing(name)}")
    return checked(path, values[name], kind, name)


def checked(path: Path, values: object, kind: type[S], name: str = "") -> S:
    """Return the values of a section called `name` (or of a whole file of params) as an object of class `kind`.

    Raises:
        UserError: as for `section`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults: dict[str, str] = {}
        for fault in error.errors():
            place = [part for part in fault["loc"] if isinstance(part, str)]
            key = ".".join([name, *place] if name else place)
            faults.setdefault(key, _sentence(kind, place, key, fault["type"], fault["msg"], fault["input"]))
        raise UserError(f"{path}: " + "; ".join(faults.values())) from None


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
        own = merged(_read(following), own)
    return own


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository's root, or restore it with `git checkout`") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} holds no sections: expected `prepare:`, `train:` and others with their keys below them")
    return values


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the base with the changes put in, section by section; a list or a search space is replaced as a whole."""
    result = dict(base)
    for key, value in changes.items():
        below = base.get(key)
        if isinstance(below, dict) and (value is None or (isinstance(value, dict) and key != "space")):
            result[key] = merged(below, value or {})
        else:
            result[key] = value
    return result


def _sentence(kind: type[Section], place: list[str], key: str, fault: str, message: str, value: object) -> str:
    """Say of one fault: key, value, what is expected."""
    expected = message.removeprefix("Value error, ").removeprefix("Input ")
    if fault == "extra_forbidden":
        keys = _keys_beside(kind, place)
        near = get_close_matches(place[-1], keys, n=1)
        return f"{key} is unknown; {f'did you mean {near[0]}? ' if near else ''}expected one of {', '.join(keys)}"
    if fault == "missing":
        return _missing(key)
    if isinstance(value, dict):
        return f"{key}: {expected}" if key else expected
    return f"{key} is {value!r}, but it {expected}"


def _missing(name: str) -> str:
    return f"section {name} is missing: write `{name}:`, with nothing below it for the defaults (`make params` prints them)"


def _keys_beside(kind: type[BaseModel], place: list[str]) -> list[str]:
    """List the keys that are allowed where the unknown one at `place` stood."""
    for part in place[:-1]:
        fields = {field.alias or name: field for name, field in kind.model_fields.items()}
        annotation = fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        kind = annotation
    return [field.alias or name for name, field in kind.model_fields.items()]
