"""Where the two models differ: classes, slices, pairs that are confused, images newly wrong and newly right."""

from collections.abc import Sequence

import numpy as np

from src.reporting import changes, words
from src.reporting.changes import Share
from src.reporting.document import Block, Code, Fold, Line, Paragraph, Section, Table, table
from src.reporting.drawing import Drawn
from src.reporting.facts import Facts

_FIRST = 10  # rows shown at once
_FOLDED = 40
_KINDS = (("Classes", "class", "per_class", "recall"), ("Slices", "slice", "slices", "accuracy"))


def sections(facts: Facts, drawn: Drawn) -> list[Section]:
    """Return what moved, or where there is no main, where this model is weak."""
    if not facts.this.metrics:
        return []
    if not facts.has_answers:
        return _weak(facts, drawn)
    return [*_images(facts, drawn), *_parts(facts), *_confusion(facts, drawn)]


def _images(facts: Facts, drawn: Drawn) -> list[Section]:
    found = changes.answers(*facts.answers)
    if found is None:
        said = "The two models were judged on different images, so they cannot be compared image by image."
        return [Section("Images", (Paragraph(said),))]
    wrong, right = (rows.tolist() for rows in found)
    if not wrong and not right:
        return [Section("Images", (Paragraph("No test image changed between right and wrong."),))]
    blocks: list[Block] = []
    for name, rows in (("wrong", wrong), ("right", right)):
        if rows:
            blocks.append(Paragraph(f"{words.count(len(rows), 'image')} newly {name}, the most confident first:"))
            blocks += [drawn[name]] if name in drawn else []
            blocks.append(_image_table(facts, rows))
        else:
            blocks.append(Paragraph(f"No image is newly {name}."))
    return [Section("Images newly wrong and newly right", tuple(blocks))]


def _image_table(facts: Facts, rows: list[int]) -> Table:
    lines: list[tuple[Line, ...]] = []
    for mine, theirs in ((facts.this.predictions.iloc[row], facts.main.predictions.iloc[row]) for row in rows[:_FIRST]):
        said = [f"{one['prediction']} ({one['confidence']:.0%})" for one in (theirs, mine)]
        lines.append(((Code(words.place(mine["path"], int(mine["row"]))),), str(mine["label"]), *said))
    return table(("image", "actual", "main says", "this pull request says"), lines, "llll", _FIRST, total=len(rows))


def _parts(facts: Facts) -> list[Section]:
    made = []
    for title, kind, key, number in _KINDS:
        sides = [side.metrics.get(key) or {} for side in (facts.main, facts.this)]
        if found := changes.shares(sides[0], sides[1], number):
            made.append(Section(title, tuple(_shares(found, kind, number))))
    return made


def _shares(found: Sequence[Share], kind: str, number: str) -> list[Block]:
    moved = [share for share in found if share.difference or share.main is None or share.this is None]
    stayed = [share for share in found if not share.difference and share not in moved]
    fell = sum(share.difference < 0 for share in moved)
    rose = sum(share.difference > 0 for share in moved)
    plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    both = sum(share.main is not None and share.this is not None for share in found)
    said = f"{number.capitalize()} fell in {fell} and rose in {rose} of {words.count(both, kind, plural)}."
    if not both:
        said = f"No {kind} can be compared with main's."
    blocks: list[Block] = [Paragraph(said)]
    if moved:  # the largest falls, then the largest rises
        ends = [*moved[:fell][:_FIRST], *moved[fell:][:_FIRST]]
        blocks.append(_share_table(ends, kind, number, len(moved)))
    if stayed:
        inside = _share_table(stayed, kind, number, len(stayed))
        blocks.append(Fold(f"{words.count(len(stayed), kind, plural)} did not change", (inside,)))
    return blocks


def _share_table(shares: Sequence[Share], kind: str, number: str, total: int) -> Table:
    rows = [
        (
            share.name,
            words.side(share.main, words.percent),
            words.side(share.this, words.percent),
            words.points(share.difference) if share.main is not None and share.this is not None else words.NONE,
            f"{share.images:,}",
        )
        for share in shares
    ]
    header = (kind, f"{number}, main", f"{number}, this", "difference", "test images")
    return table(header, rows, "lrrrr", _FOLDED, "metrics.json has them all", total)


def _confusion(facts: Facts, drawn: Drawn) -> list[Section]:
    names, counts = changes.confusion(*facts.answers, facts.this.card.get("classes", []))
    difference = counts[1] - counts[0]
    np.fill_diagonal(difference, 0)  # the table is of errors; right answers are the classes' recall
    places = np.argwhere(difference)
    if not len(places):
        return []
    order = np.argsort(-np.abs(difference[tuple(places.T)]), kind="stable")
    rows = [
        (names[actual], names[said], f"{counts[0, actual, said]:,}", f"{counts[1, actual, said]:,}",
         f"{difference[actual, said]:+,}")
        for actual, said in places[order]
    ]  # fmt: skip
    header = ("actual", "taken for", "main, times", "this, times", "difference")
    pairs = table(header, rows, "llrrr", _FIRST)
    return [Section("Confusion", (pairs, *([drawn["confusion"]] if "confusion" in drawn else [])))]


def _weak(facts: Facts, drawn: Drawn) -> list[Section]:
    made = []
    for title, kind, key, number in _KINDS:
        found = sorted(
            changes.shares({}, facts.this.metrics.get(key) or {}, number),
            key=lambda share: (share.this is None, share.this or 0.0),
        )
        if found:
            rows = [(share.name, words.side(share.this, words.percent), f"{share.images:,}") for share in found]
            more = "metrics.json has them all"
            made.append(Section(title, (table((f"{kind}, worst first", number, "test images"), rows, "lrr", _FIRST, more),)))
    shown = [drawn[name] for name in ("confusion", "errors", "activation") if name in drawn]
    if shown:
        made.append(Section("Errors", (Paragraph("Where this model errs, on the test images."), *shown)))
    return made
