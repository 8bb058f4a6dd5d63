"""Actors and optimisers against torch, finite differences, and the released warm start."""

import numpy as np
import pytest
import torch

from mixgym.agents.hbo.actors import LogitActor, Perceptron, Table, fitted, shared_mean
from mixgym.agents.hbo.equivariant import Equivariant
from mixgym.agents.hbo.optimizers import Moments, direction
from mixgym.agents.hbo.shaping import temperature_prior
from mixgym.agents.hbo.updates import softmax
from mixgym.envs.arrays import FloatArray
from mixgym.envs.spaces.observations import flat_space


def pulled_by_differences(
    actor: LogitActor, parameters: FloatArray, features: FloatArray, gradient: FloatArray
) -> FloatArray:
    """d <gradient, logits> / d parameters, one parameter after the other."""
    found = np.zeros(parameters.shape[-1])
    for i in range(len(found)):
        up, down = parameters.copy(), parameters.copy()
        up[..., i] += 1e-5
        down[..., i] -= 1e-5
        change = actor.logits(up, features) - actor.logits(down, features)
        found[i] = (gradient * change).sum() / 2e-5
    return found


@pytest.mark.parametrize("actor", [Table(), Perceptron(3)])
def test_pull_is_the_transposed_slope_of_the_logits(actor: LogitActor) -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((4, 2))
    parameters = actor.start(4, 2, random)
    parameters = parameters + 0.3 * random.standard_normal(parameters.shape)
    gradient = random.standard_normal(4)
    np.testing.assert_allclose(
        actor.pull(parameters, features, gradient),
        pulled_by_differences(actor, parameters, features, gradient),
        atol=1e-8,
    )


@pytest.mark.parametrize("actor", [Table(), Perceptron(3)])
def test_actors_are_batched(actor: LogitActor) -> None:
    random = np.random.default_rng(1)
    features = random.standard_normal((2, 3, 4, 5))
    own = actor.start(4, 5, random)
    parameters = own + 0.3 * random.standard_normal((2, 3, own.size))
    gradient = random.standard_normal((2, 3, 4))
    logits = actor.logits(parameters, features)
    pulled = actor.pull(parameters, features, gradient)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(logits[i], actor.logits(parameters[i], features[i]), atol=1e-12)
        np.testing.assert_allclose(
            pulled[i], actor.pull(parameters[i], features[i], gradient[i]), atol=1e-12
        )


def test_a_perceptron_treats_units_alike_and_starts_at_the_prior() -> None:
    random = np.random.default_rng(2)
    actor, features = Perceptron(8), random.standard_normal((5, 3))
    start = actor.start(5, 3, random)
    np.testing.assert_array_equal(actor.logits(start, features), np.zeros(5))
    moved = start + random.standard_normal(start.shape)
    order = random.permutation(5)
    np.testing.assert_allclose(
        actor.logits(moved, features[order]), actor.logits(moved, features)[order], atol=1e-12
    )


def test_actors_can_share_parameters() -> None:
    random = np.random.default_rng(3)
    features, gradient = random.standard_normal((2, 3, 4, 5)), random.standard_normal((2, 3, 4))
    actor = Perceptron(2)
    own = actor.start(4, 5, random) + 0.3
    parameters = np.broadcast_to(own, (2, 1, own.size))
    shared = shared_mean(actor.pull(parameters, features, gradient), parameters.shape)
    each = [[actor.pull(own, features[i, k], gradient[i, k]) for k in range(3)] for i in range(2)]
    np.testing.assert_allclose(shared, np.mean(each, axis=1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimisers_take_torchs_steps(name: str) -> None:
    random = np.random.default_rng(4)
    ours = random.standard_normal((2, 5))
    theirs = torch.tensor(ours, requires_grad=True)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    optimizer = kind([theirs], lr=0.03, maximize=True)
    moments = Moments.start(ours)
    for _ in range(30):
        gradient = random.standard_normal((2, 5))
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
        step, moments = direction(name, gradient, moments)
        ours = ours + 0.03 * step
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-12)


def test_adam_stays_where_the_gradient_is_zero() -> None:
    parameters = np.zeros(4)
    moments = Moments.start(parameters)
    for _ in range(200):
        step, moments = direction("adam", np.zeros(4), moments)
        parameters = parameters + 1e-4 * step
    np.testing.assert_array_equal(parameters, np.zeros(4))


def test_the_released_warm_start_takes_as_long_as_it_is_said_to() -> None:
    prior = temperature_prior(np.array([273, 12, 6, 15, 1, 49, 0.578, 102]), 1.0)
    mask = np.ones(8, np.bool_)
    parameters, moments = fitted(Table(), np.ones(8), np.zeros((8, 0)), prior, mask, 1e-4)
    weights = softmax(parameters, mask)
    assert ((weights - prior) ** 2).mean() <= 1e-10
    assert moments.steps[0] == pytest.approx(47_714, abs=100)  # it looks every hundred steps
    assert np.abs(moments.first).max() > 0  # carried over into the first update


def observations(count: int, shape: tuple[int, int], seed: int) -> FloatArray:
    """Flat observations with every row present, and the shape behind them."""
    random = np.random.default_rng(seed)
    flat = random.standard_normal((count, flat_space(shape).shape[0]))
    flat[:, -shape[0] * (1 + shape[1]) :] = 1.0
    return np.concatenate([flat, np.broadcast_to(np.array(shape, np.float64), (count, 2))], -1)


@pytest.mark.parametrize("level", ["global", "local"])
def test_the_network_is_an_actor(level: str) -> None:
    actor = Equivariant(level, 4)  # type: ignore[arg-type]
    features = observations(2, (3, 2), 0)
    units = (2, 3) if level == "global" else (2, 3, 2)
    own = actor.start(0, 0, np.random.default_rng(0))
    lead = (2,) if level == "global" else (2, 1)
    random = np.random.default_rng(1)
    parameters = own + 0.1 * random.standard_normal((*lead, own.size))
    logits = actor.logits(parameters, features)
    assert logits.shape == units
    gradient = random.standard_normal(units)
    pulled = actor.pull(parameters, features, gradient)
    assert pulled.shape == parameters.shape
    away = random.standard_normal(parameters.shape)
    up, down = (actor.logits(parameters + s * 1e-2 * away, features) for s in (1, -1))
    rows = 3 if level == "local" else 1
    change = (gradient * (up - down)).sum() / 2e-2 / rows
    assert (pulled * away).sum() == pytest.approx(change, rel=2e-2)
    alone = actor.logits(parameters[1:], features[1:])
    np.testing.assert_allclose(alone[0], logits[1], atol=1e-6)


def test_the_network_starts_alike_for_a_seed_and_leaves_torchs_stream_alone() -> None:
    actor = Equivariant("global", 4)
    before = torch.get_rng_state()
    first = actor.start(0, 0, np.random.default_rng(5))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(first, actor.start(0, 0, np.random.default_rng(5)))
    assert (first != actor.start(0, 0, np.random.default_rng(6))).any()
