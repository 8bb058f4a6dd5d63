"""Closed-form bilevel problems behind the face of a model, for the rule's tests.

Every problem has a known answer. The parameters are torch tensors in float64, so that the very
engine that trains language models is what runs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.bilevel.rule import BilevelStep
from mixgym.envs.bilevel.weights import Logits

Array = NDArray[np.float64]


class Model:
    """A vector, cut into the blocks of a model.

    Args:
        start: float64[d].
        rate: of gradient descent.
        steps: the budget, which progress is a share of.
        sources: K.
        lag: what the model's own steps are multiplied with, but not those of its copies.
        adam: take AdamW's steps instead.
        blocks: that the coordinates are cut into (None: one each).
    """

    def __init__(
        self,
        start: Array,
        rate: float,
        steps: int,
        sources: int,
        lag: float = 1.0,
        adam: bool = False,
        blocks: int | None = None,
    ) -> None:
        parts = np.array_split(start, len(start) if blocks is None else blocks)
        self._own = {
            f"blocks.{i}.x": torch.nn.Parameter(torch.tensor(part, dtype=torch.float64))
            for i, part in enumerate(parts)
        }
        self._ends = np.cumsum([len(part) for part in parts])[:-1]
        self._rate, self._budget, self._lag, self._adam = rate, steps, lag, adam
        self.done = 0
        self.source_names = tuple(f"source{k}" for k in range(sources))
        self.optimizer = self.make_optimizer(self._own)

    @property
    def x(self) -> Array:
        return np.concatenate([p.detach().numpy() for p in self._own.values()])

    @property
    def progress(self) -> float:
        return self.done / self._budget

    @property
    def base_rate(self) -> float:
        return self._rate

    def rate(self) -> float:
        return self._rate

    def parameters(self) -> dict[str, torch.Tensor]:
        return dict(self._own)

    def blocks(self) -> list[list[str]]:
        return [[name] for name in self._own]

    def make_optimizer(self, parameters: Mapping[str, torch.Tensor]) -> torch.optim.Optimizer:
        kind: Any = torch.optim.AdamW if self._adam else torch.optim.SGD
        return kind(list(parameters.values()), lr=self._rate, weight_decay=0.0)

    def add(self, gradient: Array, scale: float = 1.0) -> None:
        """Add to the gradients of what is not frozen."""
        parts = np.split(scale * gradient, self._ends)
        for values, parameter in zip(parts, self._own.values(), strict=True):
            if parameter.requires_grad:
                part = torch.from_numpy(values)
                parameter.grad = part if parameter.grad is None else parameter.grad + part

    def apply(self) -> float:
        self.optimizer.param_groups[0]["lr"] = self._lag * self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return 0.0

    def clip_factor(self, norm: float) -> float:
        return 1.0

    def source_counts(self, packs: Any) -> Array:
        return np.ones(len(self.source_names))

    def accumulate(self, packs: Any) -> tuple[Array, float]:
        return self.accumulate_weighted(packs, None)

    def accumulate_weighted(self, packs: Any, weights: Array | None) -> tuple[Array, float]:
        assert weights is not None
        losses, gradients = self.sources(self.x, weights)
        self.add(weights @ gradients)
        return losses[:, None], float(weights @ losses)

    def validate(self, index: int, packs: int | None, scale: float) -> float:
        loss, gradient = self.target(self.x)
        self.add(gradient, scale)
        return loss

    def losses(self, packs: Any) -> Array:
        return self.sources(self.x, np.zeros(len(self.source_names)))[0][:, None]

    def slopes(self, packs: Any, direction: Mapping[str, torch.Tensor]) -> Array:
        zeros = {name: torch.zeros_like(own) for name, own in self._own.items()}
        d = torch.cat([(zeros | dict(direction))[name] for name in self._own]).detach().numpy()
        gradients = self.sources(self.x, np.zeros(len(self.source_names)))[1]
        return (gradients @ d)[:, None]

    def sources(self, x: Array, weights: Array) -> tuple[Array, Array]:
        """Losses float64[K], and their gradients float64[K, d]."""
        raise AssertionError

    def target(self, x: Array) -> tuple[float, Array]:
        """Validation loss, and its gradient float64[d]."""
        raise AssertionError


class Affine(Model):
    """L1 = |w - a|^2 / 2 + rho |lambda|^2 / 2, L2 = (w - C lambda - b)^T H (w - C lambda - b) / 2.

    Its "sources" are the coordinates of lambda, and their "losses" dL2 / dlambda, so that lambda is
    free instead of a softmax (see :class:`FreeLogits`); rho is the decay of lambda.
    """

    H = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
    C = np.array([[1.0, 0.0], [0.5, 1.0], [0.0, -1.0]])
    a = np.array([1.0, -2.0, 0.5])
    b = np.array([0.2, 0.1, -0.3])
    rho = 0.1

    def __init__(self, steps: int, alpha: float, **options: Any) -> None:
        largest = float(np.linalg.eigvalsh(self.H)[-1])
        super().__init__(np.zeros(3), alpha / (1 + alpha * largest), steps, 2, **options)
        self._lam = np.zeros(2)

    def accumulate_weighted(self, packs: Any, weights: Array | None) -> tuple[Array, float]:
        assert weights is not None
        self._lam = weights
        residual = self.H @ (self.x - self.C @ weights - self.b)
        self.add(residual)
        return -(self.C.T @ residual)[:, None], 0.0

    def losses(self, packs: Any) -> Array:
        # looking ahead comes before the step, so lambda is told by the test
        return -(self.C.T @ self.H @ (self.x - self.C @ self.now() - self.b))[:, None]

    now: Callable[[], Array]

    def target(self, x: Array) -> tuple[float, Array]:
        return 0.5 * float((x - self.a) @ (x - self.a)), x - self.a

    @classmethod
    def upper(cls, lam: Array) -> float:
        """F(lambda) = L1 at the lower minimum, exactly."""
        gap = cls.C @ lam + cls.b - cls.a
        return 0.5 * float(gap @ gap) + 0.5 * cls.rho * float(lam @ lam)


class FreeLogits(Logits):
    """Lambda itself instead of its softmax."""

    def weights(self, base: Array) -> Array:
        return self.value

    def gradient(self, weights: Array, gap: Array, present: Any) -> Array:
        return gap


class AffineRule(BilevelStep):
    def _make_logits(self) -> Logits:
        return FreeLogits(np.zeros(2), "gradient", None, Affine.rho)


class Bowls(Model):
    """Sources l_j = h_j |w - c_j|^2 / 2 around given centres; validation |w - a|^2 / 2."""

    c = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])

    def __init__(
        self, a: tuple[float, float], h: tuple[float, ...], steps: int, alpha: float, **options: Any
    ) -> None:
        self.a, self.h = np.array(a), np.array(h)
        rate = options.pop("rate", alpha / (1 + alpha * max(h)))
        super().__init__(np.zeros(2), rate, steps, len(h), **options)

    def sources(self, x: Array, weights: Array) -> tuple[Array, Array]:
        apart = x - self.c[: len(self.h)]
        return 0.5 * self.h * (apart**2).sum(-1), self.h[:, None] * apart

    def target(self, x: Array) -> tuple[float, Array]:
        return 0.5 * float(((x - self.a) ** 2).sum()), x - self.a


class Regression(Model):
    """Linear regression on sources with spoilt answers; a clean validation set.

    Args:
        rates: for each source the share of its rows that are spoilt.
        kind: ``blank`` answers are 0, ``flip`` turns their sign.
        seed: of data and batches.
        batch: rows of each source in a step; None: all.
    """

    d, n, sigma, ridge = 5, 200, 0.1, 1e-3

    def __init__(
        self,
        rates: tuple[float, ...],
        kind: str,
        seed: int,
        steps: int,
        rate: float,
        batch: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(np.zeros(self.d), rate, steps, len(rates), blocks=1, **options)
        random = np.random.default_rng(seed)
        truth = random.standard_normal(self.d)
        drawn = [self._draw(random, truth) for _ in rates]
        self._inputs, self._answers = (np.stack(part) for part in zip(*drawn, strict=True))
        self._validation = self._draw(random, truth)
        for answers, share in zip(self._answers, rates, strict=True):
            spoilt = random.permutation(self.n) < round(share * self.n)
            answers[spoilt] *= 0.0 if kind == "blank" else -1.0
        self._batch, self._random = batch, random
        self._rows: NDArray[np.int64] | None = None

    def _draw(self, random: np.random.Generator, truth: Array) -> tuple[Array, Array]:
        x = random.standard_normal((self.n, self.d))
        return x, x @ truth + self.sigma * random.standard_normal(self.n)

    def apply(self) -> float:
        self._rows = None
        return super().apply()

    def rate(self) -> float:
        """Falls to 0 like a half cosine, where batches are drawn."""
        if self._batch is None:
            return self._rate
        return self._rate * 0.5 * (1 + np.cos(np.pi * self.progress))

    def sources(self, x: Array, weights: Array) -> tuple[Array, Array]:
        if self._rows is None:
            count = len(self._answers)
            rows = np.broadcast_to(np.arange(self.n), (count, self.n))
            if self._batch is not None:
                rows = self._random.integers(0, self.n, (count, self._batch))
            self._rows = rows
        at = np.arange(len(self._rows))[:, None], self._rows
        inputs, answers = self._inputs[at], self._answers[at]
        apart = inputs @ x - answers
        losses = 0.5 * (apart**2).mean(-1) + 0.5 * self.ridge * float(x @ x)
        slopes = np.einsum("knd,kn->kd", inputs, apart) / apart.shape[1] + self.ridge * x
        return losses, slopes

    def target(self, x: Array) -> tuple[float, Array]:
        inputs, answers = self._validation
        apart = inputs @ x - answers
        return 0.5 * float(apart @ apart) / self.n, inputs.T @ apart / self.n

    def upper(self, p: Array) -> float:
        """F(p): validation loss of the exact minimiser under weights p."""
        h = np.einsum("k,kni,knj->ij", p, self._inputs, self._inputs) / self.n
        g = np.einsum("k,kni,kn->i", p, self._inputs, self._answers) / self.n
        return self.target(np.linalg.solve(h + self.ridge * np.eye(self.d), g))[0]

    def best(self) -> float:
        """The least F(p), by mirror descent with numerical gradients."""
        p = np.full(len(self._answers), 1.0 / len(self._answers))
        for _ in range(400):
            slope = np.array([self.upper(p + 1e-6 * e) - self.upper(p) for e in np.eye(len(p))])
            p = p * np.exp(-0.3 * slope / max(float(np.abs(slope).max()), 1e-12))
            p = p / p.sum()
        return self.upper(p)


def bilevel(
    model: Model,
    steps: int,
    rate: float,
    rule: Callable[..., BilevelStep] = BilevelStep,
    **options: Any,
) -> BilevelStep:
    """A rule for the model: lambda moves by ``rate`` times its gradient at every update."""
    defaults = {"act": "loss", "update": "gradient", "travel": rate * steps, "check": True}
    defaults |= {"estimator": "paired", "look": "batch", "storage": "full"}
    parsed = BilevelOptions.model_validate(defaults | options)
    count = len(model.source_names)
    return rule(parsed, model.source_names, np.full(count, 1.0 / count), 0)


def run(rule: BilevelStep, model: Model, steps: int) -> None:
    for _ in range(steps):
        rule.step(model, ())
