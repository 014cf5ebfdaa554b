"""What the gate promises, by simulation with its own functions.

python -m pytest tests/judging/test_gates_simulated.py -m slow

The model of reality: each example has a hardness, and a model answers it rightly where hardness and the model's own luck,
both normal, are over a threshold. Two equally good models of 97 % then differ on as many examples as one of them has wrong.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from conftest import ROOT
from numpy.typing import NDArray
from scipy.stats import binom, norm

from src.core import significance
from src.judging import gates
from src.judging.gates import Answers, Facts, Trainings
from src.system.params import load

PARAMS = load(ROOT / "params.yaml").gates
SHARED = 0.836  # of the variance: at 97 % two models differ on 3 % of the examples
TEST, TRAINING = 388, 1135
MARGIN = 0.01


@dataclass
class World:
    """Draws examples, and models that answer them."""

    random: np.random.Generator

    def hardness(self, *shape: int) -> NDArray[np.float64]:
        return self.random.standard_normal(shape)

    def models(self, hardness: NDArray[np.float64], accuracy: float, count: int = 1) -> NDArray[np.bool_]:
        """Return the right answers of `count` models of one recipe, bool of shape (count, *hardness.shape)."""
        own = self.random.standard_normal((count, *hardness.shape))
        return np.sqrt(SHARED) * hardness + np.sqrt(1 - SHARED) * own > norm.ppf(1 - accuracy)


def answers(right: NDArray[np.bool_], salt: int) -> Answers:
    """Make answers of which only right and wrong matters; `salt` keeps two models from being one."""
    return Answers(right, np.full(len(right), 0.1 + salt * 1e-6), np.full(len(right), 0.97), np.where(right, 0, 1 + salt))


def outcome(mine: NDArray[np.bool_], main: NDArray[np.bool_], **more: object) -> str:
    facts = Facts(answers=answers(mine, 1), main_answers=answers(main, 2), **more)  # type: ignore[arg-type]
    return gates._no_worse(facts, PARAMS).outcome


def green(won: NDArray[np.float64], lost: NDArray[np.float64], n: int, margin: float, alpha: float) -> NDArray[np.bool_]:
    """Judge many pairs at once, as `_non_inferior` does."""
    return significance.tango(won, lost, n, margin) >= significance.quantile(1 - alpha)


@pytest.mark.journey
@pytest.mark.parametrize("n", [100, 150, 200, 300, 388, 600, 1000, 1558, 3000])
def test_a_model_at_the_margin_is_green_in_few_cases_at_every_size(n: int) -> None:
    """Exact, over all numbers of examples that were won and lost."""
    alpha, worst = gates._alpha(1, 1 - PARAMS.pass_confidence), 0.0
    for differ in np.concatenate([np.linspace(MARGIN, 0.05, 17), np.linspace(0.06, 0.2, 8)]):
        discordant = np.arange(int(binom.ppf(1 - 1e-8, n, differ)) + 2)[:, np.newaxis]
        won = np.arange(discordant[-1, 0] + 1)[np.newaxis]
        chance = binom.pmf(discordant, n, differ) * binom.pmf(won, discordant, (differ - MARGIN) / 2 / differ)
        lost = np.maximum(discordant - won, 0)
        passed = green(np.minimum(won, discordant).astype(float), lost.astype(float), n, MARGIN, alpha)
        worst = max(worst, float((chance * passed).sum()))
    assert worst <= 0.055


@pytest.mark.journey
def test_an_equal_model_is_green_with_folds_and_three_seeds_and_one_at_the_margin_is_not() -> None:
    world, streams = World(np.random.default_rng(3)), 1500
    share = {}
    for drop in (0.0, MARGIN):
        words = []
        for _ in range(streams):
            (my_test, main_test), (my_folds, main_folds) = (
                [world.models(hard, accuracy, 3) for accuracy in (0.97 - drop, 0.97)]
                for hard in (world.hardness(TEST), world.hardness(TRAINING))
            )
            more = {"folds": Trainings(my_folds, main_folds), "seeds": Trainings(my_test, main_test)}
            words.append(outcome(my_test[0], main_test[0], **more))
        share[drop] = words.count("pass") / streams
    assert share[0.0] >= 0.95
    assert share[MARGIN] <= 0.055


@pytest.mark.journey
def test_ten_pushes_of_a_worse_model_find_no_way_through() -> None:
    world, streams, looks = World(np.random.default_rng(3)), 3000, 10
    alphas = [gates._alpha(look, 1 - PARAMS.pass_confidence) for look in range(1, looks + 1)]
    hard = world.hardness(streams, TEST)
    main = world.models(hard, 0.97)[0]
    through = np.zeros(streams, dtype=bool)
    for alpha in alphas:
        mine = world.models(hard, 0.97 - MARGIN)[0]
        through |= green((mine & ~main).sum(axis=1) * 1.0, (main & ~mine).sum(axis=1) * 1.0, TEST, MARGIN, alpha)
    assert through.mean() <= 0.05


@pytest.mark.journey
@pytest.mark.parametrize("n", [TEST, 3000])
@pytest.mark.parametrize("fresh", [False, True])
def test_fifty_small_losses_do_not_add_up(n: int, fresh: bool) -> None:
    """Green ones are merged; the anchor is the best champion so far. On fresh examples luck does not lock the door."""
    world, streams = World(np.random.default_rng(n + fresh)), 40
    alpha, plain = gates._alpha(1, 1 - PARAMS.pass_confidence), 1 - PARAMS.pass_confidence
    hard = world.hardness(streams, n)
    level = np.full(streams, 0.97)
    anchor_level = level.copy()
    main = anchor = models(world, hard, level)
    for _ in range(50):
        if fresh:
            hard = world.hardness(streams, n)
            main, anchor = models(world, hard, level), models(world, hard, anchor_level)
        mine = models(world, hard, level - 0.003)
        merged = judged(mine, main, MARGIN, alpha) & judged(mine, anchor, PARAMS.max_total_drop, plain)
        moves = merged & judged(mine, anchor, 0.0, 1 - gates._ANCHOR_MOVES)
        level = np.where(merged, level - 0.003, level)
        main = np.where(merged[:, np.newaxis], mine, main)
        anchor, anchor_level = np.where(moves[:, np.newaxis], mine, anchor), np.where(moves, level, anchor_level)
    assert 0.97 - level.mean() <= 0.02


def models(world: World, hard: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    own = world.hardness(*hard.shape)
    return np.sqrt(SHARED) * hard + np.sqrt(1 - SHARED) * own > norm.ppf(1 - levels)[:, np.newaxis]


def judged(mine: NDArray[np.bool_], other: NDArray[np.bool_], margin: float, alpha: float) -> NDArray[np.bool_]:
    won, lost = (mine & ~other).sum(axis=1) * 1.0, (other & ~mine).sum(axis=1) * 1.0
    return green(won, lost, mine.shape[1], margin, alpha)
