"""Measure the service against the textbook's, BentoML's default and the model alone: `make bench-serve`.

    python -m src bench-serve [--model out/model] [--size 32] [--format png] [--seconds 5] [--rounds 5] [--out out/bench]
    python -m src bench-serve --network resnet18 --input 224 --format jpeg  (that network, untrained: needs no data)

Each server runs as its user gets it, on the same model, one after the other in rounds, each round in another order, at 1, 8
and 64 connections. Writes serve.json and serve.md. Ends with 1 when the service failed or gave a wrong answer, never because
of a number: times are this machine's, read the ratios.
"""

import argparse
import http.client
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from src.core.command import UserError, cores, progress, table
from src.core.files import rounded, write_bytes, write_json
from src.core.inference import Model
from src.lab.benchmarks import load, questions
from src.lab.benchmarks.load import Load
from src.lab.benchmarks.questions import Questions
from src.lab.benchmarks.servers import Server
from src.system import hardware, params

CONNECTIONS = (1, 8, 64)
SERVICE = "service"
_BENTOML = ("-m", "bentoml", "serve", "--host", "127.0.0.1")
_UVICORN = ("-m", "uvicorn", "--loop", "asyncio", "--http", "h11", "--log-level", "warning")
SERVERS = {  # name in serve.json: title, command, address that answers once it is ready
    SERVICE: ("this service", (*_BENTOML, "src.serving.service:ImageClassifier"), "/readyz"),
    "textbook": ("textbook: FastAPI, JSON lists", (*_UVICORN, "src.lab.benchmarks.textbook:app"), "/openapi.json"),
    "bentoml": ("BentoML's own image endpoint", (*_BENTOML, "src.lab.benchmarks.bento_default:Default"), "/readyz"),
}
_HEADER = ("server", "connections", "requests/s", "p50 ms", "p95 ms", "p99 ms", "failed", "of alone", "this / it")
_UPLOADS = 8  # different ones, sent in turns
_QUIET = 1.0  # seconds before each measurement, for what the one before has left to do

Json = dict[str, Any]


def measure(args: argparse.Namespace) -> Json:
    """Start the servers, put load on them in rounds, and return what serve.json holds.

    Raises:
        UserError: there is no model, or a server does not start or answers nothing any more.
    """
    with tempfile.TemporaryDirectory(prefix="bench-serve-", ignore_cleanup_errors=True) as home_name, ExitStack() as stack:
        home = Path(home_name)
        folder = _model_folder(args, home / "model")
        model = Model(folder)
        contents = questions.uploads(args.format, args.size, model, _UPLOADS)
        cases = {}
        for name in (SERVICE, *args.against):
            title, command, ready = SERVERS[name]
            server = Server(title, command, ready, Path.cwd(), home, SERVE_MODEL=str(folder), BENCH_MODEL=str(folder))
            stack.callback(server.stop)
            cases[name] = (server, questions.ask(name, contents, args.format, model, home / "questions" / name))
        for server, asked in cases.values():
            server.wait()
            _check(server, asked, range(len(asked.files)))
        alone, found = [], defaultdict(list)
        with progress(args.rounds * (1 + len(CONNECTIONS) * len(cases)), "measurement", "bench-serve") as bar:
            for number in range(args.rounds):
                names = list(cases)
                for connections in CONNECTIONS:
                    for turn in names[-number % len(names) :] + names[: -number % len(names)]:
                        server, asked = cases[turn]
                        time.sleep(_QUIET)
                        put = load.put(server.url + asked.path, asked.media, asked.files, connections, args.seconds)
                        found[turn, connections].append(put)
                        bar.update()
                alone.append(images_per_second_alone(folder, contents, args.seconds))
                bar.update()
        return {
            **summarize(found, alone),
            "model": {"input": model.spec.shape, "network": model.card.network, "sha256": model.sha256},
            "upload": {"format": args.format, "side": args.size, "bytes": round(sum(map(len, contents)) / len(contents))},
            "hardware": hardware.describe(),
            "rounds": args.rounds,
            "seconds": args.seconds,
        }


def summarize(found: dict[tuple[str, int], list[Load]], alone: list[float]) -> Json:
    """Return medians over the rounds; a ratio is one of throughputs of the same round.

    Args:
        found: the rounds of each server at each number of connections.
        alone: images a second that decode and the model reach without a server, of each round.
    """
    rates = {key: [one.requests / one.seconds for one in rounds] for key, rounds in found.items()}
    servers: Json = {}
    for (name, connections), rounds in found.items():
        pairs = zip(rates[SERVICE, connections], rates[name, connections], strict=True)
        at = {
            "per_second": rounded(median(rates[name, connections]), 1),
            **{key: _median([getattr(one, key) for one in rounds]) for key in ("p50_ms", "p95_ms", "p99_ms")},
            "of_alone": rounded(median(a / b for a, b in zip(rates[name, connections], alone, strict=True)), 3),
            "times": _median([ours / theirs for ours, theirs in pairs if theirs]),
            "requests": sum(one.requests for one in rounds),
            "failed": sum(sum(one.failures.values()) for one in rounds),
        }
        servers.setdefault(name, {"at": {}})["at"][str(connections)] = at
    return {"alone_per_second": rounded(median(alone), 1), "servers": servers}


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return rounded(median(known), 3) if known else None


def _model_folder(args: argparse.Namespace, fresh: Path) -> Path:
    if args.network is not None:
        from src.lab.benchmarks import untrained  # torch takes seconds to import

        untrained.write(args.network, args.input, args.width, fresh)
        return fresh
    if not (args.model / "model.onnx").is_file():
        raise UserError(f"{args.model / 'model.onnx'} is missing: run make reproduce, or name a --network of src/model.py")
    return Path(args.model).resolve()


def _check(server: Server, asked: Questions, numbers: Iterable[int]) -> int:
    """Ask some questions on a connection of their own; return how many answers were wrong."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=120)
    wrong = 0
    try:
        for number in numbers:
            index = number % len(asked.files)
            connection.request("POST", asked.path, asked.files[index].read_bytes(), {"Content-Type": asked.media})
            answer = connection.getresponse()
            wrong += not asked.is_right(answer.status, answer.read(), index)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{server.name} does not answer ({error}): its log says: {server.said()}") from None
    finally:
        connection.close()
    return wrong


def images_per_second_alone(folder: Path, contents: list[bytes], seconds: float) -> float:
    """Return what decode and the model reach in plain loops without HTTP, one process of one thread per core."""
    with multiprocessing.get_context("spawn").Pool(cores()) as pool:
        return sum(pool.starmap(_loop_alone, [(folder, contents, seconds)] * cores(), chunksize=1))


def _loop_alone(folder: Path, contents: list[bytes], seconds: float) -> float:
    model = Model(folder, threads=1)
    turns = cycle(contents)
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or not done:
        model.probabilities(questions.pixels(next(turns), model)[np.newaxis])
        done += 1
    return done / spent


def rows(found: Json) -> list[list[str]]:
    """Return the cells of the table: a row for each server at each number of connections."""
    return [
        [
            SERVERS[name][0],
            connections,
            f"{at['per_second']:,.0f}",
            *("-" if at[key] is None else f"{at[key]:.3g}" for key in ("p50_ms", "p95_ms", "p99_ms")),
            f"{at['failed']:,} of {at['requests']:,}",
            f"{at['of_alone']:.0%}",
            "-" if at["times"] is None else f"{at['times']:.1f}",
        ]
        for name, server in found["servers"].items()
        for connections, at in server["at"].items()
    ]


def about(found: Json) -> str:
    """Return in two sentences what was measured, and where."""
    model, upload, machine = found["model"], found["upload"], found["hardware"]
    return (
        f"{model['network']}, {'x'.join(map(str, model['input']))}; uploads: {upload['format'].upper()} of {upload['side']} "
        f"pixels a side, {upload['bytes']:,} bytes; {machine['processor'] or machine['machine']}, {machine['cores']} cores; "
        f"load by wrk; medians of {found['rounds']} rounds of {found['seconds']} s. Decode and the model alone "
        f"reach {found['alone_per_second']:,.0f} images/s."
    )


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description="Measure the service as ratios to other ways to serve.")
    parser.add_argument("--model", type=Path, default=Path("out/model"), help="folder with model.onnx and card.json")
    network = "measure this network of src/model.py, untrained, in place of a model; without a name that of params.yaml"
    parser.add_argument("--network", nargs="?", const="", metavar="NAME", help=network)
    parser.add_argument("--input", type=int, default=32, help="pixels of a side that --network takes")
    parser.add_argument("--width", type=int, help="of --network")
    parser.add_argument("--format", choices=("png", "jpeg"), default="png", help="of the uploads")
    parser.add_argument("--size", type=int, help="pixels of a side of the uploads (default: 32, or what --network takes)")
    parser.add_argument("--seconds", type=int, default=5, help="of load on one server in each round")
    parser.add_argument("--rounds", type=int, default=5)
    others = [name for name in SERVERS if name != SERVICE]
    parser.add_argument("--against", choices=others, nargs="*", default=others, help="what else is measured")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder to write")
    args = parser.parse_args()
    if args.network == "":
        chosen = params.load(Path("params.yaml"))
        args.network, args.width, args.input = chosen.train.network, chosen.train.width, chosen.prepare.image_size[0]
    args.size = args.size or (args.input if args.network else 32)
    if min(args.seconds, args.rounds, args.size, args.input) < 1:
        raise UserError("--seconds, --rounds, --size and --input are at least 1: give whole numbers over 0")
    found = measure(args)
    write_json(args.out / "serve.json", found)
    lines = [_HEADER, ["---", *["---:"] * (len(_HEADER) - 1)], *rows(found)]
    page = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    write_bytes(args.out / "serve.md", f"# The service, measured\n\n{about(found)}\n\n{page}\n".encode())
    print(about(found))
    print(table(_HEADER, rows(found)))
    entries = found["servers"][SERVICE]["at"].values()
    if failed := sum(entry["failed"] for entry in entries):
        asked = sum(entry["requests"] for entry in entries)
        raise UserError(
            f"{failed} of {asked} requests to the service failed or were answered wrongly: see {args.out}/serve.json"
        )
