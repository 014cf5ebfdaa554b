"""All of params.yaml, for commands that need more than one section.

params = load(Path("params.yaml"))
params.train.epochs
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from src.core.params import Section, checked, content
from src.evaluation.evaluate_params import Evaluate
from src.images.prepare_params import Prepare
from src.judging.gates_params import Gates, Quantize
from src.reporting.report_params import Energy, Report
from src.system.sweep_params import Sweep
from src.training.train_params import Train
from src.validation.validate_params import Validate


class Params(Section):
    """All of params.yaml, one attribute a section. Sections of stages must be there, since DVC looks for them."""

    kind: Literal["images"] = Field(default="images", description="what an example is; `images` is all that there is so far")
    prepare: Prepare
    validation: Validate = Field(alias="validate")
    train: Train
    evaluate: Evaluate
    gates: Gates = Gates()
    report: Report = Report()
    quantize: Quantize = Quantize()
    sweep: Sweep = Sweep()
    energy: Energy = Energy()


def load(path: Path) -> Params:
    """Read and check params.yaml, or a recipe: a file that names another one in `extends` and holds only what differs.

    Raises:
        UserError: the file or a stage's section is missing, it is no YAML, or a key is unknown, of the wrong type or out of
            range; the text names each key with its value and what is expected.
    """
    return checked(path, content(path), Params)
