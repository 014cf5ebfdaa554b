"""Batch inference without a server: every image of a folder or of Parquet shards becomes one row of a file.

    python -m src batch IN OUT [--top 5] [--model out/model] [--strict] [--restart] [--quiet]

Reads IN: a folder (with all folders in it), one image, a Parquet file, or a folder of shards in the Hugging Face layout
(`image` {bytes, path}; other columns are carried over). Writes OUT: .parquet, .csv or .jsonl. Images go through the code of
the service under its limits (SERVE_*); one that cannot be used is a row with an error.

OUT appears when it is whole. Until then OUT.parts/ holds what is done, and the same command goes on from there, also after a
kill or on a disk that was full.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from src.core.command import Stopped, UserError
from src.core.files import check_outputs
from src.core.inference import Model
from src.serving import batch_inputs, batch_parts, identity, layout, settings
from src.serving.batch_inputs import load_tables
from src.serving.batch_parts import Parts
from src.serving.batch_progress import Progress
from src.serving.batch_results import Csv, Form, JsonLines
from src.serving.batch_rows import Listing, Piece, Signature
from src.serving.batch_scoring import Scorer, batch_size, score_all
from src.serving.settings import ROOT

_ENDINGS = (".parquet", ".csv", ".jsonl")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="batch", description="Write what the model says of many images, without a server.")
    parser.add_argument("source", type=Path, metavar="IN", help="folder of images, image, Parquet file or folder of shards")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write: .parquet, .csv or .jsonl")
    parser.add_argument("--top", type=int, default=5, help="labels for each image, most probable first (default: 5)")
    parser.add_argument("--model", type=Path, default=settings.read().model, help="folder with model.onnx and card.json")
    parser.add_argument("--threads", type=int, default=0, help="default: the processors of this machine or container")
    parser.add_argument("--batch", type=int, default=0, help="images computed together (default: by their size)")
    parser.add_argument(
        "--strict", action="store_true", help="end with status 1 if any image cannot be used, not only if all"
    )
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever was done before")
    parser.add_argument("--quiet", action="store_true", help="say nothing but faults")
    given = parser.parse_args()
    given.threads = given.threads or max(1, round(layout.processors()))
    return given


def _check(given: argparse.Namespace) -> None:
    if given.out.suffix not in _ENDINGS:
        raise UserError(f"{given.out} ends with none of {', '.join(_ENDINGS)}: name the output so")
    for name, low in (("top", 1), ("threads", 1), ("batch", 0)):
        if getattr(given, name) < low:
            raise UserError(f"--{name} is {getattr(given, name)}: use a number from {low} on")
    check_outputs([given.source, given.model], files=[given.out])


def main() -> None:
    """Go on, or begin; a stop says how to go on."""
    given = _options()
    _check(given)
    try:
        _finish(given)
    except OSError as error:
        error.filename = error.filename or str(batch_parts.folder_of(given.out))  # a full disk names no file
        raise
    except (KeyboardInterrupt, Stopped) as stop:
        kept = batch_parts.folder_of(given.out)
        print(f"batch: stopped; what is done is in {kept}: run the same command again to go on", file=sys.stderr, flush=True)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Stopped) else signal.SIGINT))


def _finish(given: argparse.Namespace) -> None:
    def tell(sentence: str) -> None:
        if not given.quiet:
            print(f"batch: {sentence}", flush=True)

    if given.out.exists() and not given.restart and not batch_parts.begun(given.out):
        tell(f"{given.out} is there and whole: nothing to do; --restart makes it anew")
        return
    with batch_parts.held(given.out) as folder:
        if given.restart:
            batch_parts.clear(folder)
        _score_all(given, folder, tell)


def _score_all(given: argparse.Namespace, folder: Path, tell: Callable[[str], None]) -> None:
    limits = settings.read()
    found = identity.read(given.model, ROOT)
    released = str(found.release.get("precision", "fp32"))
    precision = released if limits.precision == "auto" else limits.precision
    listing = batch_inputs.scan(given.source, folder / "inputs")
    model = Model(given.model, 1, limits.device, precision)
    top = min(given.top, len(model.classes))
    signature = Signature(found.version, found.manifest)
    about = {
        "images": listing.images,
        "inputs_sha256": listing.sha256,
        "model_sha256": model.sha256,
        "fit": found.card["fit"],
        "version": found.version,
        "manifest": found.manifest,
        "top": top,
        "max_pixels": limits.max_pixels,
        "max_body": limits.max_body,
    }
    form, names = _form(given.out, listing, signature, top, tell)
    parts = Parts(folder, about, form)
    if parts.rows:
        tell(f"going on after {parts.rows:,} of {listing.images:,} images")
    scorer = Scorer(model, top, limits.max_pixels, given.threads)
    pieces = _pieces(listing, parts.rows, given.batch or batch_size(model), limits.max_body, names)
    progress = Progress(listing.images, parts.rows, quiet=given.quiet)
    with closing(progress), closing(score_all(pieces, scorer, given.threads)) as scores:
        for scored in scores:
            parts.add(scored)
            progress.add(len(scored.errors))
    parts.flush()
    _end(given, listing, parts, progress.rate, tell)


def _form(
    out: Path, listing: Listing, signature: Signature, top: int, tell: Callable[[str], None]
) -> tuple[Form, list[str]]:
    """Return how rows are written, and which columns of shards they carry."""
    schema = load_tables().carried(listing) if listing.parquet else None
    names = [] if schema is None else list(schema.names)
    if out.suffix == ".parquet":
        load_tables()  # says so where there is no pyarrow
        from src.serving.batch_parquet import Parquet

        return Parquet(signature, schema), names
    lost = load_tables().left_out(schema) if schema is not None else []
    if lost:
        tell(f"columns {', '.join(lost)} hold bytes, which only .parquet can carry: left out")
    names = [name for name in names if name not in lost]
    if out.suffix == ".jsonl":
        return JsonLines(signature), names
    where = ["shard", "row", *load_tables().renamed(names)] if listing.parquet else ["path"]
    return Csv(signature, top, where), names


def _pieces(listing: Listing, skip: int, size: int, most: int, names: list[str]) -> Iterator[Piece]:
    if listing.parquet:
        pieces: Iterator[Piece] = load_tables().pieces(listing, skip, size, most, names)
        return pieces
    return batch_inputs.pieces(listing, skip, size, most)


def _end(given: argparse.Namespace, listing: Listing, parts: Parts, rate: float, tell: Callable[[str], None]) -> None:
    """Put the output in its place and sum up."""
    if parts.rows != listing.images:
        raise UserError(f"{given.source} changed while it was read: {parts.rows} rows of {listing.images}; use --restart")
    parts.finish(given.out)
    beside = f", {listing.left_out} other files left out" if listing.left_out else ""
    tell(f"{given.out}: {parts.rows:,} rows, {parts.errors:,} of them errors{beside}; {rate:,.0f} images/s")
    if parts.errors == parts.rows or (given.strict and parts.errors):
        sentence = f"{parts.errors} of {parts.rows} images of {given.source} could not be used"
        raise UserError(f"{sentence}: column `error` of {given.out} says why of each")
