"""The verdict: what passes, what fails, and what luck cannot do: python -m pytest tests/judging/test_gates.py"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from src.core import metrics, significance
from src.core.metrics_file import Baseline, MetricsFile
from src.judging import gates
from src.judging.gates import Answers, Facts, Trainings
from src.system.judged import ExamplesLeft, GateRow, JudgedFile
from src.system.params import Params

N = 400
LABELS = np.array([f"c{i % 5}" for i in range(N)], dtype=object)


def answers(right: Any, loss: float = 0.1, confidence: float = 0.95) -> Answers:
    mask = np.asarray(right, dtype=bool)
    told = np.where(mask, LABELS, "other")
    losses = np.where(mask, loss, 3.0)
    return Answers(mask, losses, np.full(N, confidence), told)


def wrong(rows: Any) -> Any:
    mask = np.ones(N, dtype=bool)
    mask[list(rows)] = False
    return mask


def results(right: Any, margin: float = 0.1, size: int | None = 2**20, **changes: Any) -> MetricsFile:
    accuracy, numbers = float(np.mean(right)), {"log_loss": 0.1, "ece": 0.01}
    simple = Baseline(accuracy=accuracy - margin, margin=margin)
    told = {"accuracy": accuracy, "macro_f1": accuracy, "baseline": simple, "model_bytes": size, **numbers}
    return MetricsFile(**(told | changes))


def facts(right: Any, main: Any = None, **changes: Any) -> Facts:
    told: dict[str, Any] = {
        "validation": {"passed": True, "findings": []},
        "metrics": results(right),
        "labels": LABELS,
        "answers": answers(right),
        "latency": {"p95": 5.0, "blocks": [5.0] * 9},
    }
    if main is not None:
        told |= {
            "main_metrics": results(main),
            "main_answers": answers(main),
            "main_latency": {"p95": 5.0, "blocks": [5.0] * 9},
        }
    return Facts(**(told | changes))


@pytest.fixture
def judge(params: Callable[..., Params]) -> Callable[..., JudgedFile]:
    return lambda told, **changes: gates.judge(
        told, params(**{f"gates__{key}": value for key, value in changes.items()}).gates
    )


def gate(verdict: JudgedFile, name: str) -> GateRow:
    return next(found for found in verdict.gates if found.name == name)


def test_a_worse_model_fails_and_names_gate_numbers_and_classes(judge: Callable[..., JudgedFile]) -> None:
    damaged = [i for i in range(N) if LABELS[i] == "c3"][:60]
    verdict = judge(facts(wrong(damaged), wrong(range(4))))
    assert verdict.verdict == "fail"
    said = "; ".join(verdict.reasons)
    assert "85.00% against 99.00% of main: -14.00 points" in said
    assert "worse than main by more than the margin of -1.00 points" in said
    assert "class c3: recall 25.00%, 98.75% of main, floor 70.00%, at most -10.00 points asked for (80 examples)" in said


def test_without_a_discordant_image_a_small_test_set_shows_nothing(judge: Callable[..., JudgedFile]) -> None:
    few = slice(0, 100)
    mine, theirs = (
        Answers(*(getattr(answers(wrong([3]), loss), name)[few] for name in Answers.__dataclass_fields__))
        for loss in (0.1, 0.11)
    )
    told = facts(wrong([]), wrong([]), labels=LABELS[few], answers=mine, main_answers=theirs)
    found = gate(judge(told), "no_worse_than_main")
    assert found.outcome == "investigate"
    assert "100 test examples cannot show that it keeps the margin of -1.00 points" in found.sentence
    same = gate(
        judge(facts(wrong([]), wrong([]), labels=LABELS[few], answers=mine, main_answers=mine)), "no_worse_than_main"
    )
    assert same.outcome == "pass"
    assert "the very answers of main" in same.sentence


def busy(mine: list[float], main: list[float]) -> dict[str, Any]:
    return {"latency": {"p95": max(mine), "blocks": mine}, "main_latency": {"p95": max(main), "blocks": main}}


@pytest.mark.parametrize(
    ("changes", "name", "outcome"),
    [
        ({"metrics": results(wrong([]), macro_f1=0.75)}, "macro_f1", "investigate"),  # it has no interval
        ({"metrics": results(wrong([]), baseline=Baseline(accuracy=0.95, margin=-0.05))}, "baseline_margin", "fail"),
        (
            {"metrics": results(wrong([]), baseline=Baseline(accuracy=0.95, margin=-0.01))},
            "baseline_margin",
            "investigate",
        ),
        ({"metrics": results(wrong([]), size=200 * 2**20)}, "model_size", "fail"),
        ({"latency": {"p95": 80.0, "blocks": [80.0] * 9}}, "latency", "fail"),
        ({"latency": {"p95": 80.0, "blocks": [5.0] * 9}, "comparable": False}, "latency", "investigate"),
        (busy([80.0, 70.0] * 4, [75.0] * 8), "latency", "pass"),
        (busy([80.0] * 8, [70.0] * 8), "latency", "investigate"),
        ({"latency": {"p95": 15.0, "blocks": [15.0] * 9}}, "latency", "fail"),
        ({"latency": {"p95": 15.0, "blocks": [15.0] * 5 + [5.0] * 4}}, "latency", "investigate"),
        ({"latency": {"p95": 15.0, "blocks": [15.0] * 5 + [2.0] * 4}}, "latency", "pass"),  # a busy machine, no slow model
        (
            {"latency": {"p95": 5.9, "blocks": [5.9] * 9}, "main_latency": {"p95": 5.0, "blocks": [1.0] * 9}},
            "latency",
            "pass",
        ),
        ({"judging_changed": ["src/judging/gates.py"]}, "judging", "investigate"),
        ({"moved_inputs": ["src/model.py"]}, "stale_base", "investigate"),
        ({"budget": {"epochs": 5, "asked": 50}}, "budget", "investigate"),
        ({"answers": answers(wrong([]), loss=0.9)}, "log_loss", "fail"),
        ({"validation": {"passed": True, "findings": [{"level": "warn", "check": "drift"}]}}, "data_checks", "pass"),
    ],
)
def test_each_gate_decides(judge: Callable[..., JudgedFile], changes: dict[str, Any], name: str, outcome: str) -> None:
    verdict = judge(facts(wrong([]), wrong([]), **changes))
    assert gate(verdict, name).outcome == outcome
    assert verdict.verdict == outcome
    others = [found for found in verdict.gates if found.name != name and found.level == "enforce"]
    assert all(found.outcome in ("pass", "skipped") for found in others)


def test_a_floor_that_main_breaks_too_keeps_no_better_model_out_and_fails_no_equal_one(
    judge: Callable[..., JudgedFile],
) -> None:
    weak, weaker = wrong(range(120)), wrong(range(160))
    better = judge(facts(weak, weaker, metrics=results(weak, margin=-0.2)), max_class_drop=1, max_slice_drop=1)
    assert better.verdict == "pass"
    assert "under the floor of 80.00% (gates.min_accuracy), but nearer to it than main" in gate(better, "accuracy").sentence
    assert gate(better, "baseline_margin").outcome == "pass"
    equal = judge(facts(weak, weak, metrics=results(weak, margin=-0.2)))
    assert equal.verdict == "investigate"
    assert judge(facts(weak, wrong([]), metrics=results(weak, margin=-0.2))).verdict == "fail"
    assert judge(facts(weak, metrics=results(weak, margin=-0.2))).verdict == "fail"


@pytest.mark.parametrize(("errors", "outcome"), [(84, "investigate"), (130, "fail")])
def test_a_floor_fails_only_where_no_luck_explains_it(judge: Callable[..., JudgedFile], errors: int, outcome: str) -> None:
    assert gate(judge(facts(wrong(range(errors)))), "accuracy").outcome == outcome


@pytest.mark.parametrize(("lost", "outcome"), [(2, "pass"), (4, "pass"), (5, "investigate"), (17, "fail")])
def test_a_slice_asks_only_with_evidence_and_fails_only_beyond_its_limit(
    judge: Callable[..., JudgedFile], lost: int, outcome: str
) -> None:
    """Two of twenty lost are exactly the limit of ten points, four are over it by luck, five are not."""
    part = np.arange(N) < 20
    told = facts(wrong(range(lost)), wrong([]), slices={"dark": part}, labels=np.array(["c"] * N, dtype=object))
    found = gate(judge(told, max_slice_drop=0.1, min_slice_accuracy=0.0), "worst_slice")
    assert found.outcome == outcome
    assert found.value == pytest.approx(1 - lost / 20)
    assert found.main == 1.0


def test_log_loss_fails_only_as_surely_as_anything_else(judge: Callable[..., JudgedFile]) -> None:
    """A rise whose 90 % interval lies over the limit, and whose 99 % interval does not."""
    losses = np.full(N, 0.1)
    losses[:20] += 2.0
    mine, theirs = replace(answers(wrong([])), log_losses=losses), answers(wrong([]))
    found = gate(judge(facts(wrong([]), wrong([]), answers=mine, main_answers=theirs)), "log_loss")
    assert found.low is not None
    assert found.low > 0.05
    assert found.outcome == "investigate"


def test_calibration_is_judged_by_its_interval(judge: Callable[..., JudgedFile]) -> None:
    """A calibrated model has a gap over the limit by luck alone in 100 images, and is not asked about it."""
    random, outcomes, errors = np.random.default_rng(2), [], []
    for _ in range(40):
        sure = random.uniform(0.4, 1.0, 100)
        right = random.random(100) < sure
        told = Answers(right, np.where(right, 0.1, 3.0), sure, LABELS[:100])
        errors.append(metrics.calibration_gap(right, sure, 15))
        outcomes.append(gate(judge(Facts(answers=told)), "calibration").outcome)
    assert np.mean(np.array(errors) > 0.1) > 0.3
    assert outcomes.count("pass") >= 38
    assert outcomes.count("fail") == 0
    timid = facts(wrong([]), wrong([]), answers=answers(wrong([]), confidence=0.8))
    found = gate(judge(timid), "calibration")
    assert (found.outcome, found.level) == ("fail", "warn")
    assert judge(timid).verdict == "pass"
    assert judge(timid, levels__calibration="enforce").verdict == "fail"


def test_churn_beyond_what_accuracy_explains_asks_for_a_look(judge: Callable[..., JudgedFile]) -> None:
    verdict = judge(facts(wrong(range(40)), wrong(range(40, 80))), levels__churn="enforce")
    assert verdict.churn == 0.2
    assert gate(verdict, "churn").outcome == "investigate"
    better = judge(facts(wrong([]), wrong(range(80))))
    assert gate(better, "churn").outcome == "pass"


@pytest.mark.parametrize(("level", "verdict"), [("enforce", "fail"), ("warn", "pass"), ("off", "pass")])
def test_a_level_says_what_a_gate_may_do(judge: Callable[..., JudgedFile], level: str, verdict: str) -> None:
    heavy = facts(wrong([]), wrong([]), metrics=results(wrong([]), size=200 * 2**20))
    found = judge(heavy, levels__model_size=level)
    assert found.verdict == verdict
    assert ("model_size" in {one.name for one in found.gates}) == (level != "off")


def test_only_where_main_never_had_a_model_the_floors_decide(judge: Callable[..., JudgedFile]) -> None:
    verdict = judge(facts(wrong([]), main_never=True, why_no_main="main has no dvc.lock yet"))
    assert verdict.verdict == "pass"
    assert not verdict.baseline
    assert verdict.anchor_moves
    assert "no model of your own to compare with yet (main has no dvc.lock yet): floors only" in verdict.reasons[-1]
    for name in ("no_worse_than_main", "no_worse_than_anchor", "test_set", "log_loss", "churn"):
        assert (gate(verdict, name).outcome, gate(verdict, name).sentence) == ("skipped", "main has no dvc.lock yet")
    assert judge(facts(wrong(range(200)), main_never=True)).verdict == "fail"


def test_the_first_rules_of_a_repository_are_told_and_a_changed_engine_is_held(judge: Callable[..., JudgedFile]) -> None:
    first = {"main_never": True, "first_rules": ["params.yaml: gates"]}
    verdict = judge(facts(wrong([]), **first))
    assert verdict.verdict == "pass"
    assert "judged by the first rules of your own (params.yaml: gates)" in gate(verdict, "judging").sentence
    assert judge(facts(wrong([]), **first, judging_changed=["src/judging/gates.py"])).verdict == "investigate"


def test_a_model_of_main_that_cannot_be_had_is_no_reason_to_pass(judge: Callable[..., JudgedFile]) -> None:
    verdict = judge(facts(wrong([]), why_no_main="the artifact has expired"))
    assert verdict.verdict == "investigate"
    assert "main has a model, but it could not be compared with (the artifact has expired): make it" in verdict.reasons[0]
    assert "floors only" not in " ".join(verdict.reasons)
    lost = judge(facts(wrong([]), wrong([]), why_no_anchor="no store has it", anchor_commit="abcdef012345"))
    assert lost.verdict == "investigate"
    assert "the best champion so far (abcdef0) could not be compared with (no store has it)" in lost.reasons[0]
    assert not lost.anchor_moves
    known = gate(verdict, "test_set")
    assert (known.outcome, known.sentence) == (
        "investigate",
        "main's labels and test examples are not known, as its model is not",
    )


def test_labels_and_test_images_that_are_gone_ask_for_a_look(judge: Callable[..., JudgedFile]) -> None:
    gone: dict[str, Any] = {
        "labels_gone": ["owl"],
        "labels_added": ["eagle"],
        "left_test": ExamplesLeft(examples=50, of=400, main_right=12, names=["owl/1.png (owl)", "owl/2.png (owl)"]),
        "relabelled": ExamplesLeft(examples=3, names=["cat/7.png (cat)"]),
    }
    verdict = judge(facts(wrong([]), wrong([]), **gone))
    assert verdict.verdict == "investigate"
    said = (
        "labels are gone or renamed: owl; 50 of main's 400 test examples are no longer tested, of which main's model had 12 "
        "right (owl/1.png (owl), owl/2.png (owl)); 3 test examples have another label than on main (cat/7.png (cat)); "
        "labels are new: eagle"
    )
    assert verdict.reasons == [said]
    for key, value in {**gone, "split_rules": ["digest-1", "digest-2"]}.items():
        alone = judge(facts(wrong([]), wrong([]), **{key: value}))
        assert alone.verdict == ("pass" if key == "labels_added" else "investigate")
    assert "the split is drawn by the rule digest-2, and main's by digest-1" in alone.reasons
    new = gate(judge(facts(wrong([]), wrong([]), labels_added=["eagle"])), "test_set")
    assert (new.outcome, new.sentence) == ("pass", "labels are new: eagle")
    left = ExamplesLeft(examples=388, of=388, main_right=385, why="its copy cannot be read")
    said = gate(judge(facts(wrong([]), wrong([]), left_test=left)), "test_set").sentence
    assert "of which main's model had 385 right; its copy cannot be read" in said
    nothing = ExamplesLeft(of=400, main_right=0)
    assert gate(judge(facts(wrong([]), wrong([]), left_test=nothing)), "test_set").outcome == "pass"


def test_a_label_that_main_does_not_know_flatters_nobody(judge: Callable[..., JudgedFile]) -> None:
    """Main has every image of c4 wrong, for it has no such label; on the others the candidate is far worse."""
    shared = LABELS != "c4"
    told = facts(wrong(np.flatnonzero(shared)[:30]), wrong(np.flatnonzero(~shared)), shared=shared)
    verdict = judge(told, min_class_recall=0, min_slice_accuracy=0)
    found = gate(verdict, "no_worse_than_main")
    assert found.outcome == "fail"
    assert found.sentence.startswith("on the 320 examples whose label main's model knows: accuracy 90.62% against 100.00%")
    assert found.sentence.endswith("; 92.50% on all 400")
    assert gate(verdict, "log_loss").outcome == "fail"
    assert verdict.mcnemar is not None
    assert verdict.mcnemar.only_candidate_right == 0
    renamed = judge(facts(wrong([]), wrong(range(N)), shared=np.zeros(N, dtype=bool)))
    assert renamed.verdict == "investigate"
    assert "no label that main's model knows" in renamed.reasons[0]


def test_easy_test_images_that_are_new_hide_no_loss_on_mains_own(judge: Callable[..., JudgedFile]) -> None:
    old = np.arange(N) < 100
    verdict = judge(facts(wrong(range(6)), wrong([]), tested_before=old), max_accuracy_drop=0.03)
    assert gate(verdict, "test_set").outcome == verdict.verdict == "investigate"
    said = "300 test examples are new; on the 100 of main this model looks worse: accuracy 94.00% against 100.00% of main"
    assert said in verdict.reasons
    for mine, before in ((wrong(range(6)), ~np.zeros(N, dtype=bool)), (wrong(range(150, 156)), old)):
        told = facts(mine, wrong([]), tested_before=before)
        assert gate(judge(told, max_accuracy_drop=0.03), "test_set").outcome == "pass"


def test_a_label_that_main_does_not_know_lowers_no_floor(judge: Callable[..., JudgedFile]) -> None:
    """Main has half of the images wrong, for their labels are new: that is no reason to be content with 60 %."""
    new = (LABELS == "c4") | (np.arange(N) < 150)
    told = facts(wrong(range(160)), wrong(np.flatnonzero(new)), shared=~new)
    verdict = judge(told, min_class_recall=0, min_baseline_margin=0.2)
    for name in ("accuracy", "macro_f1", "baseline_margin"):
        found = gate(verdict, name)
        assert (found.outcome, found.main) == ("investigate" if name == "macro_f1" else "fail", None), name
        assert "than main" not in found.sentence


def test_a_small_loss_against_main_is_judged_against_the_best_champion_too(judge: Callable[..., JudgedFile]) -> None:
    losing = facts(wrong(range(12)), wrong(range(12)), anchor_answers=answers(wrong([])), anchor_commit="abcdef012345")
    verdict = judge(losing)
    assert gate(verdict, "no_worse_than_main").outcome == "pass"
    assert gate(verdict, "no_worse_than_anchor").outcome == verdict.verdict == "investigate"
    assert "against 100.00% of the best champion so far (abcdef0): -3.00 points" in verdict.reasons[0]
    worse = replace(losing, answers=answers(wrong(range(40))), metrics=results(wrong(range(40))))
    assert judge(worse, max_accuracy_drop=0.1).verdict == "fail"
    assert judge(facts(wrong([]), wrong([]))).anchor_moves


@pytest.mark.parametrize(("won", "lost", "moves"), [(6, 0, True), (5, 0, False), (12, 4, False), (0, 0, False)])
def test_the_anchor_moves_only_to_a_surely_better_model(
    judge: Callable[..., JudgedFile], won: int, lost: int, moves: bool
) -> None:
    verdict = judge(facts(wrong(range(lost)), wrong([]), anchor_answers=answers(wrong(range(100, 100 + won)))))
    assert verdict.anchor_moves == moves


def test_each_further_model_of_a_pull_request_needs_more_evidence(judge: Callable[..., JudgedFile]) -> None:
    told = facts(wrong([4]), wrong(range(4)))
    first, third = judge(told), judge(replace(told, looks=3, models_judged=50, judged_since="2026-05-01"))
    assert gate(first, "no_worse_than_main").outcome == "pass"
    assert "one-sided 4.6%, of 5% for all models of one pull request" in gate(first, "no_worse_than_main").sentence
    assert gate(third, "no_worse_than_main").outcome == "investigate"
    assert first.evidence is not None
    assert third.evidence is not None
    assert (first.evidence.looks, first.evidence.models_judged) == ("", "")
    assert third.evidence.looks.startswith("third model of this pull request on these examples")
    judged = "50 models have been judged on these examples since 2026-05-01: expect the best of them to be too good by up to"
    assert third.evidence.models_judged == f"{judged} 1.0 points"
    assert sum(gates._alpha(look, 0.05) for look in range(1, 10_000)) == pytest.approx(0.05, abs=1e-6)


def test_the_margin_that_the_examples_vouch_for_is_that_of_the_table() -> None:
    """docs/gates.md: 80 % of equal models keep it, one-sided at 5 %."""
    for n, differ, points in ((388, 0.03, 2.4), (1000, 0.03, 1.4), (1000, 0.1, 2.5), (388, 0.015, 1.8)):
        half = n * differ / 2
        found = significance.margin_of_equals(significance.Pairs(n, half, half), 0.95)
        assert found * 100 == pytest.approx(points, abs=0.15)


def test_a_failed_pipeline_and_bad_data_fail_and_nothing_to_judge_is_no_pass(judge: Callable[..., JudgedFile]) -> None:
    crashed = judge(Facts(failed="train"))
    assert (crashed.verdict, crashed.gates[0].name) == ("fail", "pipeline")
    assert "stage train" in crashed.reasons[0]
    bad = judge(Facts(failed="validate", validation={"passed": False, "findings": [{"level": "error", "check": "leakage"}]}))
    assert "the data failed: leakage" in bad.reasons
    everything_off = {f"levels__{name}": "off" for name in ("data_checks", "judging", "stale_base", "budget")}
    assert judge(Facts(), **everything_off).verdict == "investigate"


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"validation": None}, "data_checks", "the data were not validated"),
        ({"latency": None}, "latency", "latency was not measured"),
        ({"metrics": results(wrong([]), size=None)}, "model_size", "the size of model.onnx is not known"),
        ({"metrics": results(wrong([]), baseline=None)}, "baseline_margin", "metrics.json has no baseline"),
        ({"main_answers": None, "why_no_main": "the store is down"}, "log_loss", "(the store is down)"),
        ({"main_answers": None, "why_no_main": "the store is down"}, "churn", "(the store is down)"),
    ],
)
def test_a_gate_whose_input_is_absent_asks_for_a_look(
    judge: Callable[..., JudgedFile], changes: dict[str, Any], name: str, words: str
) -> None:
    found = gate(judge(facts(wrong([]), wrong([]), **changes)), name)
    assert (found.outcome, words in found.sentence) == ("investigate", True)


@pytest.mark.parametrize(("won", "lost", "n"), [(5, 3, 400), (0, 0, 100), (0, 9, 400)])
def test_verdict_and_interval_agree(won: int, lost: int, n: int) -> None:
    found = significance.Pairs(n, won, lost)
    low, high = significance.score_interval(found, 0.9)
    assert significance.score(found, -low) == pytest.approx(significance.quantile(0.95), abs=1e-4)
    assert significance.score(found, -high) == pytest.approx(-significance.quantile(0.95), abs=1e-4)
    assert (significance.score(found, 0.01) >= significance.quantile(0.95)) == (low >= -0.01)


def test_the_score_is_that_of_the_most_likely_shares() -> None:
    """Tango's variance, against a search for the shares that make the counts most likely under the margin."""
    n, won, lost, margin = 200, 4, 9, 0.02
    shares = np.linspace(1e-6, 1 - margin, 400_001) + margin
    likelihood = (
        won * np.log(shares - margin)
        + lost * np.log(shares)
        + (n - won - lost) * np.log(np.maximum(1 + margin - 2 * shares, 1e-12))
    )
    share = shares[np.argmax(likelihood)]
    expected = (won - lost + n * margin) / np.sqrt(n * (2 * share - margin - margin**2))
    assert significance.score(significance.Pairs(n, won, lost), margin) == pytest.approx(expected, abs=1e-3)


def test_the_paired_bootstrap_is_the_one_of_resampled_images() -> None:
    random = np.random.default_rng(5)
    mine, theirs = random.random(300) < 0.9, random.random(300) < 0.87
    rows = random.integers(0, 300, (4000, 300))
    drawn = (mine[rows].mean(axis=1)) - (theirs[rows].mean(axis=1))
    expected = np.quantile(drawn, [0.025, 0.975])
    assert significance.paired_interval(mine, theirs, 0.95, 4000) == pytest.approx(expected, abs=0.005)


def test_mcnemar_and_holm_agree_with_their_definitions() -> None:
    mine, theirs = wrong([0, 1, 2, 3, 4, 5]), wrong([10])
    assert significance.mcnemar(mine, theirs) == {"only_main_right": 6, "only_candidate_right": 1, "p": 0.125}
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


# More evidence: folds and seeds


def trainings(seeds: int, examples: int, lost: int = 0, rate: float = 0.97) -> Trainings:
    """Two recipes that agree but for `lost` examples, which the candidate has wrong with each seed."""
    right = np.random.default_rng(8).random(examples) < rate
    mine = right.copy()
    mine[np.flatnonzero(right)[:lost]] = False
    return Trainings(np.tile(mine, (seeds, 1)), np.tile(right, (seeds, 1)))


# the candidate has 4 errors, main 4 others: 400 examples cannot tell
CLOSE = facts(wrong(range(4)), wrong(range(100, 104)))


def test_folds_and_seeds_settle_what_the_test_split_cannot(judge: Callable[..., JudgedFile]) -> None:
    assert gate(judge(CLOSE), "no_worse_than_main").outcome == "investigate"
    found = gate(judge(replace(CLOSE, folds=trainings(1, 1200))), "no_worse_than_main")
    assert found.outcome == "pass"
    assert "over 1600 examples of test split and folds +0.00 points" in found.sentence
    seeds = replace(CLOSE, seeds=trainings(3, 400, lost=1))
    for told, kind, examples in (
        (CLOSE, "test", 400),
        (replace(CLOSE, folds=trainings(1, 1200)), "folds", 1600),
        (seeds, "seeds", 400),
        (replace(seeds, folds=trainings(3, 1200)), "folds and seeds", 1600),
    ):
        evidence = judge(told).evidence
        assert evidence is not None
        assert (evidence.kind, evidence.examples) == (kind, examples)


def test_folds_find_the_worse_recipe_and_do_not_excuse_the_worse_model(judge: Callable[..., JudgedFile]) -> None:
    assert gate(judge(replace(CLOSE, folds=trainings(1, 1200, lost=60))), "no_worse_than_main").outcome == "fail"
    for errors, outcome in ((10, "investigate"), (30, "fail")):
        worse = facts(wrong(range(errors)), wrong([]), folds=trainings(1, 20_000))
        found = gate(judge(worse), "no_worse_than_main")
        assert found.outcome == outcome
        assert "but this very model" in found.sentence


def test_pooled_seeds_count_an_example_by_its_share_and_trainings_that_are_worse_as_a_whole() -> None:
    right = np.ones((4, 100), dtype=bool)
    some = right.copy()
    some[:2, :10] = False
    found = significance.pooled(some, right)
    assert (found.won, found.lost, found.difference) == (0, 5, -0.05)
    assert found.unit == pytest.approx((1 + 10 * 0.25) / (1 + 5))
    assert found.between > 0  # two trainings lose the same ten examples, two lose none
    one = significance.pooled(some[:1], right[:1])
    assert one == significance.pairs(some[0], right[0]) == significance.Pairs(100, 0, 10)
    # nothing seen over several seeds is no certainty either
    assert significance.score(significance.pooled(right[:3], right[:3]), 0.01) < 1.01


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "answers": answers(wrong(range(8))),
                "main_answers": answers(wrong(range(100, 108))),
                "training_examples": 2800,
            },
            "train.folds: 5 (6 trainings in all, and as many of main unless it has them) or about 2,",
        ),
        (
            {"training_examples": 0},
            "train.repeats: 5 (5 trainings in all, and as many of main unless it has them) or about 877 more test examples",
        ),
        (
            {"training_examples": 1200, "folds": trainings(1, 1200, lost=9)},
            "train.repeats: 10 (60 trainings in all, and as many of main unless it has them) or about ",
        ),
        ({"training_examples": 1200, "same_training": False}, "about 877 more test examples would most likely"),
        ({"answers": answers(wrong(range(8))), "training_examples": 9000}, "a better model will"),
    ],
)
def test_a_verdict_that_cannot_tell_names_the_cheapest_way_out(
    judge: Callable[..., JudgedFile], changes: dict[str, Any], words: str
) -> None:
    evidence = judge(replace(CLOSE, **changes)).evidence
    assert evidence is not None
    assert words in evidence.way_out
    assert changes.get("same_training", True) or "train." not in evidence.way_out
    without_margin = judge(CLOSE, max_accuracy_drop=0.0)
    assert gate(without_margin, "no_worse_than_main").outcome == "investigate"
    assert without_margin.evidence is not None
    assert "more evidence will hardly settle it" in without_margin.evidence.way_out
    settled = judge(facts(wrong([]), wrong(range(60)))).evidence
    assert settled is not None
    assert settled.way_out == ""
