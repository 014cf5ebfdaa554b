"""What the model takes and where it comes from: latency, size, time, money, digests."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from src.reporting import words
from src.reporting.facts import STAGES, Facts, Latency
from src.reporting.results import Row
from src.system.judged import Lineage

_FELT_MS = 1.0  # nobody feels less


def serving(facts: Facts) -> list[Row]:
    """Return latency and size of both sides."""
    names = [name for name in ("p50", "p95", "p99") if getattr(facts.this.latency, name) is not None]
    rows = [_latency(facts.main.latency, facts.this.latency, name) for name in names]
    parameters = [side.card and side.card.parameters for side in (facts.main, facts.this)]
    rows.append(_row("size of model.onnx", facts.compared("model_bytes"), lambda size: words.mebibytes(size / 2**20)))
    return [*rows, _row("weights in the network", parameters, words.whole)]


def _latency(main: Latency, this: Latency, name: str) -> Row:
    """Return the row of one percentile; only a difference that is felt and that the rounds agree on is told as a share."""
    row = _row(f"latency {name}, one example", (getattr(main, name), getattr(this, name)), words.milliseconds)

    def is_felt(name: str) -> bool:
        then, now = getattr(main, name), getattr(this, name)
        return then is None or now is None or abs(now - then) >= _FELT_MS

    reading, told = "", True
    if main.blocks and this.blocks:  # in how many interleaved rounds this model was slower: a busy machine makes them differ
        ratios = np.array(this.blocks) / np.maximum(main.blocks, 1e-9)
        reading = f"slower in {int((ratios > 1).sum())} of {words.count(len(ratios), 'round')}"
        low, high = np.quantile(ratios, [0.25, 0.75])
        if not (low > 1 or high < 1):
            reading, told = f"noise, the rounds disagree: {reading}", False
    if not is_felt("p95"):  # then p99 is that of a few requests
        reading, told = "noise, p95 differs by less than a millisecond", False
    if not is_felt(name):
        reading, told = "less than a millisecond", False
    difference = row.difference if told or not row.difference else row.difference.split(" (")[0]
    return row._replace(difference=difference, reading=reading)


def _row(name: str, sides: Iterable[Any], write: words.Writer) -> Row:
    main, this = sides
    difference = None
    if main is not None and this is not None:
        share = f" ({words.signed(100 * (this - main) / main, 0)}%)" if main else ""
        difference = f"{'+' if this >= main else '-'}{write(abs(this - main))}{share}"
    return Row(name, words.written(main, write), words.written(this, write), difference)


def training(facts: Facts) -> list[tuple[str | None, ...]]:
    """Return times, throughput, memory and energy of both trainings; empty where nothing is known of this one."""
    spent, main, this = facts.run.seconds, facts.base.main_run, facts.training
    if not spent and this.seconds is None:
        return []
    rows: list[tuple[str | None, ...]] = [
        (
            "training",
            *(words.written(seconds, words.duration) for seconds in (main and main.training_seconds, this.seconds)),
        ),
        *((stage, None, words.duration(spent[stage])) for stage in STAGES if stage in spent and stage != "train"),
    ]
    written: list[tuple[str, str, words.Writer]] = [
        ("threads of the CPU", "threads", words.whole),
        ("training examples a second", "examples_per_second", words.whole),
        ("time waiting for data", "data_wait_share", words.percent),
        ("memory at most", "memory_gib", lambda size: f"{size:,.2f} GiB"),
        ("energy", "energy_kwh", lambda energy: f"{words.general(energy)} kWh"),
    ]
    speeds = main and main.throughput, this.throughput
    measured = ((name, *(words.written(getattr(side, key, None), write) for side in speeds)) for name, key, write in written)
    rows += [row for row in measured if row[1:] != (None, None)]
    machines = (words.machine(found) if found else None for found in (main and main.hardware, this.hardware))
    return [*rows, ("trained on", *machines)]


def digests(facts: Facts) -> list[tuple[str, str | None, str]]:
    """Return the digests of what went into both models and came out, those that this one has."""
    main, this = _digests(facts.base.main_run), _digests(facts.lineage)
    this["model"] = this.get("model") or (facts.this.card.model_sha256 if facts.this.card else None)
    return [(name, main.get(name), digest) for name, digest in this.items() if digest]


def _digests(lineage: Lineage | None) -> dict[str, str | None]:
    if lineage is None:
        return {}
    return {
        "data": lineage.data.digest,
        "all inputs (code, data, parameters, environment)": lineage.inputs.digest,
        **{f"environment, {name}": value for name, value in list(lineage.inputs.environment.items())[:4]},
        "model": lineage.outputs.model_sha256,
        "evaluation": lineage.outputs.evaluation_sha256,
        "commit it was trained at": lineage.commit if lineage.training_seconds is not None else None,
    }
