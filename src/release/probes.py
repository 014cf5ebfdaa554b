"""The one door to all that is asked of a running version over HTTP. Each of them raises FaultError with its reason.

wait_ready   after the start, until it is ready
smoke        before the switch: everything, in a few seconds
watch        after the switch: again and again, through the proxy
quick        for a rollback: the least, in a tenth of a second
"""

from pathlib import Path

from src.release.client import Client
from src.release.golden import FaultError, expect, golden_examples
from src.release.life import Life, wait_ready
from src.release.smoke import Limits, smoke
from src.release.watch import watch

__all__ = ["Client", "FaultError", "Life", "Limits", "quick", "smoke", "wait_ready", "watch"]


def quick(client: Client, golden: Path, version: str, tolerance: float, images: int = 3) -> None:
    """Check in a tenth of a second that it is ready, is this version, and answers as reviewed; for a rollback.

    Raises:
        FaultError: it does not.
    """
    examples = golden_examples(golden, images)
    if not client.ready():
        raise FaultError("it does not say that it is ready")
    for example in examples:
        expect(example, client.predict(example.content, len(example.probabilities)), version, tolerance)
