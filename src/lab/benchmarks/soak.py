"""Ask the service for a long time, and see whether it stays as it was: `make soak`.

    python -m src soak [--requests 200000] [--hostile 0] [--clients 2] [--model out/model] [--out out/soak]
    python -m src soak --url http://127.0.0.1:3000   (a service that runs already on this machine)

Processes of clients send good requests in every way and format, over kept and over fresh connections; each answer must name
the label that the same picture had at first. With --hostile, so many hostile requests come beside them. Memory and
descriptors of all processes of the service are watched. Prints a table, writes soak.json and soak.png; ends with 1 when a
good request failed, a hostile one was answered wrongly, a process was replaced, memory rose or descriptors leaked.
"""

import argparse
import json
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from src.core.command import UserError, progress, table
from src.core.files import write_json
from src.lab.benchmarks import soak_watch
from src.lab.benchmarks.hostile import Tally, siege
from src.lab.benchmarks.servers import Server
from src.lab.benchmarks.soak_client import Clients, Report, learn, questions

_SERVICE = ["-m", "bentoml", "serve", "src.serving.service:ImageClassifier", "--host", "127.0.0.1"]
_LOOKS = 500  # at the processes in one run, about
_SEED = 1

Json = dict[str, Any]


@contextmanager
def _service(args: argparse.Namespace) -> Iterator[str]:
    """Yield the address of the service: the one that was named, or one that runs for as long as the soak."""
    if args.url:
        yield args.url
        return
    if not (args.model / "model.onnx").is_file():
        raise UserError(f"{args.model / 'model.onnx'} is missing: run make reproduce, or name a --model or a --url")
    with tempfile.TemporaryDirectory(prefix="soak-") as home:
        model = str(args.model.resolve())
        server = Server("the service", _SERVICE, "/readyz", Path.cwd(), Path(home), SERVE_MODEL=model)
        try:
            server.wait()
            yield server.url
        finally:
            server.stop()


def measure(url: str, requests: int, hostile: int, clients: int, out: Path) -> Json:
    """Soak a service; return what soak.json holds, and draw the picture.

    Raises:
        UserError: no process of this machine listens there, or it does not answer.
    """
    place = (urlsplit(url).hostname or "", urlsplit(url).port or 80)
    watched = soak_watch.processes(place[1])
    if not watched:
        raise UserError(f"no process of yours listens on {url}: start the service here, for its memory is to be watched")
    model = _model(url)
    asked = learn(place, questions(tuple(model["size"]), model["channels"], np.random.default_rng(_SEED)))
    before = soak_watch.settled(watched)
    asking, tally = Clients(place, asked, requests, clients), Tally()
    besieging = threading.Thread(target=_besiege, args=(place, hostile, tally), daemon=True)
    with soak_watch.Watch(watched, asking.answered, max(0.1, requests / 1500 / _LOOKS)) as watch:
        besieging.start()
        report = _show_progress(asking, requests)
        besieging.join()
    after = soak_watch.settled(watched)
    samples = [before, *watch.samples, after._replace(requests=requests)]
    soak_watch.draw(out / "soak.png", samples)
    same = [process.pid for process in soak_watch.processes(place[1])] == [process.pid for process in watched]
    return _told(report, tally, samples, same)


def _model(url: str) -> Json:
    try:
        with urllib.request.urlopen(f"{url}/model", timeout=10) as answer:  # noqa: S310 - the user named it
            told: Json = json.load(answer)
            return told
    except (OSError, ValueError) as error:
        raise UserError(f"{url}/model does not tell which model answers ({error}): is this the service?") from None


def _besiege(place: tuple[str, int], requests: int, tally: Tally) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # so that it takes no time from what is measured here
        found = apart.submit(siege, place, requests, _SEED).result()
    tally.answered, tally.faults, tally.longest = found.answered, found.faults, found.longest


def _show_progress(asking: Clients, requests: int) -> Report:
    over = threading.Event()
    with progress(requests, "request", "soak") as bar:
        shown = threading.Thread(target=_move, args=(bar, asking, over), daemon=True)
        asking.start()
        shown.start()
        try:
            return asking.join()
        finally:
            over.set()
            shown.join()


def _move(bar: Any, asking: Clients, over: threading.Event) -> None:
    while not over.wait(0.5):
        bar.update(asking.answered() - bar.n)
    bar.update(asking.answered() - bar.n)


def _told(report: Report, tally: Tally, samples: list[soak_watch.Sample], same: bool) -> Json:
    slope = soak_watch.slope(samples)
    latencies = np.percentile(report.latencies or [0.0], (50, 95, 99, 100))
    return {
        "good": {
            "answered": report.answered,
            "answered_later": report.later,
            "failed": dict(report.failures),
            "latency_ms": {f"p{p}": round(float(v), 2) for p, v in zip((50, 95, 99, 100), latencies, strict=True)},
        },
        "hostile": {
            "requests": tally.requests,
            "kinds": len(tally.answered),
            "faults": tally.faults,
            "answered": {name: dict(count) for name, count in sorted(tally.answered.items())},
        },
        "memory": {
            "before_mb": round(samples[0].memory / 1e6, 1),
            "highest_mb": round(max(sample.memory for sample in samples) / 1e6, 1),
            "after_mb": round(samples[-1].memory / 1e6, 1),
            "growth": [round(value, 4) for value in slope] if slope else None,
            "verdict": slope.verdict if slope else "too short a run to tell",
        },
        "descriptors": {
            "before": samples[0].descriptors,
            "highest": max(sample.descriptors for sample in samples),
            "after": samples[-1].descriptors,
            "leak": soak_watch.leaks(samples[0], samples[-1]),
        },
        "same_processes": same,
    }


def show(told: Json) -> str:
    """Lay it out for a person."""
    good, memory, descriptors, hostile = told["good"], told["memory"], told["descriptors"], told["hostile"]
    failed = ", ".join(f"{count} x {kind}" for kind, count in good["failed"].items()) or "none"
    growth = memory["growth"]
    line = f"{growth[0]:+.1%} over the run ({growth[1]:+.1%} to {growth[2]:+.1%}), " if growth else ""
    rows = [
        ["good requests", f"{good['answered']} answered, {good['answered_later']} of them after a 429"],
        ["failed", failed],
        ["latency ms", ", ".join(f"{name} {value}" for name, value in good["latency_ms"].items())],
        [
            "hostile requests",
            f"{hostile['requests']} of {hostile['kinds']} kinds, {len(hostile['faults'])} answered wrongly",
        ],
        ["memory MB", f"{memory['before_mb']} before, {memory['highest_mb']} at most, {memory['after_mb']} after"],
        ["memory's slope", f"{line}{memory['verdict']}"],
        ["descriptors", f"{descriptors['before']} before, {descriptors['highest']} at most, {descriptors['after']} after"],
        ["processes", "the same as before" if told["same_processes"] else "some were replaced"],
    ]
    return "\n".join([table(["soak", "found"], rows), *hostile["faults"][:20]])


def faults(told: Json) -> list[str]:
    """Return what went wrong, one sentence each."""
    good, hostile = told["good"], told["hostile"]
    wrong = {
        f"{sum(good['failed'].values())} good requests failed": bool(good["failed"]),
        f"{len(hostile['faults'])} hostile requests were answered wrongly": bool(hostile["faults"]),
        "memory rises": told["memory"]["verdict"] == "rising",
        "descriptors leak": told["descriptors"]["leak"],
        "a process was replaced": not told["same_processes"],
    }
    return [sentence for sentence, is_so in wrong.items() if is_so]


def main() -> None:
    parser = argparse.ArgumentParser(prog="soak", description="Ask the service for a long time.")
    parser.add_argument("--requests", type=int, default=200_000, help="good ones")
    parser.add_argument("--hostile", type=int, default=0, help="hostile ones beside them")
    parser.add_argument("--clients", type=int, default=2, help="processes that ask, with four connections each")
    parser.add_argument("--url", help="of a service that runs already on this machine")
    parser.add_argument("--model", type=Path, default=Path("out/model"), help="what to serve where no --url is given")
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="folder for soak.json and soak.png")
    args = parser.parse_args()
    with _service(args) as url:
        told = measure(url, args.requests, args.hostile, args.clients, args.out)
    write_json(args.out / "soak.json", told)
    print(show(told))
    if wrong := faults(told):
        raise UserError(f"{'; '.join(wrong)}: {args.out / 'soak.json'} has more")
