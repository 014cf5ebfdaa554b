"""The section `evaluate` of params.yaml, with its defaults."""

from pydantic import Field

from src.core.params import Section


class Evaluate(Section):
    """How the test results are told."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of every interval")
    calibration_bins: int = Field(default=15, ge=2, le=100, description="of equal width, for calibration error and curve")
    golden: int = Field(default=16, ge=1, le=1000, description="examples that a deployment must reproduce")
    worst: int = Field(default=16, ge=1, le=100, description="errors shown in the picture")
    parity_tolerance: float = Field(
        default=0.001, gt=0, le=0.5, description="largest difference of a probability between PyTorch and ONNX"
    )
