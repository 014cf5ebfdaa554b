"""Load on one server: by wrk where it is installed, which takes least of the cores it shares, else by our own client.

Our own is one process with a thread for each connection: it takes more of the cores, so read ratios. Each connection is kept
open and sends the next file as soon as it has its answer; what is under way at the end is not counted.
"""

import http.client
import json
import multiprocessing
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from src.core.command import UserError

_PATIENCE = 120  # seconds that a client may take longer than it should
_ATTEMPTS = 100  # connections that may fail before the server counts as gone

# https://github.com/wg/wrk/blob/master/SCRIPTING: percentiles are exact, in microseconds; status counts what is over 399
_SCRIPT = """
local requests, turn = {}, 0
function init(args)
  for number = 2, #args do
    local file = assert(io.open(args[number], "rb"))
    requests[number - 1] = wrk.format("POST", nil, {["Content-Type"] = args[1]}, file:read("*a"))
    file:close()
  end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
function done(summary, latency)
  local failed, text = summary.errors, '{"requests": %d, "seconds": %f, "p50_ms": %f, "p95_ms": %f, "p99_ms": %f, '
  text = text .. '"failures": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}'
  local p50, p95, p99 = latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000
  io.write("\\n" .. string.format(text, summary.requests, summary.duration / 1e6, p50, p95, p99, failed.connect,
    failed.read, failed.write, failed.status, failed.timeout) .. "\\n")
end
"""


class Load(NamedTuple):
    """What came of it: answers, the seconds they took, latencies in ms (None without any answer), failures by kind."""

    requests: int
    seconds: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    failures: dict[str, int]


def generator() -> str:
    """Name what makes the load."""
    return "wrk" if shutil.which("wrk") else "own client (wrk is not installed)"


def put(url: str, media: str, files: Sequence[Path], connections: int, seconds: int) -> Load:
    """Ask from so many connections, each with one request at a time.

    Args:
        url: where to POST.
        media: Content-Type of the bodies.
        files: the bodies, sent in turns.
        connections: at once, kept open.
        seconds: for how long.

    Raises:
        UserError: the client failed, because the server answers nothing for instance.
    """
    try:
        if wrk := shutil.which("wrk"):
            return _by_wrk(wrk, url, media, files, connections, seconds)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply_async(_by_own_client, (url, media, files, connections, seconds)).get(seconds + _PATIENCE)
    except (subprocess.TimeoutExpired, multiprocessing.TimeoutError):
        raise UserError("the load did not end in time: look whether this machine is overloaded") from None
    except (ValueError, OSError) as error:
        raise UserError(f"no load could be put on {url} ({str(error)[:200]}): look at the log of that server") from None


def _by_wrk(wrk: str, url: str, media: str, files: Sequence[Path], connections: int, seconds: int) -> Load:
    script = files[0].parent / "load.lua"
    script.write_text(_SCRIPT)
    command = [wrk, "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{_PATIENCE}s", "--script", str(script), url, "--", media, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + _PATIENCE)
    last = (done.stdout.strip() or done.stderr.strip() or "nothing said").splitlines()[-1]
    try:
        told: dict[str, Any] = json.loads(last.replace("-nan", "null").replace("nan", "null"))
    except ValueError:
        raise ValueError((done.stderr.strip() or last).splitlines()[-1]) from None
    failures = {kind: count for kind, count in told.pop("failures").items() if count}
    if not told["requests"]:
        told |= {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    return Load(**told, failures=failures)


def _by_own_client(url: str, media: str, files: Sequence[Path], connections: int, seconds: int) -> Load:
    """Ask from a thread for each connection; of the requests under way at the end none is counted."""
    place, bodies, began = urlsplit(url), [file.read_bytes() for file in files], time.perf_counter()
    latencies: list[float] = []
    failures: Counter[str] = Counter()

    def ask(first: int) -> None:
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=_PATIENCE)
        for body in islice(cycle(bodies), first, None):
            sent = time.perf_counter()
            try:
                connection.request("POST", place.path, body, {"Content-Type": media})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                failures[str(error)] += 1
                connection.close()
                if failures.total() > _ATTEMPTS and not latencies:
                    return
                continue
            if (now := time.perf_counter()) > began + seconds:
                return
            latencies.append(now - sent)
            if answer.status != 200:
                failures[f"status {answer.status}"] += 1

    with ThreadPoolExecutor(connections) as threads:
        list(threads.map(ask, range(connections)))
    if not latencies:
        raise ConnectionError(f"it answers nothing: {failures.most_common(1)[0][0]}")
    p50, p95, p99 = (float(value) for value in np.percentile(np.array(latencies) * 1000, (50, 95, 99)))
    return Load(len(latencies), float(seconds), p50, p95, p99, dict(failures))
