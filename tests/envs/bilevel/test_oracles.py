"""Known answers of the penalised bilevel problem, found by the engine that trains models."""

from typing import Any

import numpy as np
import pytest

from mixgym.envs.bilevel.copies import Gradients, Values
from mixgym.envs.bilevel.estimation import StepData
from mixgym.envs.bilevel.rule import BilevelStep
from mixgym.envs.bilevel.two_model_estimators import Paired
from mixgym.envs.learners.pairing import Tensors
from mixgym.envs.random_streams import stream

from .problems import Affine, AffineRule, Array, Bowls, Regression, bilevel, run

BEST = np.array([0.3578336557, -1.4661508704])
BEST_VALUE = 0.763810444874
PENALISED = {
    1: (0.3054425229, -1.4191251272),
    10: (0.3519822101, -1.4642792462),
    100: (0.3572407416, -1.4660139098),
    1000: (0.3577742841, -1.4661377122),
}


def affine(steps: int, alpha: float, **options: Any) -> tuple[Affine, BilevelStep]:
    made = {name: options.pop(name) for name in ("lag",) if name in options}
    model = Affine(steps, alpha, **made)
    rule = bilevel(model, steps, 0.05, AffineRule, **{"alpha": alpha, "check": False} | options)
    model.now = lambda: rule.weights
    return model, rule


# A: a quadratic problem


def test_the_exact_solution() -> None:
    assert Affine.upper(BEST) == pytest.approx(BEST_VALUE, abs=1e-9)
    for shift in np.eye(2) * 1e-3:
        assert Affine.upper(BEST + shift) > BEST_VALUE < Affine.upper(BEST - shift)


@pytest.mark.parametrize("alpha", PENALISED)
def test_a_pair_finds_the_penalised_solution(alpha: int) -> None:
    model, rule = affine(550, alpha)
    run(rule, model, 550)
    np.testing.assert_allclose(rule.logits, PENALISED[alpha], atol=1e-8, rtol=0)


def test_the_bias_falls_like_one_over_alpha() -> None:
    bias = [alpha * np.linalg.norm(np.array(PENALISED[alpha]) - BEST) for alpha in (100, 1000)]
    assert bias[0] == pytest.approx(bias[1], rel=0.02)


def test_two_copies_have_a_bias_of_second_order() -> None:
    scaled = []
    for alpha in (10, 100):
        model, rule = affine(1200, alpha, estimator="central")
        run(rule, model, 1200)
        scaled.append(alpha**2 * np.linalg.norm(rule.logits - BEST))
    assert scaled == pytest.approx([0.0535, 0.0528], rel=0.01)


@pytest.mark.parametrize("lam", [(0.0, 0.0), (0.3, -1.5), (-2.0, 1.0)])
def test_the_gradient_is_that_of_the_penalised_value(lam: tuple[float, float]) -> None:
    """Envelope: at the two inner minima, alpha (dL2(w) - dL2(u)) + rho lambda."""
    alpha, h, c = 10.0, Affine.H, Affine.C

    def minima(lam: Array) -> tuple[Array, Array]:
        centre = c @ lam + Affine.b
        pulled = np.linalg.solve(np.eye(3) + alpha * h, Affine.a + alpha * h @ centre)
        return pulled, centre

    def value(lam: Array) -> float:
        w, centre = minima(lam)
        upper = 0.5 * (w - Affine.a) @ (w - Affine.a) + 0.5 * Affine.rho * lam @ lam
        return float(upper + 0.5 * alpha * (w - centre) @ h @ (w - centre))

    at = np.array(lam)
    w, u = minima(at)
    found = alpha * (-c.T @ h @ (w - u)) + Affine.rho * at
    step = 1e-5
    wanted = [(value(at + step * e) - value(at - step * e)) / (2 * step) for e in np.eye(2)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_lagging_model_diverges() -> None:
    """Half of the learning rate for u alone: alpha multiplies the mismatch."""
    for alpha, diverges in ((1, False), (10, True), (100, True)):
        model, rule = affine(150, alpha, lag=0.5)
        run(rule, model, 150)
        assert bool(np.abs(rule.logits).max() > 1e6) is diverges


def test_one_draw_of_blocks_converges() -> None:
    model, rule = affine(6000, 10, blocks=1)
    run(rule, model, 6000)
    assert np.sqrt(np.mean((rule.logits - PENALISED[10]) ** 2)) < 1e-10


class OwnDraws(Values):
    """A copy that trains blocks of its own draw: what the rule never does."""

    turn = 0

    def gather(self, gradients: Gradients, parameters: Tensors, alpha: float) -> Gradients:
        chosen = int(stream(1, "other", str(self.turn // 20)).integers(3))
        self.turn += 1
        return {f"blocks.{chosen}.x": gradients[f"blocks.{chosen}.x"]}


class OneBlock(Affine):
    """Trains one block of a draw of its own."""

    def apply(self) -> float:
        chosen = int(stream(2, "own", str(self.done // 20)).integers(3))
        for index, parameter in enumerate(self.parameters().values()):
            if index != chosen:
                parameter.grad = None
        return super().apply()


def test_a_draw_of_blocks_for_each_diverges() -> None:
    model = OneBlock(1500, 10)
    rule = bilevel(model, 1500, 0.05, AffineRule, alpha=10, check=False)
    rule._estimator = Paired(rule.options, lambda m: OwnDraws(m, m.parameters()))
    run(rule, model, 1500)
    assert np.abs(rule.logits).max() > 1e6


@pytest.mark.parametrize("alpha", [10, 1000])
def test_a_stored_difference_is_the_same_pair(alpha: int) -> None:
    paths = []
    for storage in ("full", "difference"):
        model, rule = affine(550, alpha, storage=storage)
        run(rule, model, 100)
        paths.append((rule.logits, model.x))
    np.testing.assert_allclose(paths[0][0], paths[1][0], rtol=1e-9)
    np.testing.assert_allclose(paths[0][1], paths[1][1], rtol=1e-9)


@pytest.mark.parametrize(
    ("reach", "lost"), [(0.1, 0.241), (0.3, 0.0141), (0.5, 0.0035), (1.0, 0.0193)]
)
def test_what_looking_ahead_loses(reach: float, lost: float) -> None:
    """The inverse curvature is taken for ``reach`` times the identity."""
    for estimator in ("lookahead", "alignment"):
        model, rule = affine(1500, 10.0, estimator=estimator, every=1, derivative="difference")
        options = rule.options.model_copy(update={"horizon": reach / model.base_rate})
        rule.options = options
        rule.reset()
        run(rule, model, 1500)
        assert Affine.upper(rule.logits) - BEST_VALUE == pytest.approx(lost, rel=0.02)


# B: softmax over quadratic sources


@pytest.mark.parametrize(
    ("estimator", "alpha"),
    # at alpha = 1 the copy that is pushed away from validation has no minimum
    [("paired", 1), ("paired", 10), ("paired", 100), ("central", 10), ("central", 100)],
)
def test_bowls_of_one_shape_have_no_bias(estimator: str, alpha: int) -> None:
    model = Bowls((1, 1), (1, 1, 1), 1800, alpha)
    rule = bilevel(model, 1800, 0.02, alpha=alpha, estimator=estimator, check=False)
    run(rule, model, 1800)
    np.testing.assert_allclose(rule.weights, [0.5, 0.25, 0.25], atol=1e-6)


def test_a_useless_source_falls_like_one_over_the_steps() -> None:
    model = Bowls((3, 3), (1, 1, 1), 4000, 10)
    rule = bilevel(model, 4000, 0.02, alpha=10, check=False)
    for steps, product in ((500, 8.79), (500, 8.97), (1000, 9.07)):
        run(rule, model, steps)
        assert rule.weights[0] * model.done == pytest.approx(product, abs=0.02)
        assert rule.weights[0] < 10 / model.done
        assert rule.weights[1] == pytest.approx(rule.weights[2])


@pytest.mark.parametrize(("alpha", "wanted"), [(1, 0.051192), (10, 0.056722), (100, 0.058570)])
def test_bowls_of_several_shapes(alpha: int, wanted: float) -> None:
    model = Bowls((3, 3), (1, 0.25, 4), 2500, alpha)
    rule = bilevel(model, 2500, 0.02, alpha=alpha, check=False)
    run(rule, model, 2500)
    assert rule.weights[2] == pytest.approx(wanted, abs=8e-4)


class Alone(Paired):
    """Without u: the loss of w instead of the difference."""

    def step(self, task: StepData) -> Any:
        self.begin(task.model)
        sums = self._pull(task, task.model.parameters(), self._copies[0], 1.0)[0]
        measured = super().step(task)
        return type(measured)(measured.result, measured.present, task.alpha * sums[:, 0])


def test_without_u_the_weights_go_where_the_loss_is_low() -> None:
    model = Bowls((3, 3), (1, 0.25, 4), 1000, 10)
    rule = bilevel(model, 1000, 0.02, alpha=10)
    rule._estimator = Alone(rule.options, lambda m: Values(m, m.parameters()))
    run(rule, model, 1000)
    assert rule.weights[2] < 1e-3  # it should be 0.0567
    assert rule.weights.max() > 0.99


def test_a_lagging_softmax_pair_ends_elsewhere() -> None:
    ends = []
    for lag in (0.5, 0.1):
        model = Bowls((1, 1), (1, 1, 1), 1500, 10, lag=lag)
        rule = bilevel(model, 1500, 0.02, alpha=10, check=False)
        run(rule, model, 1500)
        ends.append(rule.weights[0])
    assert ends[0] == pytest.approx(0.5, abs=1e-3)
    assert abs(ends[1] - 0.5) > 0.2  # it circles


# C: regression on sources with spoilt answers

FLIPPED = (0.0, 0.0, 1.0, 1.0)
BLANKED = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0)


def regression(rates: tuple[float, ...], kind: str, seed: int, **options: Any) -> Any:
    """800 steps of AdamW on batches of 16 rows a source."""
    steps = 800
    model = Regression(rates, kind, seed, steps, 0.02, batch=16, adam=True)
    defaults = {"alpha": 10, "update": "adam", "travel": 20.0, "check": False}
    return model, bilevel(model, steps, 1, **defaults | options), steps


@pytest.mark.parametrize("estimator", ["alignment", "lookahead", "lazy_pair", "paired", "central"])
def test_flipped_answers_lose_their_weight(estimator: str) -> None:
    model, rule, steps = regression(FLIPPED, "flip", 0, estimator=estimator)
    run(rule, model, steps)
    assert rule.weights[2:].sum() < 0.05
    assert model.upper(rule.weights) < 1.6 * model.best()
    assert model.upper(np.full(4, 0.25)) > 10 * model.best()


@pytest.mark.parametrize(("estimator", "seed"), [("lookahead", 0), ("paired", 1)])
def test_blanked_answers_lose_their_weight(estimator: str, seed: int) -> None:
    model, rule, steps = regression(BLANKED, "blank", seed, estimator=estimator)
    run(rule, model, steps)
    assert rule.weights.argmax() == 0
    assert rule.weights[0] > 0.9
    assert model.upper(rule.weights) < 1.6 * model.best()


def test_without_u_blank_answers_win() -> None:
    """The regression test of choice: blank answers are the easiest to fit."""
    model, rule, steps = regression(BLANKED, "blank", 0)
    rule._estimator = Alone(rule.options, lambda m: Values(m, m.parameters()))
    run(rule, model, steps)
    assert rule.weights[5:].sum() > 0.9
    assert model.upper(rule.weights) > 10 * model.best()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_full_batches_reach_the_exact_answer(seed: int) -> None:
    model = Regression(FLIPPED, "flip", seed, 20_000, 0.3)
    rule = bilevel(model, 20_000, 2.0, alpha=10, check=False)
    run(rule, model, 20_000)
    assert rule.weights[2:].sum() < 0.02
    assert model.upper(rule.weights) < 1.03 * model.best()
