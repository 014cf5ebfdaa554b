"""Load on one server by wrk: each connection is kept open and sends the next file as soon as it has its answer."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src.core.command import UserError

_PATIENCE = 120  # seconds that a client may take longer than it should

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


def put(url: str, media: str, files: Sequence[Path], connections: int, seconds: int) -> Load:
    """Ask from so many connections, each with one request at a time.

    Args:
        url: where to POST.
        media: Content-Type of the bodies.
        files: the bodies, sent in turns.
        connections: at once, kept open.
        seconds: for how long.

    Raises:
        UserError: wrk is not installed, or failed, because the server answers nothing for instance.
    """
    if not (wrk := shutil.which("wrk")):
        raise UserError("the load is made by wrk, which is not installed: apt-get install wrk (or brew install wrk)")
    script = files[0].parent / "load.lua"
    script.write_text(_SCRIPT)
    command = [wrk, "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{_PATIENCE}s", "--script", str(script), url, "--", media, *map(str, files)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + _PATIENCE)
    except subprocess.TimeoutExpired:
        raise UserError("the load did not end in time: look whether this machine is overloaded") from None
    last = (done.stdout.strip() or done.stderr.strip() or "nothing said").splitlines()[-1]
    try:
        told: dict[str, Any] = json.loads(last.replace("-nan", "null").replace("nan", "null"))
    except ValueError:
        why = (done.stderr.strip() or last).splitlines()[-1]
        raise UserError(f"no load could be put on {url} ({why[:200]}): look at the log of that server") from None
    failures = {kind: count for kind, count in told.pop("failures").items() if count}
    if not told["requests"]:
        told |= {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    return Load(**told, failures=failures)
