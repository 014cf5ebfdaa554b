"""Watches over a deployment from beside it: if that process dies, the traffic goes back to the version that served before.

Started by deploy and rollback themselves, with the lock they hold: until this process ends no other deployment starts.

    python -m src guard LOCK PIPE
"""

import os
import sys

from src.release import settings as all_settings
from src.release.guarding import DONE
from src.release.journal import Journal
from src.release.site import Site


def main() -> None:
    """Wait for the other process; where it ends without a word, end what it began."""
    _lock, pipe = map(int, sys.argv[1:3])
    if os.read(pipe, 1) == DONE:
        return
    settings = all_settings.read()
    Site(settings, Journal(settings)).recover()
