"""Change a clone as a fork does: `.ci/fork` calls it in the new clone. Draws the same images each time."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

COLOURS = {"circle": (220, 60, 60), "square": (60, 200, 60), "triangle": (70, 90, 230)}  # learnt in a few epochs
EACH = 70
DIALS = {
    "prepare.image_size": 48,
    "prepare.fit": "pad",
    "prepare.validation_share": 0.2,
    "validate.labels": list(COLOURS),
    "validate.max_duplicates": 0.1,
    "validate.checks.drift": "off",
    "train.seed": 7,
    "train.network": "shapes_net",
    "train.width": 16,
    "train.epochs": 12,
    "train.batch_size": 32,
    "train.optimizer": "adamw",
    "train.learning_rate": 0.003,
    "train.augment.flip": True,
    "train.augment.rotate": 5,
    "evaluate.calibration_bins": 10,
    "evaluate.golden": 8,
    "gates.min_accuracy": 0.75,
    "gates.max_latency_ms": 100,
    "gates.levels.churn": "off",
    "sweep.trials": 5,
    "quantize.calibration_examples": 64,
}
DATA = """
import csv

from src.core.example import Example


def examples(root):
    with open(root / 'labels.csv', newline='') as file:
        for row in csv.DictReader(file):
            if not row['path'].startswith('.'):
                yield Example(row['path'], row['label'])
"""
MODEL = """
import torch
from torch import nn


class ShapesNet(nn.Module):
    def __init__(self, shape, width):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(shape.channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, width*2, 3, padding=1), nn.BatchNorm2d(width*2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width*2, width*4, 3, padding=1), nn.BatchNorm2d(width*4), nn.ReLU(), nn.AdaptiveAvgPool2d(3))
        self.head = nn.Linear(width*4*9, shape.classes)

    def forward(self, x):
        return self.head(torch.flatten(self.features(x), 1))


NETWORKS = {'shapes_net': lambda shape, width: ShapesNet(shape, width)}
"""


def draw(label: str, random: np.random.Generator) -> Image.Image:
    """Draw one shape in about its colour, at a random place and size, on a noisy ground."""
    width, height = (int(side) for side in random.integers(48, 80, 2))
    ground = random.integers(0, 100, 3)
    noise = random.normal(0, 12, (height, width, 3))
    image = Image.fromarray(np.clip(ground + noise, 0, 255).astype(np.uint8))
    radius = int(random.integers(12, 20))
    x, y = (int(random.integers(radius + 1, side - radius)) for side in (width, height))
    box = (x - radius, y - radius, x + radius, y + radius)
    colour = tuple(int(np.clip(value + random.normal(0, 25), 0, 255)) for value in COLOURS[label])
    pen = ImageDraw.Draw(image)
    if label == "circle":
        pen.ellipse(box, fill=colour)
    elif label == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    return image


def main() -> None:
    """Change data, params, src/data.py, src/model.py and README.md of the clone that this runs in."""
    random = np.random.default_rng(0)
    Path("data/images").mkdir(parents=True)
    rows = ["path,label", ".thumbnails/none.png,none"]
    for place, label in enumerate(COLOURS):
        for number in range(place * EACH, (place + 1) * EACH):
            rows.append(f"images/IMG_{number:04}.{'jpg' if number % 3 else 'png'},{label}")
            draw(label, random).save(Path("data") / rows[-1].partition(",")[0], quality=92)
    Path("data/labels.csv").write_text("\n".join(rows) + "\n")

    yaml, path = YAML(), Path("params.yaml")
    content = yaml.load(path.read_text())
    for name, value in DIALS.items():
        *sections, key = name.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        assert place.get(key) != value, f"{name} is {value} in the template too"
        place[key] = value
    with path.open("w") as file:
        yaml.dump(content, file)

    Path("src/data.py").write_text(DATA.lstrip())
    Path("src/model.py").write_text(MODEL.lstrip())
    Path("README.md").write_text("# Shapes\n")


if __name__ == "__main__":
    main()
