"""Post a Markdown file as the one report comment of a pull request.

    python3 -m src.github.post_comment NUMBER FILE

Reads FILE, GITHUB_TOKEN (pull-requests: write) and GITHUB_REPOSITORY; the workflows post by src.github.publish instead.
"""

import argparse
from pathlib import Path

from src.command import UserError, run
from src.github import comment
from src.github.api import GitHub


def main() -> None:
    """Post FILE, and say where and by what."""
    parser = argparse.ArgumentParser(description="Create or update the one report comment of a pull request.")
    parser.add_argument("number", type=int, help="the pull request")
    parser.add_argument("file", type=Path, help="the report, in Markdown")
    args = parser.parse_args()
    try:
        markdown = args.file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{args.file} is not UTF-8: write it again") from None
    print(comment.describe(comment.post(GitHub.from_environment(), args.number, markdown)))


if __name__ == "__main__":
    run("post_comment", main)
