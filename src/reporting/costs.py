"""What the model takes and where it comes from: latency, size, time, money, digests, how to make it again."""

import numpy as np

from src.reporting import words
from src.reporting.document import Block, Code, Fold, Line, Link, Listing, Paragraph, Section, table
from src.reporting.facts import STAGES, Facts, Json
from src.reporting.opening import hardware

_FELT_MS = 1.0  # nobody feels less


def sections(facts: Facts) -> list[Section]:
    """Return what there is to say of serving, of training and of lineage."""
    return [*_serving(facts), *_training(facts), *_lineage(facts)]


def _serving(facts: Facts) -> list[Section]:
    if not facts.this.metrics:
        return []
    main, this = facts.main, facts.this
    rows = [_latency(main.latency, this.latency, name) for name in ("p50", "p95", "p99") if name in this.latency]
    sizes = (main.metrics.get("model_bytes"), this.metrics.get("model_bytes"))
    rows.append((*_row("size of model.onnx", sizes, lambda size: words.mebibytes(size / 2**20)), ""))
    weights = (main.card.get("parameters"), this.card.get("parameters"))
    rows.append((*_row("weights in the network", weights, words.whole), ""))
    blocks: list[Block] = [table(("", "main", "this pull request", "difference", "reading"), rows, "lrrrl", 6)]
    if facts.this.latency:
        said = f"Latency of both through ONNX Runtime, in turns on one machine: {hardware(facts.timed_on)}."
        said += " A round is slower where its p95 is." if facts.main.latency.get("blocks") else ""
        comparable = (facts.run.get("lane") or {}).get("comparable", True)
        blocks.append(Paragraph(said if comparable else f"{said} Not comparable with the machine that serves."))
    return [Section("Latency and size", tuple(blocks))]


def _latency(main: Json, this: Json, name: str) -> tuple[Line, ...]:
    """Return the row of one percentile; only a difference that is felt and that the rounds agree on is told as a share."""
    row = _row(f"latency {name}, one image", (main.get(name), this[name]), words.milliseconds)

    def is_felt(name: str) -> bool:
        return name not in main or name not in this or abs(this[name] - main[name]) >= _FELT_MS

    reading, told = _rounds(main.get("blocks"), this.get("blocks"))
    if not is_felt("p95"):  # then p99 is that of a few requests
        reading, told = "noise, p95 differs by less than a millisecond", False
    if not is_felt(name):
        reading, told = "less than a millisecond", False
    return (*row, reading) if told else (*row[:3], str(row[3]).split(" (")[0], reading)


def _rounds(main: list[float] | None, this: list[float] | None) -> tuple[str, bool]:
    """Say in how many interleaved rounds this model was slower, and whether they agree: a busy machine makes them differ."""
    if not main or not this:
        return "", True
    ratios = np.array(this) / np.maximum(main, 1e-9)
    said = f"slower in {int((ratios > 1).sum())} of {words.count(len(ratios), 'round')}"
    low, high = np.quantile(ratios, [0.25, 0.75])
    return (said, True) if low > 1 or high < 1 else (f"noise, the rounds disagree: {said}", False)


def _row(name: str, sides: tuple[float | None, float | None], write: words.Writer) -> tuple[Line, ...]:
    main, this = sides
    difference = words.NONE
    if main is not None and this is not None:
        sign = "+" if this >= main else "-"
        share = f" ({words.signed(100 * (this - main) / main, 0)}%)" if main else ""
        difference = f"{sign}{write(abs(this - main))}{share}"
    return (name, words.side(main, write), words.side(this, write), difference)


def _training(facts: Facts) -> list[Section]:
    spent = {stage: facts.run["seconds"][stage] for stage in STAGES if stage in (facts.run.get("seconds") or {})}
    main = facts.base.get("main_run") or {}
    this = facts.training.get("seconds")
    if not spent and this is None:
        return []
    times = [words.side(seconds, words.duration) for seconds in (main.get("training_seconds"), this)]
    rows: list[tuple[Line, ...]] = [("training", *times)]
    rows += [(stage, words.NONE, words.duration(seconds)) for stage, seconds in spent.items() if stage != "train"]
    speeds = [side.get("throughput") or {} for side in (main, facts.training)]
    rows += _speed(speeds, facts.this.params.get("energy.price"))
    machines = [hardware(side["hardware"]) if side.get("hardware") else words.NONE for side in (main, facts.training)]
    rows.append(("trained on", *machines))
    shown = table(("", "main", "this pull request"), rows, "lrr", 12)
    return [Section("Training time and cost", (shown, _cost(facts, this)))]


def _speed(sides: list[Json], price: str | None) -> list[tuple[Line, ...]]:
    """Throughput, memory and energy, where either side has them; energy only where the machine counts it."""
    written: list[tuple[str, str, words.Writer]] = [
        ("threads of the CPU", "threads", words.whole),
        ("training images a second", "examples_per_second", words.whole),
        ("time waiting for data", "data_wait_share", words.percent),
        ("memory at most", "memory_gib", lambda size: f"{size:,.2f} GiB"),
        ("energy", "energy_kwh", lambda energy: f"{words.general(energy)} kWh"),
    ]
    try:
        each = float(price or "")
        written.append((f"cost of energy, at {price} a kWh", "energy_kwh", lambda energy: words.general(energy * each)))
    except ValueError:
        pass  # the price is null, or no number
    rows = [(name, *(words.side(side.get(key), write) for side in sides)) for name, key, write in written]
    return [row for row in rows if set(row[1:]) != {words.NONE}]


def _cost(facts: Facts, seconds: float | None) -> Paragraph:
    told = facts.at.hourly_cost
    if told is None:
        setting = Code("gh variable set HOURLY_COST --body 2.50")
        return Paragraph(("Cost: not known. The price of an hour of this runner makes an estimate of it: ", setting))
    try:
        price = float(told)
    except ValueError:
        return Paragraph(("Cost: not known, since the variable HOURLY_COST is no number: ", Code(told)))
    if seconds is None:
        return Paragraph("Cost: not known, since the model was trained in another run.")
    return Paragraph(
        f"Cost of training, estimated: {seconds / 3600 * price:.2f} ({words.duration(seconds)} at {price:.2f} an hour)."
    )


def _lineage(facts: Facts) -> list[Section]:
    main, this = _digests(facts.base.get("main_run") or {}), _digests(facts.lineage)
    this = {**this, "model": this.get("model") or facts.this.card.get("model_sha256")}
    named = [name for name in {**this, **main} if this.get(name)]
    blocks: list[Block] = []
    if named:
        short = [(name, *(_digest(side.get(name), 12) for side in (main, this))) for name in named]
        blocks.append(table(("digest of", "main", "this pull request"), short, "lll", 12))
        full = table(("digest of", "this pull request"), [(name, _digest(this[name])) for name in named], "ll", 12)
        blocks.append(Fold("Digests in full", (full,)))
    if facts.lineage:
        blocks.append(Paragraph((Code("manifest.json"), " lists the digest of every file that went in.")))
    if changed := facts.at.uncommitted:
        said = words.listed(list(changed))
        blocks.append(Paragraph(f"No commit has what this model was made of: commit {said}, then run make report again."))
    else:
        branch = f" pull/{facts.at.pull_request}/head" if facts.at.pull_request else ""
        commands = f"git fetch origin{branch}\ngit checkout {facts.at.commit}\nmake reproduce\nmake report"
        blocks += [Paragraph("To make this model again and see this report:"), Listing(commands, "sh")]
    if facts.at.run_url:
        blocks.append(Paragraph((Link("The run that made it", facts.at.run_url), " has report.html and all files.")))
    return [Section("Where it comes from", tuple(blocks))]


def _digests(lineage: Json) -> dict[str, str | None]:
    inputs, outputs = (lineage.get(key) or {} for key in ("inputs", "outputs"))
    environment = inputs.get("environment") or {}
    return {
        "data": (lineage.get("data") or {}).get("digest"),
        "all inputs (code, data, parameters, environment)": inputs.get("digest"),
        **{f"environment, {name}": value for name, value in list(environment.items())[:4]},
        "model": outputs.get("model_sha256"),
        "evaluation": outputs.get("evaluation_sha256"),
        "commit it was trained at": lineage.get("commit") if lineage.get("training_seconds") is not None else None,
    }


def _digest(digest: str | None, digits: int | None = None) -> Line:
    return (Code(str(digest)[:digits]),) if digest else words.NONE
