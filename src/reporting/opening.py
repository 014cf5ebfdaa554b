"""What a report begins with: the verdict in one line, why, and what a reader must know before the numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

from src.reporting import changes, words
from src.reporting.document import (
    Alert,
    Block,
    Bold,
    Bullets,
    Code,
    Line,
    Link,
    Listing,
    Mark,
    Paragraph,
    Section,
    Table,
    last_lines,
    table,
)
from src.reporting.drawing import Drawn
from src.reporting.facts import STAGES, Facts, Json

_REASONS = 12
_STOPPED = {
    "data": "the data could not be fetched",
    "params": "params.yaml cannot be used",
    "pipeline": "the pipeline did not start",
    "review": "the merge asks for another model than the one that was reviewed",
    "prepare": "the data could not be prepared",
    "validate": "the checks of the data stopped",
    "train": "training stopped, there is no new model",
    "evaluate": "the evaluation stopped, the model is not judged",
}
_FAULTS = 15
_LABELS = (
    ("override", "overridden", "accepted this result by hand"),
    ("engine_reviewed", "engine reviewed", "read the protected files and accepted them"),
)
_NO_MAIN = {  # by whether main never had a model; None: an earlier comparison does not say
    True: "and main never had a model to compare with",
    False: "not compared: main's model could not be had",
    None: "with no model of main to compare with",
}
_FLOORS = ("accuracy", "macro_f1", "baseline_margin", "worst_class", "worst_slice")
_LEAKS = ("leakage", "near_duplicates", "group_leakage")
_CLEAR = 5  # examples: fewer, all to one side, are within chance by an exact test (0.5**5 < 0.05 < 0.5**4)


def headline(facts: Facts) -> Line:
    """Return the verdict and its main number, or what stopped the run."""
    stopped = _STOPPED.get(facts.failed, f"{facts.failed} stopped") if facts.failed else ""
    told = _bad_data(facts) or stopped or _numbers(facts)
    verdict = str(facts.verdict["verdict"])
    given = [f", {did} by {label.get('by')}" for key, did, _ in _LABELS if (label := facts.verdict.get(key))]
    by = "".join(given) if verdict != "pass" else ""
    return (Mark(verdict), f"{by}{_decided(facts)}: {told}")


def _decided(facts: Facts) -> str:
    """Name the gates that decided where the comparison with main, whose numbers follow, is none of them."""
    verdict = facts.verdict["verdict"]
    decided = [
        str(gate["name"])
        for gate in facts.verdict["gates"]
        if gate.get("level") == "enforce" and gate.get("outcome") == verdict
    ]
    if verdict == "pass" or not decided or {"no_worse_than_main", "pipeline"} & set(decided) or _bad_data(facts):
        return ""
    return f" ({words.listed([name.replace('_', ' ') for name in decided], 3)})"


def _bad_data(facts: Facts) -> str:
    errors = [finding for finding in findings(facts) if finding.get("level") == "error"]
    return f"the data failed {words.count(len(errors), 'check')}, nothing was trained" if errors else ""


def _numbers(facts: Facts) -> str:
    total = facts.this.metrics.get("accuracy")
    if total is None:
        return "there are no results to judge"
    if facts.base.get("example"):
        return f"accuracy {words.percent(total)}; {facts.base['why']}, so floors and data checks alone decided"
    if not facts.has_main:
        return f"accuracy {words.percent(total)}, {_NO_MAIN[facts.base.get('never')]}"
    main, this = facts.compared("accuracy")
    if main is None or this is None:
        return f"accuracy {words.percent(total)}, of classes that main does not know"
    told = f"accuracy {words.percent(this)} against {words.percent(main)} of main"
    told += " on the classes that both know" if facts.labels_added else ""
    gate, difference = gate_of(facts, "no_worse_than_main"), words.points(this - main)
    if gate.get("low") is None or gate.get("high") is None:
        return f"{told} ({difference})"
    low, high = (words.signed(gate[key] * 100) for key in ("low", "high"))
    interval = f"{level(gate)}interval {low} to {high}"
    if over := pooled(facts):
        told += f"; over {over} {words.side(gate.get('difference'), words.points)} ({interval})"
        return f"no difference shown, {told}" if gate["low"] <= 0 <= gate["high"] else told
    if not gate["low"] <= 0 <= gate["high"]:
        return f"{told} ({difference}, {interval})"
    found = changes.answers(*facts.answers) if facts.has_answers else None
    more = f" ({len(found[1]) - len(found[0]):+,} of {words.count(len(facts.answers[1]), 'example')})" if found else ""
    return f"no difference shown{more}, {told}, {interval}"


def pooled(facts: Facts) -> str:
    """Name the examples that main was compared on where they are more than the test split: the difference is another one."""
    found = facts.verdict.get("evidence") or {}
    if found.get("kind", "test") == "test":
        return ""
    return f"{words.count(int(found['examples']), 'example')} of test split and {found['kind']}"


def gate_of(facts: Facts, name: str) -> Json:
    """Return the verdict's gate of that name; empty where it is off."""
    return next((gate for gate in facts.verdict["gates"] if gate.get("name") == name), {})


def value_and_limit(gate: Json) -> tuple[Any, Any]:
    """Return what a gate compares: the difference from another model where its limit is one of the difference."""
    name = str(gate["name"])
    of_difference = name == "log_loss" or name.startswith("no_worse_than_")
    return gate.get("difference" if of_difference else "value"), gate.get("limit")


def findings(facts: Facts) -> list[Json]:
    """Return what the checks of the data found."""
    found = facts.validation.get("findings", [])
    return [finding for finding in found if isinstance(finding, dict)]


def level(gate: Json) -> str:
    """Return the level of a gate's interval, such as "90.8% ", or nothing where it has none."""
    return f"{gate['confidence'] * 100:.3g}% " if gate.get("confidence") else ""


def confidence(facts: Facts) -> str:
    """Return the level of the intervals of metrics.json, such as 95%."""
    try:
        return f"{float(facts.this.params.get('evaluate.confidence', '0.95')):.0%}"
    except ValueError:
        return "95%"


def head(facts: Facts) -> tuple[Block, ...]:
    """Return the reasons, warnings and where it ran."""
    reasons = [str(reason) for reason in facts.verdict["reasons"]]
    rest = [f"and {len(reasons) - _REASONS} more: see the gates below"] if len(reasons) > _REASONS else []
    names = {gate.get("sentence"): str(gate["name"]).replace("_", " ") for gate in reversed(facts.verdict["gates"])}
    lines: list[Line] = [
        (Bold(names[reason]), f": {reason}") if names.get(reason) else reason for reason in reasons[:_REASONS]
    ]
    lines += rest
    notable = (_way_out, _floors, _retrained, _classes, _test_set, _leaks, _disagreements, _anchor)
    lines += [line for lines_of in notable for line in lines_of(facts)]
    blocks: list[Block] = [Bullets(tuple(lines))] if lines else []
    blocks += [block for key, _, said in _LABELS if (block := _label(facts, key, said))]
    notes = (_evidence, _stale, _judging, _budget, _lane, _no_baseline, _not_trained, _pictures)
    blocks += [block for note in notes if (block := note(facts))]
    return (*blocks, _where(facts))


def _way_out(facts: Facts) -> Iterator[Line]:
    said = (facts.verdict.get("evidence") or {}).get("way_out")
    if said and facts.verdict["verdict"] != "pass":
        yield (Bold("what would settle the accuracy"), f": {said}")


def _floors(facts: Facts) -> Iterator[Line]:
    """Yield what to do about a floor that is not held."""
    if any("floor" in str(gate_of(facts, name).get("sentence")) and _is_told(facts, name) for name in _FLOORS):
        whose = "here still the template's, made for its digits" if facts.base.get("example") else "your team's bar"
        advice = "train longer, or add images of the classes that are weak; make suggest looks at your data"
        yield (Bold("what to do"), f": {advice}. The floors stand in section gates of params.yaml, {whose}")


def _retrained(facts: Facts) -> Iterator[Line]:
    if said := facts.base.get("retrained"):
        yield (Bold("main was trained again"), f": {said}")


def _anchor(facts: Facts) -> Iterator[Line]:
    """Yield the comparison with the best model so far where it does not pass and is no reason: its level may be warn."""
    gate = gate_of(facts, "no_worse_than_anchor")
    if gate.get("outcome") in ("fail", "investigate") and not _is_told(facts, "no_worse_than_anchor"):
        yield (Bold("no worse than anchor"), f": {gate.get('sentence')}")


def _classes(facts: Facts) -> Iterator[Line]:
    added, gone = facts.labels_added, [str(label) for label in facts.base.get("labels_gone") or []]
    if added:
        main, this = facts.compared("accuracy")
        total = words.side(facts.this.metrics.get("accuracy"), words.percent)
        sentence = f": {words.listed(added)}. Main never saw {'it' if len(added) == 1 else 'them'}. "
        sentence += f"Accuracy over all classes {total}"
        if main is not None and this is not None:
            sentence += f", over those that both know {words.percent(this)} against {words.percent(main)} of main"
        yield (Bold(f"{words.count(len(added), 'class', 'classes')} added"), f"{sentence}.")
    if gone and not _is_told(facts, "test_set"):
        yield (Bold(f"{words.count(len(gone), 'class', 'classes')} gone or renamed"), f": {words.listed(gone)}.")


def _test_set(facts: Facts) -> Iterator[Line]:
    """Yield what is another test set than main's, where its gate has not said so."""
    if _is_told(facts, "test_set"):
        return
    left, relabelled = (facts.base.get(key) or {} for key in ("left_test", "relabelled"))

    def such_as(found: Json) -> str:
        names = [str(name) for name in found.get("names") or []]
        return f": {', '.join(names)}{' and more' if found['examples'] > len(names) else ''}." if names else "."

    if left.get("examples"):
        had = f"{left['main_right']:,} of them right" if isinstance(left.get("main_right"), int) else "not answered them"
        lead = f"{left['examples']:,} of {words.count(left['of'], 'image')} left main's test split"
        yield (Bold(lead), f" (main had {had}){such_as(left)}")
    if relabelled.get("examples"):
        lead = f"{words.count(relabelled['examples'], 'test image')} relabelled"
        yield (Bold(lead), f" since main{such_as(relabelled)}")


def _leaks(facts: Facts) -> Iterator[Line]:
    for finding in findings(facts):
        if finding.get("check") in _LEAKS and finding.get("level") != "error":
            sentence = f": {finding.get('message')}. The test accuracy may be too good."
            yield (Bold(str(finding["check"]).replace("_", " ")), sentence)


def _disagreements(facts: Facts) -> Iterator[Line]:
    """Yield what clearly points the other way than the accuracy on the test split."""
    main, this = facts.compared("accuracy")
    if not facts.has_main or main is None or this is None:
        return
    then, now = (side.kept_epoch.get("validation_accuracy") for side in (facts.main, facts.this))
    images = changes.same_images(facts.main.rows, facts.this.rows, "validation")
    try:
        margin = float(facts.this.params.get("gates.max_accuracy_drop", "0.01"))
    except ValueError:
        margin = 0.01

    def is_clear(difference: float) -> bool:
        """True for more examples than chance explains, and more points than count as no worse."""
        return abs(difference) > margin and round(abs(difference) * images) >= _CLEAR

    if then is not None and now is not None and is_clear(now - then) and (now - then) * (this - main) <= 0:
        moved = (
            f"{words.percent(now)} against {words.percent(then)} of main, {round((now - then) * images):+,} of {images:,}"
        )
        yield (Bold("validation disagrees"), f": accuracy {moved} examples ({words.points(now - then)}).")
    gate = gate_of(facts, "log_loss")
    low, high = gate.get("low"), gate.get("high")
    if low is None or high is None or _is_told(facts, "log_loss"):
        return
    if (low > 0 and this >= main) or (high < 0 and this < main):
        yield (Bold("test log loss disagrees"), f": {gate.get('sentence')}")


def _evidence(facts: Facts) -> Block | None:
    """Say what the verdict rests on, and how much that can show."""
    found = facts.verdict.get("evidence") or {}
    if not found.get("examples"):
        return None
    of_test = f"{words.count(int(found['examples']), 'example')} of the test split"
    sentences = [f"evidence: {pooled(facts) or of_test}"]
    if found.get("vouches_for") is not None:
        sentences.append(f"these examples can vouch for differences of {abs(found['vouches_for']) * 100:.2f} points")
    sure = gate_of(facts, "no_worse_than_main").get("confidence")
    if sure:
        sentences.append(
            f"to pass is a one-sided test at {(1 - sure) / 2 * 100:.3g}%, which the {sure * 100:.3g}% interval agrees with"
        )
    sentences += [str(found[key]) for key in ("looks", "models_judged") if found.get(key)]
    return Paragraph(" ".join(f"{one[:1].upper()}{one[1:].rstrip('.')}." for one in sentences))


def _label(facts: Facts, key: str, said: str) -> Block | None:
    given = facts.verdict.get(key)
    if not given:
        return None
    at = f" at {given['at']}." if given.get("at") else "."
    return Alert("warning", (Bold(str(given.get("by"))), f" {said} with the label ", Code(str(given.get("label"))), at))


def _stale(facts: Facts) -> Block | None:
    behind, moved = int(facts.base.get("behind") or 0), [str(path) for path in facts.base.get("moved_inputs") or []]
    if not behind:
        return None
    ahead = f"main is {words.count(behind, 'commit')} ahead of where this branch left it"
    if not moved:
        return Paragraph(f"{ahead.capitalize()}; none of it touches what the model depends on.")
    ref = str(facts.base.get("ref") or "origin/main")
    named = "" if _is_told(facts, "stale_base") else f": {words.listed(moved)}"
    parts = (
        f"{ahead.capitalize()} and has changed what the model depends on{named}. ",
        "What is judged here is not what a merge would give. Bring the branch up to date and push: ",
        Code("make update" if ref == "origin/main" else f"make update BASE={ref}"),
    )
    return Alert("warning", parts)


def _judging(facts: Facts) -> Block | None:
    changed, first = ([str(name) for name in facts.base.get(key) or []] for key in ("judging_changed", "first_rules"))
    if first:
        return Paragraph(f"Judged by this pull request's own {words.listed(first)}: those of main are the template's.")
    if not changed or _is_told(facts, "judging"):
        return None
    said = f"This pull request also touches the engine: {words.listed(changed)}."
    return Alert("warning", f"{said} Both models were judged by its rules; a person must read that and agree.")


def _budget(facts: Facts) -> Block | None:
    budget = facts.run.get("budget")
    if not budget or _is_told(facts, "budget"):
        return None
    used = f"Trained with a small budget: {budget.get('epochs')} of {budget.get('asked')} epochs."
    return Alert("note", f"{used} It is a preview, not the model that params.yaml asks for.")


def _lane(facts: Facts) -> Block | None:
    lane = facts.run.get("lane") or {}
    if lane.get("comparable", True):
        return None
    said = "Times, latency and cost were measured there and are not comparable with those of the machine that serves."
    return Alert("note", (Bold(f"Lane {lane.get('name')}: not comparable where the hardware matters."), f" {said}"))


def _no_baseline(facts: Facts) -> Block | None:
    why = str(facts.base.get("why") or "")
    if facts.has_main or not facts.this.metrics or (why and any(why in str(reason) for reason in facts.verdict["reasons"])):
        return None
    if facts.base.get("never") is False:
        return Alert("warning", f"Main's model could not be had: {why or 'no reason given'}. It was compared with nothing.")
    said = "Main never had a model" if facts.base.get("never") else "There is no model of main"
    return Alert("note", f"{said} to compare with{f' ({why})' if why else ''}: only the absolute gates were applied.")


def _not_trained(facts: Facts) -> Block | None:
    training = facts.training
    if facts.failed or training.get("here"):
        return None
    said = (
        "Nothing the model depends on differs from a run that is recorded: the model was restored, not trained in this run."
    )
    if not training:
        return Paragraph(f"{said} Where and when it was trained is not known here.")
    took = f" in {words.duration(training['seconds'])}."
    if training.get("commit"):
        return Paragraph((f"{said} It was trained at commit ", Code(training["commit"][:10]), took))
    return Paragraph((f"{said} It was trained in an earlier run, until ", Code(training["ended"]), f",{took}"))


def _pictures(facts: Facts) -> Block | None:
    if facts.pictures == "all":
        return None
    said = "No picture shows an example of the data" if facts.pictures == "charts" else "There are no pictures"
    return Paragraph((f"{said}: ", Code("report.pictures"), " of ", Code("params.yaml"), f" is {facts.pictures}."))


def _is_told(facts: Facts, gate: str) -> bool:
    """True when the reasons already hold that gate's sentence."""
    found = gate_of(facts, gate)
    return bool(found) and found.get("sentence") in facts.verdict["reasons"]


def _where(facts: Facts) -> Block:
    lane = (facts.run.get("lane") or {}).get("name") or "an unnamed lane"
    parts: Line = ("Commit ", Code(facts.at.commit[:10]), f", {lane}, {hardware(facts.run.get('hardware') or {})}")
    return Paragraph((*parts, ", ", Link("the run", facts.at.run_url)) if facts.at.run_url else parts)


def hardware(found: Mapping[str, Any]) -> str:
    """Name a machine: accelerator, processor, cores, memory, as far as they are known."""
    told = [str(found[key]) for key in ("accelerator", "processor") if found.get(key)]
    if isinstance(found.get("cores"), int):
        told.append(words.count(found["cores"], "core"))
    if isinstance(found.get("memory_gib"), int | float):
        told.append(f"{found['memory_gib']:.1f} GiB")
    return ", ".join(told) or "hardware unknown"


def stopped(facts: Facts, drawn: Drawn) -> list[Section]:
    """Return what a reader has to mend, where the pipeline did not come to its end."""
    if _bad_data(facts):
        return [_findings(facts, drawn)]
    told = facts.failed in STAGES or facts.run.get("said")
    return [_crash(facts)] if facts.failed and told else []


def _findings(facts: Facts, drawn: Drawn) -> Section:
    advice = (
        "Mend the files under ", Code("data/"), " (then ", Code("dvc add data"), " and ", Code("dvc push"),
        ") or, where the data are as they should be, the limit or level in section ", Code("validate"), " of ",
        Code("params.yaml"), ".",
    )  # fmt: skip
    blocks: list[Block] = [findings_table(findings(facts)), Paragraph(advice)]
    faults = facts.validation.get("faults") or {}
    if faults.get("count"):
        files = [file for file in faults.get("files") or [] if isinstance(file, dict)]
        rows = [
            ((Code(words.place(str(file.get("path")), int(file.get("row", -1)))),), str(file.get("fault"))) for file in files
        ]
        shown = table(("file", "fault"), rows, "ll", _FAULTS, "out/validation.json", total=int(faults["count"]))
        blocks += [Paragraph("Files that could not be used:"), shown]
    return Section("What is wrong with the data", (*blocks, *[drawn[name] for name in ("profile",) if name in drawn]))


def findings_table(found: list[Json]) -> Table:
    """Return findings with the first files of each."""
    rows: list[tuple[Line, ...]] = []
    for finding in found:
        level = str(finding.get("level"))
        files = [str(file) for file in finding.get("files") or []][:3]
        names = [part for file in files for part in (", ", Code(file))][1:]
        rest = int(finding.get("count") or 0) - len(files)
        shown = (*names, f" and {rest:,} more" if rest > 0 else "") if files else words.NONE
        mark: Line = (Bold(level),) if level == "error" else level
        rows.append((mark, (Code(str(finding.get("check"))),), str(finding.get("message")), shown))
    return table(("level", "check", "finding", "examples"), rows, "llll", 20, "out/validation.json")


def _crash(facts: Facts) -> Section:
    stage, said = str(facts.failed), last_lines(str(facts.run.get("said") or ""))
    last = " stopped before it was done. The last it printed:" if said else " stopped and said nothing."
    blocks: tuple[Block, ...] = (
        Paragraph((Bold(stage), last)),
        *([Listing(said)] if said else []),
        Paragraph("To see it on your machine, then mend it and push:"),
        Listing(f"git checkout {facts.at.commit}\nmake reproduce", "sh"),
    )
    return Section(f"What stopped: {stage}", blocks)
