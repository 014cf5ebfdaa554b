"""How much of a difference is chance: the folds and the seeds that were trained beside the model."""

from src.reporting import words
from src.reporting.document import Bold, Line, Paragraph, Section, Table, table
from src.reporting.facts import Facts, Json
from src.reporting.opening import confidence

_METRICS = (
    ("accuracy", "accuracy", words.percent),
    ("macro_f1", "macro F1", words.decimals),
    ("log_loss", "log loss", words.decimals),
    ("ece", "calibration error", words.decimals),
)
_LARGEST = 25


def sections(facts: Facts) -> list[Section]:
    """Return a section for the folds and one for the seeds, where there are such."""
    found = facts.this.metrics
    made = []
    if told := found.get("folds"):
        made.append(Section(f"{len(told['runs'])} folds", (Paragraph(_folds(told)), _table(facts, told, "fold"))))
    if told := found.get("repeats"):
        made.append(Section(f"{len(told['runs'])} seeds", (Paragraph(_seeds(told)), _table(facts, told, "seed"))))
    return made


def _folds(told: Json) -> str:
    images = sum(run["examples"] for run in told["runs"].values())
    return (
        f"The recipe was trained once for each fold on the others, and scored on the {images:,} training images that its "
        "model did not see. The mean says how good the recipe is, not this very model; the interval allows for the images "
        "that the folds share."
    )


def _seeds(told: Json) -> str:
    deviation = told["accuracy"]["deviation"]
    return (
        f"The seed alone moves accuracy by {deviation * 100:.2f} points (standard deviation): a difference between two "
        f"trainings that is smaller than {2.8 * deviation * 100:.2f} points may be chance. Scored on the validation images, "
        "which also chose each best epoch: a little too good, for every seed alike."
    )


def _table(facts: Facts, told: Json, name: str) -> Table:
    rows: list[tuple[Line, ...]] = []
    rows.append(("mean", "", *((Bold(write(told[key]["mean"])),) for key, _, write in _METRICS)))
    rows.append(("standard deviation", "", *(write(told[key]["deviation"]) for key, _, write in _METRICS)))
    bounds = (f"{write(told[key]['low'])} to {write(told[key]['high'])}" for key, _, write in _METRICS)
    rows.append((f"{confidence(facts)} interval of the mean", "", *bounds))
    for number in sorted(told["runs"], key=int):
        run = told["runs"][number]
        values = (write(run[key]) for key, _, write in _METRICS)
        rows.append((str(run["name"]), f"{run['examples']:,}", *values))
    header = (name, "examples", *(label for _, label, _ in _METRICS))
    return table(header, rows, "lrrrrr", _LARGEST, "out/model")
