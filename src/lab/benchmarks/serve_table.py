"""What a benchmark of the service says to a person: a table in Markdown, a picture, a line a promise."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.core import pictures
from src.lab.benchmarks.serve_results import BENTOML, MAIN, OURS, TEXTBOOK

Json = dict[str, Any]

TITLES = {
    OURS: "this service",
    MAIN: "main's service",
    TEXTBOOK: "textbook: FastAPI, JSON lists",
    BENTOML: "BentoML's own image endpoint",
}
_COLOURS = {OURS: pictures.BLUE, MAIN: "#9ec1e4", TEXTBOOK: pictures.ORANGE, BENTOML: pictures.GREY}
HEADER = (
    "server", "connections", "requests/s", "p50 ms", "p95 ms", "p99 ms", "failed", "of raw", "this / it", "MiB",
)  # fmt: skip


def rows(found: Json) -> Iterable[list[str]]:
    """Yield the cells of a server at a concurrency, one row each."""
    for name, server in found["servers"].items():
        for connections, at in server["at"].items():
            ratio = found["ratios"][OURS].get(name, {}).get(connections)
            yield [
                TITLES[name],
                connections,
                _spread(at["per_second"], "{:,.0f}"),
                *(_number(at[f"p{percentile}_ms"]) for percentile in (50, 95, 99)),
                f"{at['failed'] + at['wrong']:,} of {at['requests'] + at['checked']:,}",
                f"{at['share_of_raw']['median']:.0%}",
                _spread(ratio, "{:.1f}") if ratio else "",
                f"{server['memory_mib']:,.0f}",
            ]


def _spread(told: Json, form: str) -> str:
    """Write a median, with the lowest and highest of the rounds where there were several."""
    middle, low, high = (form.format(told[key]) for key in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def about(found: Json) -> str:
    """Return in one sentence what was measured, and where."""
    model, upload, machine = found["model"], found["upload"], found["hardware"]
    height, width, channels = model["input"]
    return (
        f"{model['network']}, {height}x{width}x{channels}, {model['precision']}; uploads: {upload['format'].upper()} of "
        f"{upload['side']}x{upload['side']}, {upload['bytes']:,} bytes; {machine['processor'] or machine['machine']}, "
        f"{machine['cores']} cores; load by {found['load']}; {found['rounds']} rounds of {found['seconds']} s."
    )


def notes(found: Json) -> list[str]:
    """Return what the table does not hold."""
    raw, added = found["raw"], found["servers"][OURS]["added_ms"]
    alone = _spread(raw["images_per_second"], "{:,.0f}")
    said = [
        f"Raw: decode and session.run reach {alone} images/s ({raw['best']}); one takes {raw['p50_ms']['median']:.3g} ms."
    ]
    if added:
        said.append(f"The service adds {_spread(added, '{:.2f}')} ms to that at p50, at concurrency 1.")
    if found["base"]["why"]:
        said.append(f"There is no figure of main: {found['base']['why']}.")
    return said


def promises(found: Json) -> list[str]:
    """Return a line for each goal: what was measured, and whether it holds."""
    words = {True: "holds", False: "does not hold", None: "not measured"}
    lines = []
    for goal in found["must_hold"]:
        sign = ">=" if goal["at_least"] else "<="
        value = "-" if goal["value"] is None else f"{goal['value']:.3g}"
        lines.append(f"{words[goal['holds']]}: {goal['what']}: {value} (wanted {sign} {goal['limit']:g})")
    return lines


def markdown(found: Json) -> str:
    """Return it all as a Markdown file."""
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *rows(found)]
    drawn = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    listed = "\n".join(f"- {line}" for line in (*notes(found), *promises(found)))
    return f"# The service, measured\n\n{about(found)}\n\n{drawn}\n\n{listed}\n\n![Throughput and latency](serve.png)\n"


def draw(path: Path, found: Json) -> None:
    """Draw throughput and latency (p50 to p99) of each server at each concurrency."""
    made = pictures.figure(11, 4.2)
    throughput, latency = made.subplots(1, 2)
    names, groups = list(found["servers"]), list(next(iter(found["servers"].values()))["at"])
    width, highest = 0.8 / len(names), [0.0]
    for position, name in enumerate(names):
        at = found["servers"][name]["at"]
        places = [group + (position - (len(names) - 1) / 2) * width for group in range(len(groups))]
        rates = [at[group]["per_second"] for group in groups]
        spreads = [[one["median"] - one["low"] for one in rates], [one["high"] - one["median"] for one in rates]]
        heights = [one["median"] for one in rates]
        highest += [one["high"] for one in rates]
        throughput.bar(places, heights, width, yerr=spreads, color=_COLOURS[name], label=TITLES[name], capsize=2)
        known = [(place, at[group]) for place, group in zip(places, groups, strict=True) if at[group]["p50_ms"]]
        low, high = ([entry[key] for _, entry in known] for key in ("p50_ms", "p99_ms"))
        latency.vlines([place for place, _ in known], low, high, color=_COLOURS[name], linewidth=5)
        latency.plot([place for place, _ in known], low, "_", color="black", markersize=9)
    raw = found["raw"]["images_per_second"]["median"]
    throughput.axhline(raw, color=pictures.RED, linestyle="--", label="decode and session.run alone")
    throughput.set(title="Requests a second", xlabel="connections", ylim=(0, 1.35 * max(raw, *highest)))
    throughput.legend(fontsize=8, loc="upper left", ncols=2)
    latency.set(title="Latency in ms: p50 (mark) to p99", xlabel="connections", yscale="log")
    for axes in (throughput, latency):
        axes.set_xticks(range(len(groups)), groups)
    pictures.save(made, path)
