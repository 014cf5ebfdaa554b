"""The classifier, a network with its preprocessing inside; how it is built, saved and loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from src import model
from src.core.card import Card
from src.core.command import UserError
from src.core.shape import Shape
from src.images.views import views
from src.training import airbench, onednn


class Classifier(nn.Module):
    """A network that normalises for itself, so that training and serving cannot disagree.

    `mean` and `deviation` are those of the training split, one a channel, in grey levels 0..255. `temperature` divides
    the logits; it is fitted after training, so that the probabilities are honest.

    `tta`, test-time augmentation, is the choice of `train.tta`: in evaluation mode the logits are the mean over several
    views of each image, at as many times the cost. In training mode it does nothing.
    """

    mean: Tensor
    deviation: Tensor
    temperature: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float], tta: str = "none") -> None:
        super().__init__()
        self.network = network
        self.tta = tta
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Map images in 0..255, (n, channels, height, width) of any type, to logits (n, classes)."""
        if self.training or self.tta == "none":
            return self.plain(images)
        weights, viewed = zip(*views(images, self.tta), strict=True)
        logits = self.plain(torch.cat(viewed))  # one large batch is faster than several small ones
        share = torch.tensor(weights, device=logits.device).view(-1, 1, 1)
        # by its shape, not by chunk(), which would fix the size of the exported model's batch
        return (logits.view(len(viewed), images.shape[0], -1) * share).sum(dim=0)

    def plain(self, images: Tensor) -> Tensor:
        """Map images in 0..255 to logits (n, classes) without test-time augmentation."""
        logits: Tensor = self.network(self.normalised(images))
        return logits / self.temperature

    def normalised(self, images: Tensor) -> Tensor:
        """Map images in 0..255 of any type to floats of mean 0 and deviation 1 over the training split."""
        return (images.float() - self.mean) / self.deviation


class Served(nn.Module):
    """What the ONNX file computes: images (n, height, width, channels) to probabilities (n, classes)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map NHWC images to probabilities."""
        return F.softmax(self.classifier(images.permute(0, 3, 1, 2)).float(), dim=1)


def networks() -> dict[str, Callable[[Shape, int], nn.Module]]:
    """Return every network by its name: those of src/model.py, and the built-in ones of other names."""
    return {**airbench.NETWORKS, **model.NETWORKS}


def build(
    name: str, shape: Shape, width: int, mean: Sequence[float], deviation: Sequence[float], tta: str = "none"
) -> Classifier:
    """Build a classifier with fresh weights.

    Raises:
        UserError: there is no such network.
    """
    known = networks()
    if name not in known:
        raise UserError(f"train.network is {name!r}, expected one of {', '.join(known)} (yours: NETWORKS of src/model.py)")
    network = known[name](shape, width)
    onednn.replace(network)
    return Classifier(network, mean, deviation, tta)


def save(classifier: Classifier, path: Path) -> None:
    """Write all weights and buffers as safetensors, which hold no code."""
    weights = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    path.write_bytes(serialize(weights))  # its own way of writing hides a full disk behind an error of its own


def load(card: Card, weights: Path) -> Classifier:
    """Rebuild the classifier that a card.json describes, with its weights.

    Raises:
        UserError: the weights are missing, damaged or of another network.
    """
    shape = Shape.of(card.spec, len(card.classes))
    blank = [0.0] * shape.channels, [1.0] * shape.channels
    classifier = build(card.network, shape, card.width, *blank, card.tta)
    advice = "run `dvc repro -f train`, which makes it"
    if not weights.is_file():
        raise UserError(f"{weights} is missing: {advice}")
    try:
        classifier.load_state_dict(load_file(weights))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights} is no safetensors file ({error}): {advice}") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{weights} does not fit network {card.network} of src/model.py ({reason}); train again") from None
    return classifier.eval()
