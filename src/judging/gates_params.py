"""The sections `gates` and `quantize` of params.yaml, with their defaults."""

from typing import Literal

from pydantic import Field

from src.core.params import Section

GateLevel = Literal["enforce", "warn", "off"]


class GateLevels(Section):
    """What each gate may do: enforce decides, warn only tells, off is silent."""

    accuracy: GateLevel = Field(default="enforce", description="floor")
    macro_f1: GateLevel = Field(default="enforce", description="floor")
    baseline_margin: GateLevel = Field(default="enforce", description="floor")
    no_worse_than_main: GateLevel = Field(
        default="enforce",
        description="accuracy, example by example, of the test split, and of folds and seeds where there are some",
    )
    no_worse_than_anchor: GateLevel = Field(default="enforce", description="the same against the best champion so far")
    test_set: GateLevel = Field(default="enforce", description="main's labels and test examples are still there")
    worst_class: GateLevel = Field(default="enforce", description="floor and drop")
    worst_slice: GateLevel = Field(default="enforce", description="floor and drop")
    log_loss: GateLevel = Field(default="enforce", description="rise")
    calibration: GateLevel = Field(default="warn", description="error and rise")
    churn: GateLevel = Field(default="warn", description="two equally good models that disagree")
    latency: GateLevel = Field(
        default="enforce", description="on another machine than main's it is not comparable: the ratio is measured on one"
    )
    model_size: GateLevel = Field(default="enforce", description="of model.onnx")
    data_checks: GateLevel = Field(default="enforce", description="errors of validate; its warnings are told")
    judging: GateLevel = Field(default="enforce", description="a change of gates or evaluation asks for a look")
    stale_base: GateLevel = Field(
        default="enforce", description="main changed what the model depends on: asks for an update of the branch"
    )
    budget: GateLevel = Field(default="enforce", description="trained with fewer epochs than params.yaml asks for")


class Gates(Section):
    """What a model must keep to before it may replace main's."""

    metric: Literal["accuracy"] = Field(
        default="accuracy", description="what decides against main and the anchor: a score, 0 or 1, for each example"
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of INT8's intervals")
    pass_confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="how sure it must be that no more than the margin is lost to pass, one-sided; intervals fit it",
    )
    fail_confidence: float = Field(
        default=0.995,
        gt=0.5,
        lt=1,
        description="how sure a comparison must be to fail a model, one-sided; less sure asks for a look",
    )
    resamples: int = Field(default=4000, ge=100, le=100_000, description="of the bootstrap of log loss and calibration")
    min_accuracy: float = Field(default=0.8, ge=0, le=1, description="floor, on this pull request's test examples")
    min_macro_f1: float = Field(default=0.8, ge=0, le=1, description="floor, likewise")
    min_baseline_margin: float = Field(default=0.0, ge=-1, le=1, description="accuracy over the logistic regression")
    min_class_recall: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="of the worst class; below it and certainly so fails, uncertainly asks for a look",
    )
    min_slice_accuracy: float = Field(default=0.7, ge=0, le=1, description="of the worst slice, judged like the worst class")
    min_slice_examples: int = Field(default=20, ge=1, description="smaller slices and classes are shown, not judged")
    max_accuracy_drop: float = Field(
        default=0.01, ge=0, le=1, description="how much worse than main still counts as no worse (non-inferiority margin)"
    )
    max_total_drop: float = Field(
        default=0.02, ge=0, le=1, description="the same against the best champion so far: small losses must not add up"
    )
    max_class_drop: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="of one class's recall against main; over it and not by luck asks, surely over it fails",
    )
    max_slice_drop: float = Field(
        default=0.05, ge=0, le=1, description="of one slice's accuracy against main, judged like a class"
    )
    max_log_loss_rise: float = Field(default=0.05, ge=0, description="of the log loss against main")
    max_ece: float = Field(
        default=0.1, ge=0, le=1, description="calibration error beyond what a calibrated model shows on as many examples"
    )
    max_ece_rise: float = Field(default=0.02, ge=0, le=1, description="of the calibration error against main")
    max_churn: float = Field(
        default=0.05, ge=0, le=1, description="changed predictions beyond what the change of accuracy explains"
    )
    max_latency_ms: float = Field(default=50.0, gt=0, description="p95 of one image through ONNX Runtime")
    max_latency_ratio: float = Field(
        default=2.0, gt=0, description="p95 against main's, measured side by side; less than a millisecond more never counts"
    )
    max_model_mb: float = Field(default=100.0, gt=0, description="of model.onnx")
    levels: GateLevels = GateLevels()


class Quantize(Section):
    """How the INT8 model is made, and what it must keep to before it may be served."""

    release: bool = Field(
        default=False,
        description="true: deploy serves INT8 where it passes on the machine that deploys, else the float model",
    )
    calibration_examples: int = Field(
        default=512, ge=1, le=100_000, description="of the training split, spread over the classes"
    )
    max_accuracy_drop: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="on the test examples; the lower end of the interval (gates.confidence) must keep to it",
    )
    min_speedup: float = Field(
        default=1.2,
        gt=0,
        le=100,
        description="throughput against float; the lower end of the interval, at the batch that gains least",
    )
