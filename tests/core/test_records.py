"""Files that cross zones, as typed classes: python -m pytest tests/core/test_records.py"""

from pathlib import Path
from typing import Any

import pytest

from src.core.card import Card
from src.core.command import UserError
from src.core.files import read_json, write_json

CARD: dict[str, Any] = {
    "network": "n",
    "model_sha256": "f" * 64,
    "classes": ["a", "b"],
    "spec": {"kind": "images", "dtype": "uint8", "shape": [8, 9, 3]},
}


def test_a_card_comes_back_as_it_was_written_without_what_a_later_version_adds(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    write_json(path, CARD | {"later": 1, "temperature": 1, "validation": {"accuracy": 0.5}})
    card = Card.read(path, made_by="train")
    assert (card.spec.shape, card.temperature, card.parameters) == ((8, 9, 3), 1, None)
    write_json(path, card.to_json())
    assert Card.read(path, made_by="train") == card
    assert "later" not in read_json(path, made_by="train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": "3"}, "card.json: width is '3', expected int"),
        ({"width": True}, "card.json: width is True, expected int"),
        ({"classes": ["a", 2]}, "card.json: classes[1] is 2, expected str"),
        ({"spec": {"kind": "x", "dtype": "u1", "shape": 8}}, "card.json: spec: shape is 8, expected tuple"),
        ({"validation": {"accuracy": None}}, "card.json: validation.accuracy is None, expected float"),
        ({"epoch": 1.5}, "card.json: epoch is 1.5, expected int"),
    ],
)
def test_a_key_of_another_type_is_named_with_its_file(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_json(tmp_path / "card.json", CARD | change)
    with pytest.raises(UserError, match="restore the file") as caught:
        Card.read(tmp_path / "card.json", made_by="train")
    assert words in str(caught.value)


def test_a_missing_key_a_number_that_is_none_and_no_object_are_named() -> None:
    with pytest.raises(UserError, match="validation.accuracy is nan, expected float"):
        Card.from_json(CARD | {"validation": {"accuracy": float("nan")}}, "card.json")
    with pytest.raises(UserError, match="HEAD:card.json lacks network"):
        Card.parse("{}", "HEAD:card.json")
    with pytest.raises(UserError, match=r"HEAD:card.json is \[\], expected an object"):
        Card.parse("[]", "HEAD:card.json")
    with pytest.raises(UserError, match="HEAD:card.json is not valid JSON"):
        Card.parse("{", "HEAD:card.json")
