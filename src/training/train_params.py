"""The section `train` of params.yaml, with its defaults."""

from typing import Literal

from pydantic import Field, model_validator

from src.core.params import Section, Share
from src.images.augment_params import Augment


class Train(Section):
    """The network and its recipe."""

    seed: int = Field(default=1, ge=0, lt=2**32, description="of first weights, shuffling and augmentation")
    network: str = Field(
        default="small_resnet",
        description="small_resnet, resnet18, airbench, airbench_narrow, or a name in NETWORKS of src/model.py",
    )
    width: int = Field(default=24, ge=4, le=1024, description="channels of the first stage; 64 is ResNet-18's own")
    weights: str | None = Field(
        default=None,
        description="start from a .safetensors or PyTorch file, or from `champion`; what does not fit is listed",
    )
    weights_sha256: str | None = Field(
        default=None, description="digest of the file of weights, so that a changed one is noticed"
    )
    freeze: list[str] = Field(default=[], description="layers to keep as they are, by name: [conv1, bn1, layer1]")
    freeze_until: str | None = Field(default=None, description="keep every layer before this one as it is: layer3")
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="each layer learns at this share of the rate of the next one; 0.7 for pretrained weights",
    )
    epochs: int = Field(default=50, ge=1, le=100_000, description="passes over the training images")
    patience: int = Field(
        default=0, ge=0, le=100_000, description="stop when the validation loss has not fallen for so many epochs; 0 is off"
    )
    batch_size: int = Field(
        default=64, ge=2, le=65_536, description="images a step, or a few more, so that all steps are equal"
    )
    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        default="sgd", description="sgd (Nesterov momentum 0.9), adamw, or muon"
    )
    learning_rate: float = Field(default=0.1, gt=0, le=100, description="peak of the schedule; for adamw try 0.002")
    schedule: Literal["cosine", "linear"] = Field(default="cosine", description="down to zero as half a cosine, or linear")
    weight_decay: float = Field(default=0.0005, ge=0, le=10, description="not applied to norms and biases")
    warmup_epochs: float = Field(default=3.0, ge=0, description="in which the rate rises from zero, linearly")
    label_smoothing: Share = Field(default=0.1, description="share of the target spread over all classes")
    gradient_clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 is off")
    class_weights: Literal["none", "sqrt", "balanced"] = Field(
        default="none", description="balanced: rare classes count more, each class as much as another; sqrt: halfway"
    )
    ema: Share = Field(default=0.0, description="keep a moving average of the weights, with this decay: 0.999; 0 is off")
    tta: Literal["none", "flip", "flip_shift"] = Field(
        default="none",
        description="the model answers with the mean over: flip (mirrored), flip_shift (also moved); costs latency",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="bf16 where the hardware has it, else fp32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="a GPU if there is one")
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile: on, off, or auto: on, on a GPU, for 20,000 steps and more"
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="on this machine, one a GPU; over several machines: torchrun, see docs/training.md",
    )
    folds: int = Field(
        default=0,
        ge=0,
        le=100,
        description="also train so many models for K-fold cross-validation, as evidence for the gate; 0 is off",
    )
    repeats: int = Field(
        default=1, ge=1, le=100, description="train with so many seeds in all, folds too, as evidence for the gate"
    )
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _one_fold_is_none(self) -> "Train":
        if self.folds == 1:
            raise ValueError("folds must be 0 (off) or at least 2")
        return self
