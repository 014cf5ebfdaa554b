"""verdict.json, manifest.json, facts.json: what was judged, why, what people decided, what the model came from."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from src.core.command import UserError
from src.core.files import digest
from src.core.records import Record


@dataclass(frozen=True, kw_only=True)
class Label(Record):
    """A label that counts: who gave it, when, its name, and the head commit that it was given to."""

    by: str
    at: str | None = None
    label: str | None = None
    head: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decision(Record):
    """What the gates and people decided; `lacking` are the labels needed yet, by `override` and `engine_reviewed`."""

    verdict: str  # pass, investigate or fail
    reasons: list[str]
    lacking: list[str] = field(default_factory=list)
    override: Label | None = None
    engine_reviewed: Label | None = None


@dataclass(frozen=True, kw_only=True)
class GateRow(Record):
    """One gate's answer. `difference` is candidate minus main, `low` and `high` its interval at `confidence`."""

    name: str
    level: str = "enforce"  # or warn
    outcome: str  # pass, fail, investigate or skipped
    sentence: str = ""
    value: float | None = None
    limit: float | None = None
    main: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None

    @property
    def compared(self) -> float | None:
        """What stands against `limit`: the difference from another model where its limit is one of the difference."""
        return self.difference if self.name == "log_loss" or self.name.startswith("no_worse_than_") else self.value


@dataclass(frozen=True, kw_only=True)
class McNemar(Record):
    """Examples that only one of two models has right, and the exact two-sided p value."""

    only_main_right: int
    only_candidate_right: int
    p: float


@dataclass(frozen=True, kw_only=True)
class Evidence(Record):
    """What the comparison rests on: test, folds, seeds, or folds and seeds; over how many examples; what would settle it."""

    kind: str = "test"
    examples: int = 0
    way_out: str = ""
    looks: str = ""
    models_judged: str = ""
    vouches_for: float | None = None


@dataclass(frozen=True, kw_only=True)
class JudgedFile(Decision):
    """verdict.json: the decision, every gate, and the paired counts behind it."""

    gates: list[GateRow] = field(default_factory=list)
    accepted: bool = False
    baseline: bool = False  # whether there is a model of main to compare with
    mcnemar: McNemar | None = None
    churn: float | None = None
    evidence: Evidence | None = None
    anchor_moves: bool = False
    why_no_int8: str = ""
    format: int | None = None  # of an answer to a request

    def gate(self, name: str) -> GateRow:
        """Return the gate of that name; one that is skipped, without numbers or sentence, where it is off."""
        return next((gate for gate in self.gates if gate.name == name), GateRow(name=name, outcome="skipped"))

    @property
    def stopped_by(self) -> set[str]:
        """The names of the enforced gates that do not pass."""
        rows = self.gates
        return {row.name for row in rows if row.level == "enforce" and row.outcome in ("fail", "investigate")}


@dataclass(frozen=True, kw_only=True)
class Stage(Record):
    """One stage as dvc.lock records it: dependencies by path with their MD5, params by file and section."""

    cmd: str = ""
    deps: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Inputs(Record):
    """What decides a model: the locked environment and the stages, with the digest of both."""

    digest: str
    environment: dict[str, str] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outputs(Record):
    """What a run made: SHA-256 of metrics.json and model.onnx."""

    evaluation_sha256: str | None = None
    model_sha256: str


@dataclass(frozen=True, kw_only=True)
class DataFacts(Record):
    """The data of a model: DVC's digest, the labels, the test split and the rule that drew it."""

    digest: str | None
    classes: list[str] = field(default_factory=list)
    test_examples: int | None = None
    test_sha256: str | None = None
    split_rule: str | None = None


@dataclass(frozen=True, kw_only=True)
class Network(Record):
    """The network of a model, and the epoch whose weights were kept."""

    network: str | None = None
    width: int | None = None
    parameters: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Hardware(Record):
    """The machine of a training or a measurement; memory in GiB."""

    accelerator: str | None = None
    cores: int | None = None
    machine: str | None = None
    memory_gib: float | None = None
    processor: str | None = None


@dataclass(frozen=True, kw_only=True)
class Throughput(Record):
    """Speed and cost of a training, where it was measured; energy is the GPU's."""

    threads: int | None = None
    examples_per_second: float | None = None
    data_wait_share: float | None = None
    memory_gib: float | None = None
    energy_kwh: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelAt(Record):
    """A model by the commit that holds it; the anchor is the best champion so far."""

    commit: str | None = None
    model_sha256: str


@dataclass(frozen=True, kw_only=True)
class PackedSeries(Record):
    """folds.json or repeats.json of main in the small form of `src.judging.lineage.pack_series`."""

    runs: list[dict[str, Any]]
    split_sha256: str
    right: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class MainModel(Record):
    """The model of main that was compared with; `series` are its folds and repeats where this comparison trained them."""

    commit: str | None = None
    model_sha256: str | None = None
    series: dict[str, PackedSeries] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Looks(Record):
    """How many models these test examples have judged: all since a date, and of this pull request."""

    examples: int | None = None
    pull_request: int | None = None
    since: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lineage(Record):
    """manifest.json: inputs and outputs by their digests, the data, the verdict, and what the model was compared with."""

    inputs: Inputs
    outputs: Outputs
    data: DataFacts
    commit: str | None
    metrics: dict[str, float]
    verdict: Decision
    network: Network | None = None
    hardware: Hardware | None = None
    throughput: Throughput | None = None
    training_seconds: float | None = None
    pull_request: int | None = None
    run_url: str | None = None
    main: MainModel | None = None
    anchor: ModelAt | None = None
    looks: Looks | None = None
    digest: str = field(default="", compare=False)  # of the whole file, with what a later version added; never in it

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Check a value that lies at `where`, and digest it as it is.

        Raises:
            UserError: a key is missing or holds another type.
        """
        found = super().from_json(value, where)
        try:
            return replace(found, digest=digest(value))
        except ValueError:  # of a key that this class does not know
            raise UserError(f"{where} holds a number that is not finite: restore the file, or make it again") from None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, by the names of the fields."""
        return {name: value for name, value in super().to_json().items() if name != "digest"}


@dataclass(frozen=True, kw_only=True)
class ExamplesLeft(Record):
    """Test examples of main that are gone (of so many), or have another label: some names, and how many main had right."""

    examples: int = 0
    of: int = 0
    names: list[str] = field(default_factory=list)
    main_right: int | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class AnchorFacts(Record):
    """The best champion so far: whether it is main's model, and whether it answered, or why not."""

    commit: str = ""
    model_sha256: str = ""
    is_main: bool = False
    found: bool = False
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """facts.json: what main is, how far it has moved, or why there is no model of it.

    `never` says that main never had a model of this repository's own, `example` that its model is the template's example,
    `first_rules` which sections of params.yaml are the first own ones then. `same_training` says that main's model learned
    from the same examples; `series` are the folds and repeats that this comparison trained of main's recipe.
    """

    ref: str = ""
    commit: str = ""
    merge_base: str = ""
    behind: int = 0
    found: bool = False
    never: bool = False
    example: bool = False
    why: str = ""
    first_rules: list[str] = field(default_factory=list)
    judging_changed: list[str] = field(default_factory=list)
    moved_inputs: list[str] = field(default_factory=list)
    labels_added: list[str] = field(default_factory=list)
    labels_gone: list[str] = field(default_factory=list)
    left_test: ExamplesLeft = field(default_factory=ExamplesLeft)
    relabelled: ExamplesLeft = field(default_factory=ExamplesLeft)
    split_rules: list[str] = field(default_factory=list)  # main's and this one, where they differ
    main_run: Lineage | None = None
    retrained: str = ""
    same_test_set: bool = False
    same_training: bool = True
    series: list[str] = field(default_factory=list)
    looks: Looks = field(default_factory=Looks)
    anchor: AnchorFacts = field(default_factory=AnchorFacts)
