"""What a report begins with: the verdict in one line, why, and what a reader must know before the numbers."""

from collections.abc import Iterator
from typing import Any

from src.reporting import changes, words
from src.reporting.facts import Facts, Finding
from src.system.judged import ExamplesLeft

_REASONS = 12
_SIGNS = {"pass": "✅", "fail": "❌", "investigate": "🔎"}
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
_LABELS = (
    ("override", "overridden", "accepted this result by hand"),
    ("engine_reviewed", "engine reviewed", "read the protected files and accepted them"),
)
_FLOORS = ("accuracy", "macro_f1", "baseline_margin", "worst_class", "worst_slice")
_LEAKS = ("leakage", "near_duplicates", "group_leakage")
_CLEAR = 5  # examples: fewer, all to one side, are within chance by an exact test (0.5**5 < 0.05 < 0.5**4)

Said = Iterator[tuple[str, str]]  # a lead or a kind of note, and a sentence, in which back-ticks enclose code


def view(facts: Facts) -> dict[str, Any]:
    """Return what the template `head` shows: the first line, the reasons and what else is notable, and notes."""
    verdict = facts.verdict.verdict
    stopped = _STOPPED.get(facts.failed, f"{facts.failed} stopped") if facts.failed else ""
    labels = [f", {did} by {label.by}" for key, did, _ in _LABELS if (label := getattr(facts.verdict, key))]
    told = f"{_decided(facts)}: {_bad_data(facts) or stopped or _numbers(facts)}"
    notable = (_reasons, _advice, _classes, _test_set, _leaks, _disagreements)
    return {
        "sign": _SIGNS.get(verdict, ""),
        "headline": "".join([verdict, *(labels if verdict != "pass" else []), told]),
        "lines": [line for lines in notable for line in lines(facts)],
        "notes": list(_notes(facts)),
    }


def _decided(facts: Facts) -> str:
    """Name the gates that decided where the comparison with main, whose numbers follow, is none of them."""
    verdict = facts.verdict.verdict
    decided = [gate.name for gate in facts.verdict.gates if gate.level == "enforce" and gate.outcome == verdict]
    if verdict == "pass" or not decided or {"no_worse_than_main", "pipeline"} & set(decided) or _bad_data(facts):
        return ""
    return f" ({words.listed([name.replace('_', ' ') for name in decided], 3)})"


def _bad_data(facts: Facts) -> str:
    errors = [finding for finding in findings(facts) if finding.level == "error"]
    return f"the data failed {words.count(len(errors), 'check')}, nothing was trained" if errors else ""


def _numbers(facts: Facts) -> str:
    if facts.this.metrics is None:
        return "there are no results to judge"
    total = words.percent(facts.this.metrics.accuracy)
    if facts.is_main:
        return f"this is main's model, bit for bit: accuracy {total}"
    if facts.base.example:
        return f"accuracy {total}; {facts.base.why}, so floors and data checks alone decided"
    if not facts.has_main:
        lost = (
            "and main never had a model to compare with"
            if facts.base.never
            else "not compared: main's model could not be had"
        )
        return f"accuracy {total}, {lost}"
    main, this = facts.compared("accuracy")
    if main is None or this is None:
        return f"accuracy {total}, of classes that main does not know"
    told = f"accuracy {words.percent(this)} against {words.percent(main)} of main"
    told += " on the classes that both know" if facts.base.labels_added else ""
    gate, difference = facts.verdict.gate("no_worse_than_main"), words.points(this - main)
    if gate.low is None or gate.high is None:
        return f"{told} ({difference})"
    level = f"{gate.confidence * 100:.3g}% " if gate.confidence else ""
    interval = f"{level}interval {words.signed(gate.low * 100)} to {words.signed(gate.high * 100)}"
    if facts.pooled:
        told += f"; over {facts.pooled} {words.written(gate.difference, words.points)} ({interval})"
        return f"no difference shown, {told}" if gate.low <= 0 <= gate.high else told
    if not gate.low <= 0 <= gate.high:
        return f"{told} ({difference}, {interval})"
    found = changes.answers(*facts.answers) if facts.has_answers else None
    more = f" ({len(found[1]) - len(found[0]):+,} of {words.count(len(facts.answers[1]), 'example')})" if found else ""
    return f"no difference shown{more}, {told}, {interval}"


def findings(facts: Facts) -> list[Finding]:
    """Return what the checks of the data found."""
    return facts.validation.findings if facts.validation else []


def _reasons(facts: Facts) -> Said:
    reasons = facts.verdict.reasons
    names = {gate.sentence: gate.name.replace("_", " ") for gate in reversed(facts.verdict.gates)}
    yield from ((names.get(reason, ""), reason) for reason in reasons[:_REASONS])
    if len(reasons) > _REASONS:
        yield "", f"and {len(reasons) - _REASONS} more: see the gates below"


def _advice(facts: Facts) -> Said:
    """Yield what would settle the verdict, and what to do about a floor that is not held."""
    said = facts.verdict.evidence and facts.verdict.evidence.way_out
    if said and facts.verdict.verdict != "pass":
        yield "what would settle the accuracy", said
    if any("floor" in facts.verdict.gate(name).sentence and facts.is_told(name) for name in _FLOORS):
        whose = "here still the template's, made for its digits" if facts.base.example else "your team's bar"
        advice = "train longer, or add examples of the classes that are weak; `make suggest` looks at your data"
        yield "what to do", f"{advice}. The floors stand in section gates of params.yaml, {whose}"
    if facts.base.retrained:
        yield "main was trained again", facts.base.retrained


def _classes(facts: Facts) -> Said:
    added, gone = facts.base.labels_added, facts.base.labels_gone
    if added:
        main, this = (words.written(number, words.percent) for number in facts.compared("accuracy"))
        total = words.written(facts.this.metrics and facts.this.metrics.accuracy, words.percent) or "not known"
        sentence = f"{words.listed(added)}. Main never saw {'it' if len(added) == 1 else 'them'}. "
        sentence += f"Accuracy over all classes {total}"
        sentence += f", over those that both know {this} against {main} of main" if main and this else ""
        yield f"{words.count(len(added), 'class', 'classes')} added", f"{sentence}."
    if gone and not facts.is_told("test_set"):
        yield f"{words.count(len(gone), 'class', 'classes')} gone or renamed", f"{words.listed(gone)}."


def _test_set(facts: Facts) -> Said:
    """Yield what is another test set than main's, where its gate has not said so."""
    if facts.is_told("test_set"):
        return
    left, relabelled = facts.base.left_test, facts.base.relabelled

    def named(found: ExamplesLeft) -> str:
        more = " and more" if found.examples > len(found.names) else ""
        return f"{', '.join(found.names)}{more}." if found.names else "not named."

    if left.examples:
        had = f"main had {left.main_right:,} of them right" if left.main_right is not None else "main had not answered them"
        yield f"{left.examples:,} of {left.of:,} examples left main's test split", f"{had}: {named(left)}"
    if relabelled.examples:
        yield f"{words.count(relabelled.examples, 'test example')} relabelled since main", named(relabelled)


def _leaks(facts: Facts) -> Said:
    for finding in findings(facts):
        if finding.check in _LEAKS and finding.level != "error":
            yield finding.check.replace("_", " "), f"{finding.message}. The test accuracy may be too good."


def _disagreements(facts: Facts) -> Said:
    """Yield what clearly points the other way than the accuracy on the test split."""
    main, this = facts.compared("accuracy")
    if facts.has_main and main is not None and this is not None:
        then, now = (side.kept_epoch.get("validation_accuracy") for side in (facts.main, facts.this))
        examples = changes.same_examples(facts.main.rows, facts.this.rows, "validation")
        change = now - then if then is not None and now is not None else 0.0
        # more points than count as no worse, and more examples than chance explains
        clear = abs(change) > facts.number("gates.max_accuracy_drop", 0.01) and round(abs(change) * examples) >= _CLEAR
        if then is not None and now is not None and clear and change * (this - main) <= 0:
            moved = f"accuracy {words.percent(now)} against {words.percent(then)} of main, "
            moved += f"{round(change * examples):+,} of {examples:,} examples ({words.points(change)})."
            yield "validation disagrees", moved
        gate = facts.verdict.gate("log_loss")
        rose, fell = (gate.low or 0.0) > 0, (gate.high or 0.0) < 0
        if ((rose and this >= main) or (fell and this < main)) and not facts.is_told("log_loss"):
            yield "test log loss disagrees", gate.sentence
    gate = facts.verdict.gate("no_worse_than_anchor")  # its level may be warn: then it is no reason
    if gate.outcome in ("fail", "investigate") and not facts.is_told(gate.name):
        yield "no worse than anchor", gate.sentence


def _notes(facts: Facts) -> Said:
    """Yield the circumstances that a reader must know: who decided, the evidence, how far main has moved, where it ran."""
    base, reasons = facts.base, facts.verdict.reasons
    for key, _, did in _LABELS:
        if given := getattr(facts.verdict, key):
            at = f" at {given.at}" if given.at else ""
            yield "WARNING", f"`{given.by}` {did} with the label `{given.label}`{at}."
    yield from _evidence(facts)
    if base.behind:
        ahead = f"Main is {words.count(base.behind, 'commit')} ahead of where this branch left it"
        named = "" if facts.is_told("stale_base") else f": {words.listed(base.moved_inputs)}"
        update = "make update" if base.ref in ("", "origin/main") else f"make update BASE={base.ref}"
        moved = "What is judged here is not what a merge would give. Bring the branch up to date and push"
        if base.moved_inputs:
            yield "WARNING", f"{ahead} and has changed what the model depends on{named}. {moved}: `{update}`"
        else:
            yield "", f"{ahead}; none of it touches what the model depends on."
    if base.first_rules:
        first = words.listed(base.first_rules)
        yield "", f"Judged by this pull request's own {first}: those of main are the template's."
    elif base.judging_changed and not facts.is_told("judging"):
        said = f"This pull request also touches the engine: {words.listed(base.judging_changed)}."
        yield "WARNING", f"{said} Both models were judged by its rules; a person must read that and agree."
    if (budget := facts.run.budget) and not facts.is_told("budget"):
        used = f"Trained with a small budget: {budget.get('epochs')} of {budget.get('asked')} epochs."
        yield "NOTE", f"{used} It is a preview, not the model that params.yaml asks for."
    if not facts.run.lane.get("comparable", True):
        said = "Times, latency and cost were measured there and are not comparable with those of the machine that serves."
        yield "NOTE", f"Lane {facts.run.lane.get('name')}: not comparable where the hardware matters. {said}"
    if facts.this.metrics and not facts.has_main and not (base.why and any(base.why in reason for reason in reasons)):
        why = f" ({base.why})" if base.why else ""
        told = f"Main never had a model to compare with{why}: only the absolute gates were applied."
        lost = f"Main's model could not be had: {base.why or 'no reason given'}. It was compared with nothing."
        yield ("NOTE", told) if base.never else ("WARNING", lost)
    if not facts.failed and not facts.training.here:
        yield "", _restored(facts)
    if facts.pictures != "all":
        said = "No picture shows an example of the data" if facts.pictures == "charts" else "There are no pictures"
        yield "", f"{said}: `report.pictures` of `params.yaml` is {facts.pictures}."


def _evidence(facts: Facts) -> Said:
    """Yield what the verdict rests on, and how much that can show."""
    found = facts.verdict.evidence
    if not found or not found.examples or facts.is_main:
        return
    of_test = f"{words.count(found.examples, 'example')} of the test split"
    sentences = [f"evidence: {facts.pooled or of_test}"]
    if found.vouches_for is not None:
        sentences.append(f"these examples can vouch for differences of {abs(found.vouches_for) * 100:.2f} points")
    if sure := facts.verdict.gate("no_worse_than_main").confidence:
        sided = f"to pass is a one-sided test at {(1 - sure) / 2 * 100:.3g}%"
        sentences.append(f"{sided}, which the {sure * 100:.3g}% interval agrees with")
    sentences += [told for told in (found.looks, found.models_judged) if told]
    yield "", " ".join(f"{one[:1].upper()}{one[1:].rstrip('.')}." for one in sentences)


def _restored(facts: Facts) -> str:
    training, said = facts.training, "Nothing the model depends on differs from a run that is recorded:"
    said += " the model was restored, not trained in this run."
    if training.seconds is None:
        return f"{said} Where and when it was trained is not known here."
    where = f"at commit `{training.commit[:10]}`" if training.commit else f"in an earlier run, until `{training.ended}`,"
    return f"{said} It was trained {where} in {words.duration(training.seconds)}."
