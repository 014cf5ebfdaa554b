"""Measure the service against the textbook's, BentoML's default and the model alone: `make bench-serve`.

    python -m src bench-serve [--model out/model] [--size 32] [--format png] [--seconds 3] [--out out/bench]
    python -m src bench-serve --network resnet18 --input 224 --format jpeg  (that network, untrained: needs no data)
    python -m src bench-serve --base origin/main   (main's service too, with the same model)

Each server runs as its user gets it, on the same model, one after the other in rounds, at 1, 8 and 64 connections. Writes
serve.json, serve.md and serve.png. Ends with 1 when the service failed or gave a wrong answer, never because of a number:
times are this machine's, read the ratios.
"""

import argparse
import json
import tempfile
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from src.core.command import UserError, progress, table
from src.core.files import sha256, write_bytes, write_json
from src.core.inference import Model as Network
from src.lab.benchmarks import load, questions, rounds, serve_results, serve_table
from src.lab.benchmarks.limit import Loops
from src.lab.benchmarks.rounds import CONCURRENCIES, Case
from src.lab.benchmarks.serve_results import BENTOML, MAIN, OURS, TEXTBOOK
from src.lab.benchmarks.servers import Server
from src.system import hardware, params
from src.system.worktree import checked_out, git

_SERVICE = ["-m", "bentoml", "serve", "src.serving.service:ImageClassifier", "--host", "127.0.0.1"]
_TEXTBOOK = [
    "-m",
    "uvicorn",
    "src.lab.benchmarks.textbook:app",
    "--loop",
    "asyncio",
    "--http",
    "h11",
    "--log-level",
    "warning",
]
_BENTOML = ["-m", "bentoml", "serve", "src.lab.benchmarks.bento_default:Default", "--host", "127.0.0.1"]
_OTHERS = {
    TEXTBOOK: ("the textbook's service", _TEXTBOOK, "/openapi.json"),
    BENTOML: ("BentoML's own endpoint", _BENTOML, "/readyz"),
}
_UPLOADS = 8  # different ones, sent in turns

Json = dict[str, Any]


def measure(args: argparse.Namespace) -> Json:
    """Start the servers, put load on them, and return what `serve.json` holds.

    Raises:
        UserError: there is no model, or a server does not start or answers nothing any more.
    """
    with tempfile.TemporaryDirectory(prefix="bench-serve-", ignore_cleanup_errors=True) as name, ExitStack() as stack:
        home, folder = Path(name), _model(args, Path(name) / "model")
        servers = {OURS: _start(stack, "the service", _SERVICE, "/readyz", Path.cwd(), home, SERVE_MODEL=str(folder))}
        for other in args.against:
            title, command, ready = _OTHERS[other]
            servers[other] = _start(stack, title, command, ready, Path.cwd(), home, BENCH_MODEL=str(folder))
        base = _base(stack, args.base, folder, home, servers)
        for server in servers.values():
            server.wait()
        precision = _precision(servers[OURS])
        cases, contents = _cases(servers, folder, precision, args, home)
        loops = stack.enter_context(Loops(folder, precision, _write(contents, home / "uploads")))
        told = _in_rounds(cases, loops, args.seconds, args.rounds)
        size = round(sum(map(len, contents)) / len(contents))
        upload = {"format": args.format, "side": args.size, "bytes": size}
        return {**told, **_about(folder, precision), "upload": upload, "base": base}


def _model(args: argparse.Namespace, fresh: Path) -> Path:
    if args.network is None:
        if not (args.model / "model.onnx").is_file():
            raise UserError(
                f"{args.model / 'model.onnx'} is missing: run make reproduce, or name a --network of src/model.py"
            )
        return Path(args.model).resolve()
    from src.lab.benchmarks import untrained  # torch takes seconds to import, and a model that is there needs none of it

    untrained.write(args.network, args.input, args.width, fresh)
    return fresh


def _start(
    stack: ExitStack, name: str, command: list[str], ready: str, folder: Path, home: Path, **variables: str
) -> Server:
    server = Server(name, command, ready, folder, home, **variables)
    stack.callback(server.stop)
    return server


def _base(stack: ExitStack, ref: str | None, folder: Path, home: Path, servers: dict[str, Server]) -> Json:
    """Start main's service, its own code on this very model, where it can be had; return what is known of it."""
    commit = git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}") if ref else ""
    told = {"ref": ref, "commit": commit, "why": ""}
    if not commit:
        return {**told, "why": f"there is no branch {ref} here" if ref else "none was asked for (--base)"}
    try:
        tree = stack.enter_context(checked_out(commit))
        server = _start(stack, "main's service", _SERVICE, "/readyz", tree, home, SERVE_MODEL=str(folder))
        server.wait()
    except UserError as error:  # what main holds is not this tree's fault: the rest is measured
        return {**told, "why": str(error)}
    servers[MAIN] = server
    return told


def _precision(server: Server) -> str:
    with urllib.request.urlopen(f"{server.url}/model", timeout=30) as answer:  # noqa: S310 - our own server
        return str(json.load(answer).get("precision", "fp32"))


def _cases(
    servers: Mapping[str, Server], folder: Path, precision: str, args: argparse.Namespace, home: Path
) -> tuple[dict[str, Case], list[bytes]]:
    """Return each server with what it is asked, and the uploads."""
    plain = Network(folder)
    served = plain if precision == "fp32" else Network(folder, precision=precision)
    contents = questions.uploads(args.format, args.size, plain, _UPLOADS)
    asked = {
        OURS: lambda: questions.ours(contents, args.format, served, home / "questions" / OURS),
        MAIN: lambda: questions.ours(contents, args.format, plain, home / "questions" / MAIN),
        TEXTBOOK: lambda: questions.textbook(contents, plain, home / "questions" / TEXTBOOK),
        BENTOML: lambda: questions.bentoml(contents, args.format, plain, home / "questions" / BENTOML),
    }
    return {name: Case(server, asked[name]()) for name, server in servers.items()}, contents


def _write(contents: list[bytes], folder: Path) -> list[Path]:
    folder.mkdir()
    files = [folder / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files


def _in_rounds(cases: Mapping[str, Case], loops: Loops, seconds: int, count: int) -> Json:
    steps = count * (1 + len(CONCURRENCIES) * len(cases))
    with progress(steps, "measurement", "bench-serve") as bar:
        found = list(rounds.measure(cases, loops, seconds, count, bar.update))
    return {**serve_results.summarize(found), "rounds": count, "seconds": seconds, "load": load.generator()}


def _about(folder: Path, precision: str) -> Json:
    network = Network(folder)
    model = {"input": [*network.size, network.channels], "network": network.card["network"], "precision": precision}
    return {"hardware": hardware.describe(), "model": {**model, "sha256": network.sha256}}


def _tell(found: Json) -> None:
    print(serve_table.about(found))
    print(table(serve_table.HEADER, serve_table.rows(found)))
    print("\n".join([*serve_table.notes(found), *serve_table.promises(found)]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="serve", description="Measure the service as ratios to other ways to serve.")
    parser.add_argument("--model", type=Path, default=Path("out/model"), help="folder with model.onnx and card.json")
    parser.add_argument(
        "--network",
        nargs="?",
        const="",
        metavar="NAME",
        help="measure this network of src/model.py, untrained, in the place of a model; without a name that of params.yaml",
    )
    parser.add_argument("--input", type=int, default=32, help="pixels of a side that --network takes")
    parser.add_argument("--width", type=int, help="of --network")
    parser.add_argument("--format", choices=("png", "jpeg"), default="png", help="of the uploads")
    parser.add_argument("--size", type=int, help="pixels of a side of the uploads (default: 32, or what --network takes)")
    parser.add_argument("--seconds", type=int, default=3, help="of load on one server at one concurrency, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", choices=_OTHERS, nargs="*", default=list(_OTHERS), help="what else is measured")
    parser.add_argument("--base", help="branch whose service is measured too, such as origin/main")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder to write")
    args = parser.parse_args()
    if args.network == "":
        chosen = params.load(Path("params.yaml"))
        args.network, args.width, args.input = chosen.train.network, chosen.train.width, chosen.prepare.image_size[0]
    args.size = args.size or (args.input if args.network else 32)
    if min(args.seconds, args.rounds, args.size, args.input) < 1:
        raise UserError("--seconds, --rounds, --size and --input are at least 1: give whole numbers over 0")
    try:
        found = measure(args)
    except UserError as error:
        failed = {"failed": str(error), "model": {"sha256": _digest(args.model)}}
        write_json(args.out / "serve.json", failed)  # for the report, which says so
        raise
    write_json(args.out / "serve.json", found)
    write_bytes(args.out / "serve.md", serve_table.markdown(found).encode())
    serve_table.draw(args.out / "serve.png", found)
    _tell(found)
    wrong, asked = serve_results.faults(found)
    if wrong:
        raise UserError(
            f"{wrong} of {asked} requests to the service failed or were answered wrongly: see {args.out}/serve.json"
        )


def _digest(folder: Path) -> str | None:
    return sha256(folder / "model.onnx") if (folder / "model.onnx").is_file() else None
