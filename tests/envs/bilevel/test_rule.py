import multiprocessing
import socket
from typing import Any

import numpy as np
import pytest
import torch

from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.bilevel.rule import BilevelStep
from mixgym.envs.bilevel.two_model_estimators import make_estimator
from mixgym.envs.errors import ConfigError
from mixgym.envs.ranks import summed
from mixgym.envs.spaces.mixture import Mixture

from .problems import Bowls, Regression, bilevel, run

NAMES = ("a", "b", "c")


def rule_of(natural: tuple[float, ...] = (1.0, 2.0, 1.0), **options: Any) -> BilevelStep:
    return BilevelStep(BilevelOptions.model_validate(options), NAMES, np.array(natural), 0)


# options


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf")])
def test_the_penalty_is_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        BilevelOptions(alpha=alpha)


def test_options_that_do_not_fit_together() -> None:
    with pytest.raises(ValueError, match=r"storage=top is for estimators with a second model"):
        BilevelOptions(estimator="lookahead", storage="top")
    with pytest.raises(ValueError, match=r"pair_steps=9 does not fit between updates every 4"):
        BilevelOptions(estimator="lazy_pair", pair_steps=9, every=4)


def test_one_source_has_no_weights() -> None:
    with pytest.raises(ConfigError, match="1 source is trained on"):
        rule_of((0.0, 2.0, 0.0))


@pytest.mark.parametrize(
    ("options", "v", "cost"),
    [
        ({"estimator": "paired"}, 1.0, 3.0),
        ({"estimator": "central"}, 1.0, 5.0),
        ({"estimator": "paired", "look": "even", "every": 10}, 1.0, 3.0 + 2 / 30),
        ({"estimator": "lookahead"}, 1.0, 1 + 5 / 30),
        ({"estimator": "lookahead"}, 0.25, 1 + 2.75 / 30),
        ({"estimator": "lookahead", "look": "batch"}, 1.0, 1 + 4 / 30),
        ({"estimator": "lookahead", "look": "batch"}, 0.25, 1 + 1.75 / 30),
        ({"estimator": "alignment"}, 1.0, 1 + 5 / 30),
        ({"estimator": "lazy_pair"}, 1.0, 2.0),
    ],
)
def test_declared_costs(options: dict[str, Any], v: float, cost: float) -> None:
    found = make_estimator(BilevelOptions.model_validate(options)).cost(v)
    assert found == pytest.approx(cost)


# weights and mixtures


def test_sampling_tilts_what_the_agent_asks_for() -> None:
    rule = rule_of(estimator="alignment")
    asked = Mixture(np.array([0.6, 0.3, 0.1]), np.full((3, 2), 0.5))
    assert rule.tilt(asked).sources.tolist() == asked.sources.tolist()
    rule.align(lambda: np.array([1.0, 0.0, 0.0]), 1.0)
    tilted = rule.tilt(asked)
    np.testing.assert_allclose(
        tilted.sources, asked.sources * np.exp(rule.logits) / (asked.sources @ np.exp(rule.logits))
    )
    assert tilted.sources[0] > 0.6
    np.testing.assert_array_equal(tilted.strata, asked.strata)
    none = Mixture(np.array([0.0, 0.5, 0.5]), np.full((3, 2), 0.5))
    assert rule.tilt(none).sources[0] == 0.0


def test_weighing_the_loss_samples_naturally() -> None:
    rule = rule_of(act="loss")
    asked = Mixture(np.array([0.6, 0.3, 0.1]), np.full((3, 2), 0.5))
    np.testing.assert_allclose(rule.tilt(asked).sources, [0.25, 0.5, 0.25])
    np.testing.assert_allclose(rule.weights, asked.sources)
    run_dry = Mixture(np.array([0.6, 0.4, 0.0]), np.full((3, 2), 0.5))
    np.testing.assert_allclose(rule.tilt(run_dry).sources, [1 / 3, 2 / 3, 0.0])


def test_alignment_in_closed_form_uses_its_share_of_the_travel() -> None:
    rule = rule_of(estimator="alignment", travel=1.0)
    for step in range(4):
        rule.align(lambda: np.array([1.0, 0.5, -1.0]), (step + 1) / 4)
    assert 0.9 < rule.health()["travel"] <= 1.0
    assert rule.logits[0] > 0 > rule.logits[2]
    with pytest.raises(ConfigError, match="use alignment"):
        rule_of(estimator="paired").align(lambda: np.zeros(3), 0.1)


def test_alpha_may_grow() -> None:
    model = Bowls((1, 1), (1, 1, 1), 10, 5)
    rule = bilevel(model, 10, 0.01, alpha=5, alpha_growth=1 / 7)
    run(rule, model, 9)
    assert rule.alpha == pytest.approx(5 * 10 ** (1 / 7))


# data parallel


class Part(Regression):
    """Sees its part of every batch, and sums gradients over the ranks."""

    rank, ranks = 0, 1

    def _mine(self, size: int) -> slice:
        cut = 5 if self.ranks > 1 else size  # unequal parts
        return slice(0, cut) if self.rank == 0 else slice(cut, size)

    def source_counts(self, packs: Any) -> np.ndarray:
        size = self._rows_now().shape[1]
        return np.full(len(self._answers), float(len(range(size)[self._mine(size)])))

    def _rows_now(self) -> np.ndarray:
        if self._rows is None:
            self._rows = self._random.integers(0, self.n, (len(self._answers), self._batch))
        return self._rows

    def accumulate_weighted(self, packs: Any, weights: Any) -> tuple[np.ndarray, float]:
        rows = self._rows_now()
        at = np.arange(len(rows))[:, None], rows[:, self._mine(rows.shape[1])]
        inputs, answers = self._inputs[at], self._answers[at]
        apart = inputs @ self.x - answers
        sums = 0.5 * (apart**2).sum(-1)
        slopes = np.einsum("knd,kn->kd", inputs, apart)
        self.add(summed(weights @ slopes) / rows.shape[1])
        return sums[:, None], float(weights @ sums) / rows.shape[1]

    def losses(self, packs: Any) -> np.ndarray:
        kept = {name: p.grad for name, p in self.parameters().items()}
        sums = self.accumulate_weighted(packs, np.zeros(len(self.source_names)))[0]
        for name, parameter in self.parameters().items():
            parameter.grad = kept[name]
        return sums


def learn(rank: int, ranks: int, estimator: str) -> list[float]:
    Part.rank, Part.ranks = rank, ranks
    model = Part((0.0, 0.5, 1.0), "blank", 0, 60, 0.02, batch=16)
    rule = bilevel(model, 60, 1, alpha=10, update="adam", travel=4.0, estimator=estimator)
    run(rule, model, 60)
    return [*rule.logits.tolist(), *model.x.tolist(), *(rule.gap if rule.gap is not None else [])]


def worker(rank: int, port: int, estimator: str, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    answers.put((rank, learn(rank, 2, estimator)))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("estimator", ["paired", "lookahead"])
def test_two_processes_are_one(estimator: str) -> None:
    """Unequal parts of the batch: sums and counts are added over the ranks, then divided."""
    alone = learn(0, 1, estimator)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    started = [context.Process(target=worker, args=(r, port, estimator, answers)) for r in range(2)]
    for process in started:
        process.start()
    both = dict(answers.get(timeout=120) for _ in started)
    for process in started:
        process.join(60)
    assert both[0] == both[1]
    np.testing.assert_allclose(both[0], alone, rtol=1e-9, atol=1e-12)


def test_one_process_sums_itself() -> None:
    assert summed(np.array([1.0, 2.0])).tolist() == [1.0, 2.0]
