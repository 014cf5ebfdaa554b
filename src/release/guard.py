"""Watches over a deployment from beside it: if that process dies, the traffic goes back to the version that served before.

Started by deploy and rollback themselves, with the lock they hold: until this process ends no other deployment starts.

    python -m src guard LOCK PIPE
"""

import argparse
import os

from src.release import settings as all_settings
from src.release.guarding import DONE
from src.release.journal import Journal
from src.release.site import Site


def main() -> None:
    """Wait for the other process; where it ends without a word, end what it began."""
    parser = argparse.ArgumentParser(description="Watch over a deployment, which starts this itself.")
    parser.add_argument("lock", type=int, help="descriptor of the lock that is held")
    parser.add_argument("pipe", type=int, help="descriptor that tells how the deployment ended")
    if os.read(parser.parse_args().pipe, 1) == DONE:
        return
    settings = all_settings.read()
    Site(settings, Journal(settings)).recover()
