"""Ask a service without a pause while it is deployed, and count what its users would have felt.

    python -m src bench-deploy http://127.0.0.1:8080 image.png [--seconds 60] [--concurrency 8] [--json FILE]
    python -m src bench-deploy http://127.0.0.1:8080 image.png -- make deploy

With a command the load lasts for as long as that runs. Every second client opens a connection for each request, the others
keep theirs for as long as the service lets them. Prints failures by kind, when each version answered, and how long a switch
took; ends with 1 when a request failed, an answer spoke of two versions, or a new connection met a version out of its time.
"""

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from src.core.command import UserError, table
from src.core.files import write_json
from src.release.client import media_type, why

_TIMEOUT = 30.0
_SWITCH = 0.5  # seconds in which new connections may meet either version; a switch takes a few hundredths


class Asked(NamedTuple):
    """One request: seconds since the start, and what came of it."""

    start: float
    end: float
    kept: bool  # sent over a connection that had served before
    fault: str | None
    version: str | None
    label: str | None


@dataclass
class Load:
    """What is asked, and all that was answered."""

    url: str
    image: bytes
    started: float = field(default_factory=time.perf_counter)
    asked: list[Asked] = field(default_factory=list)

    def client(self, *, keep: bool, stopped: Callable[[], bool]) -> None:
        """Ask one request after the other."""
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=_TIMEOUT)
        try:
            while not stopped():
                self.asked.append(self._ask(connection))
                if not keep:
                    connection.close()
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> Asked:
        start, kept = time.perf_counter() - self.started, connection.sock is not None
        fault, version, label = None, None, None
        try:
            connection.request("POST", "/predict", self.image, {"Content-Type": media_type(self.image)})
            response = connection.getresponse()
            fault, version, label = _read(response.status, response.headers, response.read())
        except (OSError, http.client.HTTPException) as error:
            fault = f"{why(error, _TIMEOUT)}{' (a kept connection)' if kept else ''}"
            connection.close()
        return Asked(start, time.perf_counter() - self.started, kept, fault, version, label)


def _read(status: int, headers: Any, content: bytes) -> tuple[str | None, str | None, str | None]:
    """Return fault, version and label of an answer; of one that is whole the fault is None."""
    version = headers["X-Model-Version"]
    if status != 200:
        return f"status {status}", version, None
    try:
        body = json.loads(content)
        told, label = body["model_version"], body["label"]
    except (ValueError, KeyError, TypeError):
        return "an answer that is no prediction", version, None
    return (None if told == version else f"an answer of two versions ({version} and {told})"), version, label


def load(url: str, image: bytes, concurrency: int, stopped: Callable[[], bool]) -> list[Asked]:
    """Ask from several clients at once until `stopped`; return all requests in the order in which they ended."""
    shared = Load(url, image)
    clients = [
        threading.Thread(target=shared.client, kwargs={"keep": bool(i % 2), "stopped": stopped}, daemon=True)
        for i in range(concurrency)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return sorted(shared.asked, key=lambda asked: asked.end)


def summarize(asked: Sequence[Asked]) -> dict[str, Any]:
    """Count. Times are seconds since the start, latencies ms."""
    good = [request for request in asked if request.fault is None]
    latencies = np.array([(request.end - request.start) * 1000 for request in good] or [0.0])
    names = list(dict.fromkeys(request.version for request in good))
    changes, stray = switches(good)
    return {
        "requests": len(asked),
        "ok": len(good),
        "failed": dict(Counter(request.fault for request in asked if request.fault)),
        "versions": [_version(name, [request for request in good if request.version == name]) for name in names],
        "switches": changes,
        "stray": stray,
        "latency_ms": {f"p{p}": round(float(np.percentile(latencies, p)), 2) for p in (50, 95, 99, 100)},
    }


def _version(name: str | None, answers: Sequence[Asked]) -> dict[str, Any]:
    return {
        "version": name,
        "answers": len(answers),
        "over_new_connections": sum(not request.kept for request in answers),
        "first": round(min(request.end for request in answers), 3),
        "last": round(max(request.end for request in answers), 3),
        "labels": sorted({str(request.label) for request in answers}),
    }


def switches(good: Sequence[Asked]) -> tuple[list[dict[str, Any]], int]:
    """Return each change of version that new connections met, and how many of them met another one where none changed.

    A switch is there when a version answers that did not just before, and half a second later most new connections meet it.
    `mixed_ms` is for how long connections that were opened after its first one still met the old version.
    """
    fresh = sorted((request for request in good if not request.kept), key=lambda request: request.start)
    found: list[dict[str, Any]] = []
    stray = 0
    for request in fresh:
        now = found[-1] if found else None
        if now and request.version == now["to"]:
            continue
        since = request.start - now["at"] if now else 0.0
        if now and since <= _SWITCH and request.version == now["from"]:
            now["mixed_ms"] = round(since * 1000, 1)
        elif now is None or _stays(request, fresh):
            before = now["to"] if now else None
            found.append({"at": round(request.start, 3), "from": before, "to": request.version, "mixed_ms": 0.0})
        else:
            stray += 1
    return found[1:], stray


def _stays(first: Asked, fresh: Sequence[Asked]) -> bool:
    after = [request for request in fresh if first.start + _SWITCH < request.start < first.start + 3 * _SWITCH]
    return sum(request.version == first.version for request in after) >= 0.5 * len(after)


def show(found: dict[str, Any]) -> str:
    """Lay it out for a person."""
    header = ["version", "answers", "over new connections", "first s", "last s", "labels"]
    rows = [[*list(entry.values())[:5], " ".join(entry["labels"])] for entry in found["versions"]]
    latency = ", ".join(f"{name} {value}" for name, value in found["latency_ms"].items())
    failed = ", ".join(f"{count} x {kind}" for kind, count in found["failed"].items()) or "none"
    lines = [f"{found['requests']} requests, {found['ok']} ok", f"failed: {failed}", f"out of their time: {found['stray']}"]
    lines += [f"at {s['at']:.3f} s: {s['from']} -> {s['to']}, mixed for {s['mixed_ms']} ms" for s in found["switches"]]
    return "\n".join([*lines, f"latency ms: {latency}", table(header, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Load a service while it is deployed.")
    parser.add_argument("url", help="of the proxy")
    parser.add_argument("image", type=Path, help="an image file to ask for")
    parser.add_argument("--concurrency", type=int, default=8, help="clients at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, where no command is given")
    parser.add_argument("--json", type=Path, help="a file to write the numbers into")
    parser.epilog = "After -- a command may follow; then the load lasts for as long as that runs."
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    args, line = parser.parse_args(given[:cut]), given[cut + 1 :]
    image = args.image.read_bytes()
    command = subprocess.Popen(line) if line else None
    until = time.monotonic() + args.seconds
    stopped = (lambda: command.poll() is not None) if command else (lambda: time.monotonic() > until)
    found = summarize(load(args.url, image, args.concurrency, stopped))
    if command:
        found["command"] = {"line": line, "exit_status": command.returncode}
    if args.json:
        write_json(args.json, found)
    print(show(found))
    wrong = found["requests"] - found["ok"] + found["stray"]
    if wrong or not found["ok"]:
        raise UserError(f"{wrong} of {found['requests']} requests went wrong: see the table above for when and how")
