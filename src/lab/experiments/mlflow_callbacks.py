"""What experiments hand to training: MLflow as its tracker, and the champion of MLflow's registry to start from."""

from src.system import champion, tracking
from src.training.callbacks import Callbacks

CALLBACKS = Callbacks(tracking.start, champion.fetch)
