"""May this model replace main's? A pure function: results in, a verdict and its reasons out.

Three answers: `pass`; `fail`, where the numbers leave no doubt; `investigate`, where a person has to look, because the test
examples are too few to tell or because something other than the model changed. Luck alone never fails a model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from src.core import metrics, significance
from src.core.files import rounded
from src.core.metrics_file import MetricsFile
from src.judging.gates_params import GateLevel, Gates
from src.system.judged import Evidence, ExamplesLeft, GateRow, JudgedFile, McNemar

Outcome = Literal["pass", "fail", "investigate", "skipped"]
VERDICTS: tuple[Outcome, ...] = ("pass", "investigate", "fail")  # from mild to severe

_GAP_RESAMPLES = 1000  # each costs a pass over the test examples
_CALIBRATED_DRAWS = 200
_FIRST_LOOK = 0.92  # share of the chance of a false pass that is the first model's of a pull request
_OWN = 0.9  # one-sided: how surely worse the very model must look to stop what its recipe's evidence would pass
_POWER = 0.8  # the chance of a pass that further evidence should give
_FOLDS, _SEEDS = 5, (3, 5, 10)  # what further evidence is proposed
_SEED_GAIN = 0.8  # examples that one more seed is worth for each: a rough fit to the table of docs/gates.md
_ANCHOR_MOVES = 0.99  # one-sided: how surely a model has to be better to become the anchor
_ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_FELT_MS = 1.0  # nobody feels less


@dataclass(frozen=True)
class Answers:
    """What one model said of the test examples; arrays of shape (n,), row by row the same examples for both models."""

    right: NDArray[np.bool_]
    log_losses: NDArray[np.float64]
    confidences: NDArray[np.float64]
    predictions: NDArray[Any]


@dataclass(frozen=True)
class Trainings:
    """Right answers of several trainings of both recipes: bool of shape (seeds, examples), both of the same examples.

    The first row is the seed of the model itself. Of folds, each example is answered by the model that did not see it.
    """

    right: NDArray[np.bool_]
    main_right: NDArray[np.bool_]


@dataclass(frozen=True)
class Facts:
    """All that the verdict rests on; None where there is no such thing.

    `labels` and `answers` belong to the candidate's test split,
    `slices` are masks over it, `shared` the mask of those whose label main's model knows too (None: all of them). `latency`
    and `main_latency` hold p95 in ms and `blocks`, p95 of interleaved rounds. `main_never` says that main never had a model,
    or none but the template's example, `why_no_main` why its answers are missing, `first_rules` which sections of
    params.yaml are the first own ones then, `same_training` that it learned from the same examples: else main's
    commit is not trained again with folds and seeds; `tested_before` is the mask of its own test examples;
    `split_rules` names main's rule of the split and this one where they differ. `looks` counts the
    models of this pull request, `models_judged` all models that these test examples have judged, this one included. The
    anchor is the best champion so far.
    """

    failed: str | None = None
    validation: Mapping[str, Any] | None = None
    metrics: MetricsFile | None = None
    labels: NDArray[Any] | None = None
    answers: Answers | None = None
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    latency: Mapping[str, Any] | None = None
    comparable: bool = True
    budget: Mapping[str, int] | None = None
    main_metrics: MetricsFile | None = None
    main_answers: Answers | None = None
    main_latency: Mapping[str, Any] | None = None
    why_no_main: str = ""
    main_never: bool = False
    shared: NDArray[np.bool_] | None = None
    folds: Trainings | None = None
    seeds: Trainings | None = None
    training_examples: int = 0
    same_training: bool = True
    labels_added: Sequence[str] = ()
    labels_gone: Sequence[str] = ()
    left_test: ExamplesLeft = field(default_factory=ExamplesLeft)
    tested_before: NDArray[np.bool_] | None = None
    relabelled: ExamplesLeft = field(default_factory=ExamplesLeft)
    split_rules: Sequence[str] = ()
    looks: int = 1
    models_judged: int = 1
    judged_since: str | None = None
    anchor_answers: Answers | None = None
    anchor_commit: str = ""
    why_no_anchor: str = ""
    moved_inputs: Sequence[str] = ()
    judging_changed: Sequence[str] = ()
    first_rules: Sequence[str] = ()
    bins: int = 15


class _Finding(NamedTuple):
    """What a gate found, before its level is known."""

    outcome: Outcome
    sentence: str
    numbers: Mapping[str, float | None]


def judge(facts: Facts, params: Gates) -> JudgedFile:
    """Judge a candidate: every gate that is not off, the worst enforced outcome decides."""
    levels = params.levels.model_dump()
    gates = []
    if facts.failed:
        stopped = _STOPPED.get(facts.failed, f"the pipeline stopped in stage {facts.failed}")
        gates = [_gate("pipeline", "enforce", _Finding("fail", f"{stopped}: there is no new model to judge", {}))]
    for name, check in _CHECKS.items():
        if levels[name] != "off":
            gates.append(_gate(name, levels[name], check(facts, params)))
    enforced = [gate for gate in gates if gate.level == "enforce"]
    outcomes = [gate.outcome for gate in enforced if gate.outcome != "skipped"]
    worst = max(outcomes, key=VERDICTS.index, default="investigate")
    paired = _pair(facts, facts.main_answers)
    return JudgedFile(
        verdict=worst,
        reasons=_reasons(worst, enforced, facts),
        gates=gates,
        baseline=paired is not None,
        mcnemar=McNemar.from_json(significance.mcnemar(paired[0].right, paired[1].right), "McNemar") if paired else None,
        churn=_churn(*paired) if paired else None,
        evidence=_evidence(facts, params),
        anchor_moves=_anchor_moves(facts),
    )


def _pair(facts: Facts, other: Answers | None) -> tuple[Answers, Answers] | None:
    """Return the candidate's and another model's answers to the examples whose label both know, or None."""
    if facts.answers is None or other is None or (facts.shared is not None and not facts.shared.any()):
        return None
    return _only(facts.answers, facts.shared), _only(other, facts.shared)


def _only(answers: Answers, rows: NDArray[np.bool_] | None) -> Answers:
    if rows is None:
        return answers
    return Answers(answers.right[rows], answers.log_losses[rows], answers.confidences[rows], answers.predictions[rows])


def _churn(mine: Answers, theirs: Answers) -> float:
    return rounded(float((mine.predictions != theirs.predictions).mean()))


def _gate(name: str, level: GateLevel, found: _Finding) -> GateRow:
    numbers = {key: rounded(value) for key, value in found.numbers.items() if value is not None}
    return GateRow(name=name, level=level, outcome=found.outcome, sentence=found.sentence, **numbers)


def _reasons(worst: str, enforced: Sequence[GateRow], facts: Facts) -> list[str]:
    """Say what decided; a pass is explained by its comparison with main."""
    because = [gate.sentence for outcome in ("fail", "investigate") for gate in enforced if gate.outcome == outcome]
    if worst == "pass":
        because = [gate.sentence for gate in enforced if gate.name == "no_worse_than_main" and gate.outcome == "pass"]
    if facts.main_never and not facts.failed:
        why = facts.why_no_main or "main never had one"
        because.append(f"there is no model of your own to compare with yet ({why}): floors only")
    return list(dict.fromkeys(because)) or ["every gate that is enforced holds"]


# ---------------------------------------------------------------------------------------------------------------------
# The model by itself
# ---------------------------------------------------------------------------------------------------------------------


_STOPPED = {
    "data": "the data could not be fetched",
    "params": "params.yaml cannot be used",
    "pipeline": "the pipeline did not start",
    "review": "the merge asks for another model than the one that was reviewed",
}


def _skipped(why: str) -> _Finding:
    return _Finding("skipped", why, {})


_NO_RESULTS = "no results to judge"


def _absent(facts: Facts, what: str) -> _Finding:
    """Answer for a gate whose input is absent: the stage that stopped explains it, otherwise a person has to look."""
    return _skipped(what) if facts.failed else _Finding("investigate", f"{what}: run make reproduce, then make report", {})


def _no_main(facts: Facts) -> _Finding:
    return _skipped((facts.main_never and facts.why_no_main) or "no model of main to compare with")


def _floor(key: str, limit: str, name: str, spell: Callable[[float], str]) -> "Check":
    """Make the gate of a floor; only accuracy has an interval, so only accuracy is ever surely under its floor."""

    def check(facts: Facts, params: Gates) -> _Finding:
        if facts.metrics is None:
            return _absent(facts, _NO_RESULTS)
        value, least = float(getattr(facts.metrics, key)), float(getattr(params, limit))
        main = _of_main(facts, key)
        numbers = {"value": value, "limit": least, "main": main}
        highest = _highest(facts.answers.right, params) if key == "accuracy" and facts.answers else 1.0
        outcome, note = _held(value, least, main, sure=highest < least)
        if value < least:
            return _Finding(
                outcome, f"{name} {spell(value)} is under the floor of {spell(least)} (gates.{limit}){note}", numbers
            )
        return _Finding("pass", f"{name} {spell(value)}, floor {spell(least)}", numbers)

    return check


def _of_main(facts: Facts, key: str) -> float | None:
    """Return a number of main's model, None where examples with a label that it cannot know count against it."""
    knows_all = facts.shared is None or bool(facts.shared.all())
    return float(getattr(facts.main_metrics, key)) if facts.main_metrics is not None and knows_all else None


def _highest(right: NDArray[np.bool_], params: Gates) -> float:
    """Return the upper end of Wilson's interval, as sure as failing a model asks for."""
    return metrics.accuracy(right, _two_sided(params.fail_confidence))["accuracy_high"]


def _held(value: float, least: float, main: float | None, *, sure: bool = True) -> tuple[Outcome, str]:
    """Judge a value against a floor. One that main breaks too does not keep a better model out, nor fail an equal one."""
    if value >= least:
        return "pass", ""
    if main is None or main >= least:
        return ("fail", "") if sure else ("investigate", ", too few examples to be sure")
    if value > main + 1e-9:
        return "pass", ", but nearer to it than main"
    return "investigate", ", as is main"


def _baseline_margin(facts: Facts, params: Gates) -> _Finding:
    if facts.metrics is None:
        return _absent(facts, _NO_RESULTS)
    if facts.metrics.baseline is None:
        return _absent(facts, "metrics.json has no baseline to compare with")
    margin, least = facts.metrics.baseline.margin, params.min_baseline_margin
    simple = facts.metrics.baseline.accuracy
    main = _of_main(facts, "accuracy")
    main = None if main is None else main - simple
    shares = np.array([facts.metrics.accuracy, simple])
    examples = len(facts.answers.right) if facts.answers else 1
    deviation = math.sqrt(float((shares * (1 - shares)).sum()) / examples)  # as if unpaired: wider than it is
    sure = margin + significance.quantile(params.fail_confidence) * deviation < least
    outcome, note = _held(margin, least, main, sure=sure)
    said = f"{_points(margin)} over the logistic regression ({_percent(simple)}), at least {_points(least)} asked for{note}"
    return _Finding(outcome, said, {"value": margin, "limit": least, "main": main})


def _model_size(facts: Facts, params: Gates) -> _Finding:
    if facts.metrics is None or facts.metrics.model_bytes is None:
        return _absent(facts, "the size of model.onnx is not known")
    size, theirs = facts.metrics.model_bytes / 2**20, facts.main_metrics.model_bytes if facts.main_metrics else None
    main = None if theirs is None else theirs / 2**20
    numbers = {"value": size, "limit": params.max_model_mb, "main": main}
    said = f"model.onnx has {size:.1f} MiB, limit {params.max_model_mb:g}"
    outcome, note = _held(-size, -params.max_model_mb, None if main is None else -main)
    return _Finding(outcome, said + note, numbers)


def _data_checks(facts: Facts, _params: Gates) -> _Finding:
    if facts.validation is None:
        return _absent(facts, "the data were not validated")
    by_level = {
        level: [f["check"] for f in facts.validation["findings"] if f["level"] == level] for level in ("error", "warn")
    }
    if not facts.validation["passed"]:
        return _Finding("fail", f"the data failed: {', '.join(by_level['error'])}", {"value": float(len(by_level["error"]))})
    told = f"warnings: {', '.join(by_level['warn'])}" if by_level["warn"] else "all data checks passed"
    return _Finding("pass", told, {"value": 0.0})


def _judging(facts: Facts, _params: Gates) -> _Finding:
    if not facts.judging_changed and facts.first_rules:
        said = f"judged by the first rules of your own ({_listed(facts.first_rules)}), as main's are the template's"
        return _Finding("pass", said, {})
    if not facts.judging_changed:
        return _Finding("pass", "made and judged by the same engine as main's", {})
    said = f"this change also touches the engine ({_listed(facts.judging_changed)}): a person must read that"
    return _Finding("investigate", f"{said} and give the label `engine: reviewed`", {})


def _stale_base(facts: Facts, _params: Gates) -> _Finding:
    if not facts.moved_inputs:
        return _Finding("pass", "main's model has the same inputs as when this branch left it", {})
    moved = _listed(facts.moved_inputs)
    said = f"main has since changed what the model depends on ({moved}): run `make update` in this branch and push"
    return _Finding("investigate", said, {})


def _budget(facts: Facts, _params: Gates) -> _Finding:
    if facts.budget is None:
        return _Finding("pass", "trained as params.yaml asks", {})
    used, asked = facts.budget["epochs"], facts.budget["asked"]
    said = f"trained with a small budget, {used} of {asked} epochs: a preview, not the model that params.yaml asks for"
    return _Finding("investigate", said, {"value": float(used), "limit": float(asked)})


# ---------------------------------------------------------------------------------------------------------------------
# Against main, example by example
# ---------------------------------------------------------------------------------------------------------------------


def _no_worse(facts: Facts, params: Gates) -> _Finding:
    """Non-inferiority of accuracy: pass when the whole interval lies over minus the margin, fail when surely below it.

    Folds and seeds, where both models have them, speak of the recipe; so the very model must not look worse on its own.
    """
    paired = _pair(facts, facts.main_answers)
    if paired is None:
        return _not_compared(facts)
    kind, found = _pooled(facts, paired)
    margin, total = params.max_accuracy_drop, 1 - params.pass_confidence
    alpha = _alpha(facts.looks, total)
    convention = f"one-sided {_level(alpha)}, of {_level(total)} for all models of one pull request"
    outcome, said, numbers = _non_inferior(found, paired, "main", margin, alpha, convention, params, kind)
    if kind != "test":
        own = significance.score(significance.pairs(paired[0].right, paired[1].right), margin)
        if own <= -significance.quantile(params.fail_confidence):
            outcome, said = "fail", f"{said}; but this very model is surely worse by more than that on the test examples"
        elif outcome == "pass" and own <= -significance.quantile(_OWN):
            outcome, said = "investigate", f"{said}; but this very model looks worse by more than that on the test examples"
    if facts.shared is not None and facts.answers is not None and not facts.shared.all():
        whole, known = facts.answers.right, f"on the {len(paired[0].right)} examples whose label main's model knows"
        said = f"{known}: {said}; {_percent(whole.mean())} on all {len(whole)}"
    return _Finding(outcome, said, numbers)


def _pooled(facts: Facts, paired: tuple[Answers, Answers]) -> tuple[str, significance.Pairs]:
    """Return the strongest evidence that both models have, and its name: test, folds, seeds, or folds and seeds."""
    sides, names = [one.right[np.newaxis] for one in paired], []
    if facts.seeds is not None:
        sides, names = [facts.seeds.right, facts.seeds.main_right], ["seeds"]
    if facts.folds is not None:
        held = (facts.folds.right, facts.folds.main_right)
        rows = min(map(len, (*sides, *held)))
        sides = [np.hstack([test[:rows], fold[:rows]]) for test, fold in zip(sides, held, strict=True)]
        names = ["folds", *names] if rows > 1 else ["folds"]
    return " and ".join(names) or "test", significance.pooled(*sides)


def _not_compared(facts: Facts) -> _Finding:
    """Main has a model and nothing is known of it: no evidence, and so no pass."""
    if facts.answers is None:
        return _absent(facts, _NO_RESULTS)
    if facts.main_answers is not None:
        said = "this data has no label that main's model knows: nothing can be compared, and a person has to look"
        return _Finding("investigate", said, {})
    if facts.main_never:
        return _no_main(facts)
    said = (
        f"main has a model, but it could not be compared with ({facts.why_no_main or 'no reason was given'}): make it "
        "available and run this again; nothing shows that the new model is no worse"
    )
    return _Finding("investigate", said, {})


def _alpha(looks: int, total: float) -> float:
    """Share the chance of a false pass out over the models of one pull request: nearly all to the first, less to each next.

    The sum over any number of models is `total`. The first one has as much as leaves an equal model a fair chance, and the
    next ones little: they are judged on the same examples, and mostly pass or fail together with the first.
    """
    if looks <= 1:
        return _FIRST_LOOK * total
    return (1 - _FIRST_LOOK) * total * 6 / (math.pi * (looks - 1)) ** 2


def _non_inferior(
    found: significance.Pairs,
    paired: tuple[Answers, Answers],
    whom: str,
    margin: float,
    alpha: float,
    convention: str,
    params: Gates,
    kind: str = "test",
) -> _Finding:
    """Judge by Tango's score z at the margin, one-sided: at `alpha` to pass, at `fail_confidence` to fail.

    A model whose every probability is that of the other is no worse, however few the examples.
    """
    z, level = significance.score(found, margin), 1 - 2 * alpha
    low, high = significance.score_interval(found, level)
    shares = [float(one.right.mean()) for one in paired]
    examples = f"{found.n} test examples" if kind == "test" else f"{found.n} examples of test split and {kind}"
    over = "" if kind == "test" else f"over {examples} "
    said = (
        f"accuracy {_percent(shares[0])} against {_percent(shares[1])} of {whom}: {over}{_points(found.difference)} "
        f"({_level(level)} interval {low * 100:+.2f} to {high * 100:+.2f})"
    )
    numbers = {"value": shares[0], "main": shares[1], "limit": -margin, "difference": found.difference}
    numbers |= {"low": low, "high": high, "confidence": level}
    asked = _points(-margin)
    if _same(*paired):
        return _Finding("pass", f"{said}: the very answers of {whom}, to the last probability", numbers)
    if z >= significance.quantile(1 - alpha):
        shown = "better" if low > 0 else "no worse"
        return _Finding("pass", f"{said}: {shown} than {whom} ({convention})", numbers)
    if z <= -significance.quantile(params.fail_confidence):
        return _Finding("fail", f"{said}: worse than {whom} by more than the margin of {asked}", numbers)
    if z <= -significance.quantile(1 - alpha):
        doubt = f"not surely enough to fail (one-sided {_level(1 - params.fail_confidence)})"
        return _Finding("investigate", f"{said}: worse than {whom} by more than the margin of {asked}, {doubt}", numbers)
    return _Finding("investigate", f"{said}: {examples} cannot show that it keeps the margin of {asked}", numbers)


def _same(mine: Answers, theirs: Answers) -> bool:
    return all(np.array_equal(getattr(mine, name), getattr(theirs, name)) for name in ("predictions", "log_losses"))


def _anchor(facts: Facts, params: Gates) -> _Finding:
    """Non-inferiority to the best champion so far, so that small losses do not add up."""
    if facts.answers is None:
        return _absent(facts, _NO_RESULTS)
    whom = f"the best champion so far ({facts.anchor_commit[:7]})"
    if facts.why_no_anchor:
        said = f"{whom} could not be compared with ({facts.why_no_anchor}): make it available and run this again"
        return _Finding("investigate", said, {})
    if facts.anchor_answers is None:
        return _no_main(facts) if facts.main_never else _skipped("there is no champion before main's model")
    paired = _pair(facts, facts.anchor_answers)
    if paired is None:
        return _Finding("investigate", f"this data has no label that {whom} knows: nothing can be compared", {})
    alpha, kind = 1 - params.pass_confidence, "test"
    found = significance.pairs(paired[0].right, paired[1].right)
    if facts.main_answers is not None and _same(facts.anchor_answers, facts.main_answers):
        kind, found = _pooled(facts, paired)
    return _non_inferior(found, paired, whom, params.max_total_drop, alpha, f"one-sided {_level(alpha)}", params, kind)


def _anchor_moves(facts: Facts) -> bool:
    """Say whether the candidate becomes the anchor: surely better, or there is none."""
    if facts.answers is None or facts.why_no_anchor:
        return False
    if facts.anchor_answers is None:
        return True
    paired = _pair(facts, facts.anchor_answers)
    if paired is None:
        return False
    found = significance.pairs(paired[0].right, paired[1].right)
    return significance.score(found, 0) >= significance.quantile(_ANCHOR_MOVES)


def _test_set(facts: Facts, params: Gates) -> _Finding:
    """Ask where main's test examples are gone, have other labels or count less: what was hard may have been taken out."""
    if facts.main_never:
        return _no_main(facts)
    if facts.answers is None:
        return _absent(facts, _NO_RESULTS)
    if facts.main_answers is None:
        return _Finding("investigate", "main's labels and test examples are not known, as its model is not", {})
    left, other = facts.left_test, facts.relabelled
    found = []
    if facts.split_rules:
        found.append("the split is drawn by the rule {1}, and main's by {0}".format(*facts.split_rules))
    if facts.labels_gone:
        found.append(f"labels are gone or renamed: {_listed(facts.labels_gone)}")
    if left.examples:
        right = f", of which main's model had {left.main_right} right" if left.main_right is not None else ""
        found.append(f"{left.examples} of main's {left.of} test examples are no longer tested{right}{_named(left)}")
    if left.why:
        found.append(left.why)
    if other.examples:
        found.append(f"{other.examples} test examples have another label than on main{_named(other)}")
    found += _diluted(facts, params)
    added = f"labels are new: {_listed(facts.labels_added)}" if facts.labels_added else ""
    if found:
        return _Finding("investigate", "; ".join([*found, added] if added else found), {})
    return _Finding("pass", added or "all of main's test examples are still tested, with their labels", {})


def _diluted(facts: Facts, params: Gates) -> list[str]:
    """Tell of a model that looks worse on main's own test examples, and better among many new ones that are easy."""
    old = facts.tested_before
    if facts.answers is None or facts.main_answers is None or old is None or old.all():
        return []
    rows = old if facts.shared is None else old & facts.shared
    mine, theirs = facts.answers.right[rows], facts.main_answers.right[rows]
    if not len(mine):
        return []
    z = significance.score(significance.pairs(mine, theirs), params.max_accuracy_drop)
    if z > -significance.quantile(_OWN):
        return []
    shares = f"{_percent(mine.mean())} against {_percent(theirs.mean())} of main"
    return [f"{(~old).sum()} test examples are new; on the {len(mine)} of main this model looks worse: accuracy {shares}"]


def _named(left: ExamplesLeft) -> str:
    return f" ({_listed(left.names, 5)})" if left.names else ""


# ---------------------------------------------------------------------------------------------------------------------
# What the examples can tell
# ---------------------------------------------------------------------------------------------------------------------


def _evidence(facts: Facts, params: Gates) -> Evidence | None:
    """Tell on what the comparison rests, what these examples can vouch for, and how often they have been asked."""
    if facts.answers is None:
        return None
    paired = _pair(facts, facts.main_answers)
    alpha = _alpha(facts.looks, 1 - params.pass_confidence)
    told = Evidence(looks=_looks(facts.looks, alpha), models_judged=_models_judged(facts, paired))
    if paired is None:
        return told
    kind, found = _pooled(facts, paired)
    unsettled = _no_worse(facts, params).outcome == "investigate"
    return replace(
        told,
        kind=kind,
        examples=found.n,
        way_out=_way_out(facts, paired, found, alpha, params.max_accuracy_drop) if unsettled else "",
        vouches_for=rounded(significance.margin_of_equals(found, 1 - alpha)),
    )


def _way_out(facts: Facts, paired: tuple[Answers, Answers], found: significance.Pairs, alpha: float, margin: float) -> str:
    """Name the cheapest further evidence that would show in four of five cases that the margin is kept.

    Taken that the difference is what it looks like, and not better than none: examples are needed in proportion to the share
    on which the models differ, and to the inverse square of how far the difference is from the margin.
    """
    gap = margin + min(0.0, found.difference)
    if gap <= margin / 4:
        return (
            "the loss that is seen is near the margin or over it: more evidence will hardly settle it, a better model will"
        )
    test, pairs = len(paired[0].right), significance.pairs(paired[0].right, paired[1].right)
    differ = max(pairs.won + pairs.lost, 1) / test
    needed = (significance.quantile(1 - alpha) + significance.quantile(_POWER)) ** 2 * differ / gap**2
    seeds, folded = len(facts.seeds.right) if facts.seeds else 1, facts.folds is not None
    ways = []
    for repeats in (seeds, *(count for count in _SEEDS if count > seeds)) if facts.same_training else ():
        for with_folds in {folded, True}:
            examples = (test + facts.training_examples * with_folds) * (_SEED_GAIN * repeats if repeats > 1 else 1)
            trainings = repeats * (1 + _FOLDS * with_folds)
            dials = [f"train.folds: {_FOLDS}"] if with_folds > folded else []
            dials += [f"train.repeats: {repeats}"] if repeats > seeds else []
            if dials and examples >= needed:
                ways.append((trainings, " and ".join(dials)))
    more = math.ceil(needed / (_SEED_GAIN * seeds if seeds > 1 else 1)) - test - facts.training_examples * folded
    further = f"about {max(more, 1):,} more test examples"
    cheapest = "{1} ({0} trainings in all, and as many of main unless it has them) or ".format(*min(ways)) if ways else ""
    return f"{cheapest}{further} would most likely settle it, if the difference is what it looks like"


def _looks(looks: int, alpha: float) -> str:
    if looks <= 1:
        return ""
    which = _ORDINALS[looks] if looks < len(_ORDINALS) else f"{looks}th"
    return f"{which} model of this pull request on these examples: it passes by a one-sided test at {_level(alpha)} only"


def _models_judged(facts: Facts, paired: tuple[Answers, Answers] | None) -> str:
    """Say by how much the luckiest of so many equal models is expected to be too good.

    Of each model's accuracy only what it does not share with the others is luck among them: half of the variance of a
    difference. Source of the maximum of N normal numbers: sqrt(2 ln N), of which a tenth is taken off for small N.
    """
    count, answers = facts.models_judged, facts.answers
    if count < 2 or answers is None:
        return ""
    differ = float((paired[0].right != paired[1].right).mean()) if paired else 1 - float(answers.right.mean())
    luck = 0.9 * math.sqrt(differ / 2 / len(answers.right)) * math.sqrt(2 * math.log(count))
    since = f" since {facts.judged_since}" if facts.judged_since else ""
    return (
        f"{count} models have been judged on these examples{since}: expect the best of them to be too good by up to "
        f"{luck * 100:.1f} points"
    )


def _two_sided(confidence: float) -> float:
    """Return the level of the two-sided interval whose one end is a one-sided bound at `confidence`."""
    return 2 * confidence - 1


def _worst_class(facts: Facts, params: Gates) -> _Finding:
    if facts.answers is None or facts.labels is None:
        return _absent(facts, _NO_RESULTS)
    parts = {str(name): facts.labels == name for name in np.unique(facts.labels)}
    return _worst("class", "recall", parts, facts, params, params.min_class_recall, params.max_class_drop)


def _worst_slice(facts: Facts, params: Gates) -> _Finding:
    if facts.answers is None:
        return _absent(facts, _NO_RESULTS)
    return _worst("slice", "accuracy", facts.slices, facts, params, params.min_slice_accuracy, params.max_slice_drop)


class _Part(NamedTuple):
    """A class or slice: its examples, the candidate's and main's share of right answers, and two one-sided p values.

    `p_drop` is the chance of such a drop where both are equally good, `p_limit` where the drop is just the limit.
    """

    name: str
    examples: int
    value: float
    highest: float
    main: float | None = None
    dropped: float = 0.0
    p_drop: float = 1.0
    p_limit: float = 1.0


def _worst(
    kind: str,
    measure: str,
    masks: Mapping[str, NDArray[np.bool_]],
    facts: Facts,
    params: Gates,
    floor: float,
    drop: float,
) -> _Finding:
    """Judge every part that is large enough: surely under the floor or surely dropped by more than the limit fails.

    A drop over the limit asks for a look only where the exact one-sided McNemar test shows a drop at all. To fail, the drop
    has to be over the limit by Tango's score, adjusted for all parts.
    Source: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    large = {name: mask for name, mask in masks.items() if mask.sum() >= params.min_slice_examples}
    parts = [_part(name, mask, facts, params, drop) for name, mask in large.items()]
    if not parts:
        return _skipped(f"no {kind} has {params.min_slice_examples} test examples")
    found = [
        (*_part_outcome(kind, measure, part, floor, drop, params, p), part)
        for part, p in zip(parts, significance.holm([part.p_limit for part in parts]), strict=True)
    ]
    found.sort(key=lambda one: (-VERDICTS.index(one[0]), one[2].value))
    outcome, _, worst = found[0]
    numbers = {"value": worst.value, "limit": floor, "main": worst.main}
    if outcome == "pass":
        return _Finding("pass", f"worst {kind} {worst.name}: {measure} {_percent(worst.value)}", numbers)
    return _Finding(outcome, _listed([said for this, said, _ in found if this != "pass"], 3, "; "), numbers)


def _part_outcome(
    kind: str, measure: str, part: _Part, floor: float, drop: float, params: Gates, p_limit: float
) -> tuple[Outcome, str]:
    """Return the outcome of one part and a sentence."""
    outcomes: list[Outcome] = ["pass"]
    said = f"{kind} {part.name}: {measure} {_percent(part.value)}"
    said += f", {_percent(part.main)} of main" if part.main is not None else ""
    if part.value < floor:
        outcome, note = _held(part.value, floor, part.main, sure=part.highest < floor)
        outcomes.append(outcome)
        said += f", floor {_percent(floor)}{note}"
    if part.main is not None and part.dropped > drop + 1e-9 and part.p_drop < 1 - params.pass_confidence:
        outcomes.append("fail" if p_limit < 1 - params.fail_confidence else "investigate")
        said += f", at most {_points(-drop)} asked for"
    return max(outcomes, key=VERDICTS.index), f"{said} ({part.examples} examples)"


def _part(name: str, mask: NDArray[np.bool_], facts: Facts, params: Gates, drop: float) -> _Part:
    assert facts.answers is not None
    mine = facts.answers.right[mask]
    alone = _Part(name, len(mine), float(mine.mean()), _highest(mine, params))
    both = mask if facts.shared is None else mask & facts.shared
    if facts.main_answers is None or not both.any():
        return alone
    mine, theirs = facts.answers.right[both], facts.main_answers.right[both]
    chance = significance.chance_below(significance.pairs(mine, theirs), drop)
    dropped, p_drop = float(theirs.mean() - mine.mean()), significance.one_sided(mine, theirs)
    return alone._replace(main=float(theirs.mean()), dropped=dropped, p_drop=p_drop, p_limit=chance)


def _log_loss(facts: Facts, params: Gates) -> _Finding:
    paired = _pair(facts, facts.main_answers)
    if paired is None:
        return _not_compared(facts)
    mine, theirs = paired
    steps, level = mine.log_losses - theirs.log_losses, _two_sided(params.pass_confidence)
    low, high = significance.mean_interval(steps, level, params.resamples)
    surely, _ = significance.mean_interval(steps, _two_sided(params.fail_confidence), params.resamples)
    value, main, limit = mine.log_losses.mean(), theirs.log_losses.mean(), params.max_log_loss_rise
    numbers = {"value": value, "main": main, "difference": steps.mean(), "low": low, "high": high, "limit": limit}
    numbers["confidence"] = level
    said = f"log loss {value:.4f} against {main:.4f} of main: {steps.mean():+.4f} ({low:+.4f} to {high:+.4f})"
    return _Finding(_over(steps.mean(), surely, limit), f"{said}, at most {limit:+g}", numbers)


def _calibration(facts: Facts, params: Gates) -> _Finding:
    """Judge the calibration error beyond that of a calibrated model, whose luck alone shows an error on few examples."""
    if facts.answers is None:
        return _absent(facts, _NO_RESULTS)
    error = metrics.calibration_gap(facts.answers.right, facts.answers.confidences, facts.bins)
    lucky, luckiest = _luck_of_calibration(facts.answers, facts.bins)
    beyond = max(0.0, error - lucky)
    numbers: dict[str, float | None] = {"value": beyond, "limit": params.max_ece}
    outcome = _over(beyond, error - luckiest, params.max_ece)
    said = f"calibration error {error:.4f}, {beyond:.4f} beyond that of a calibrated model, limit {params.max_ece:g}"
    paired = _pair(facts, facts.main_answers)
    if paired is not None:
        mine, theirs = paired
        gaps = [metrics.calibration_gap(one.right, one.confidences, facts.bins) for one in paired]
        rises = significance.resampled(
            lambda rows: _gap(mine, rows, facts.bins) - _gap(theirs, rows, facts.bins),
            len(mine.right),
            min(params.resamples, _GAP_RESAMPLES),
        )
        low, high = significance.quantiles(rises, _two_sided(params.pass_confidence))
        surely, _ = significance.quantiles(rises, _two_sided(params.fail_confidence))
        rise, level = gaps[0] - gaps[1], _two_sided(params.pass_confidence)
        numbers |= {"main": gaps[1], "difference": rise, "low": low, "high": high, "confidence": level}
        outcome = max(outcome, _over(rise, surely, params.max_ece_rise), key=VERDICTS.index)
        said += f"; {rise:+.4f} against main ({low:+.4f} to {high:+.4f}), at most {params.max_ece_rise:+g}"
    return _Finding(outcome, said, numbers)


def _luck_of_calibration(answers: Answers, bins: int) -> tuple[float, float]:
    """Return mean and 99 % quantile of the error that a calibrated model of these confidences would show."""
    drawn = np.random.default_rng(0).random((_CALIBRATED_DRAWS, len(answers.right))) < answers.confidences
    errors = [metrics.calibration_gap(right, answers.confidences, bins) for right in drawn]
    return float(np.mean(errors)), float(np.quantile(errors, 0.99))


def _gap(answers: Answers, rows: NDArray[np.int64], bins: int) -> float:
    return metrics.calibration_gap(answers.right[rows], answers.confidences[rows], bins)


def _churn_gate(facts: Facts, params: Gates) -> _Finding:
    """Churn beyond what the change of accuracy makes necessary: two equally good models that disagree surprise users."""
    paired = _pair(facts, facts.main_answers)
    if paired is None:
        return _not_compared(facts)
    churn, (mine, theirs) = _churn(*paired), paired
    needed = abs(float(mine.right.mean() - theirs.right.mean()))
    said = f"{_percent(churn)} of the predictions changed, {_percent(max(0.0, churn - needed))} more than accuracy explains"
    numbers = {"value": max(0.0, churn - needed), "limit": params.max_churn}
    return _Finding("investigate" if churn - needed > params.max_churn else "pass", said, numbers)


def _latency(facts: Facts, params: Gates) -> _Finding:
    if facts.latency is None:
        return _absent(facts, "latency was not measured")
    p95, limit = facts.latency["p95"], params.max_latency_ms
    main = facts.main_latency["p95"] if facts.main_latency else None
    numbers = {"value": p95, "limit": limit, "main": main}
    said = f"latency p95 {p95:.2f} ms, limit {limit:g} ms"
    outcome: Outcome = "pass"
    ratios = np.ones(1)
    if facts.main_latency:
        ratios = np.array(facts.latency["blocks"]) / np.maximum(facts.main_latency["blocks"], 1e-9)
    if p95 > limit:
        outcome = "fail" if facts.comparable else "investigate"
        if main is not None and main > limit:
            equal = _chance_of_more(ratios, 1) >= 1 - params.pass_confidence
            outcome = "pass" if equal else "investigate"
            said += ", as is main's beside it" + (
                ": this machine is busy or slow, so it is told and not held" if equal else ""
            )
        said += "" if facts.comparable else " (measured on a hosted machine: not comparable with the one that serves)"
    if main is not None:
        said += f"; {np.median(ratios):.2f} times main's, at most {params.max_latency_ratio:g}"
        low = float(np.quantile(ratios, 0.25))
        slower = np.median(ratios) > params.max_latency_ratio
        if slower and low < 1:  # a model against itself looks like this where its neighbours take the cores
            said += " (the rounds disagree on which is faster: this machine was busy)"
        elif slower and p95 - main > _FELT_MS:
            sure = _chance_of_more(ratios, params.max_latency_ratio) < 1 - params.fail_confidence
            outcome = max(outcome, "fail" if sure else "investigate", key=VERDICTS.index)
    return _Finding(outcome, said, numbers)


def _chance_of_more(ratios: NDArray[np.float64], limit: float) -> float:
    """Return the one-sided p value of the sign test for a median ratio over the limit."""
    return float(binomtest(int((ratios > limit).sum()), len(ratios), alternative="greater").pvalue)


def _over(value: float, low: float, limit: float) -> Outcome:
    """Fail when the whole interval lies over the limit; ask for a look when only the value does."""
    if value <= limit:
        return "pass"
    return "fail" if low > limit else "investigate"


Check = Callable[[Facts, Gates], _Finding]
_CHECKS: dict[str, Check] = {
    "no_worse_than_main": _no_worse,
    "no_worse_than_anchor": _anchor,
    "test_set": _test_set,
    "accuracy": _floor("accuracy", "min_accuracy", "accuracy", "{:.2%}".format),
    "macro_f1": _floor("macro_f1", "min_macro_f1", "macro F1", "{:.4f}".format),
    "baseline_margin": _baseline_margin,
    "worst_class": _worst_class,
    "worst_slice": _worst_slice,
    "log_loss": _log_loss,
    "calibration": _calibration,
    "churn": _churn_gate,
    "latency": _latency,
    "model_size": _model_size,
    "data_checks": _data_checks,
    "judging": _judging,
    "stale_base": _stale_base,
    "budget": _budget,
}


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------


def _level(share: float) -> str:
    return f"{share * 100:.3g}%"


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _points(share: float) -> str:
    return f"{share * 100:+.2f} points"


def _listed(items: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    rest = len(items) - most
    return separator.join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
