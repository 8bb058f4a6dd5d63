"""Every family of policies: equivariance, masks, and what the algorithms ask of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from mixgym.agents.policies.distributions import MaskedDirichlet, MaskedNormal
from mixgym.agents.policies.heads import ActorSpec, masked_values
from mixgym.agents.policies.network import LinearActor
from mixgym.agents.policies.off_policy import (
    HierarchicalCrossQPolicy,
    HierarchicalSACPolicy,
    HierarchicalTD3Policy,
    HierarchicalTQCPolicy,
)
from mixgym.agents.policies.on_policy import HierarchicalPolicy
from mixgym.agents.policies.random_search import HierarchicalARSPolicy
from mixgym.agents.policies.recurrent import RecurrentHierarchicalPolicy
from mixgym.agents.policies.rows import action_mask, as_local, rows_shape, split_rows
from mixgym.agents.policies.value_based import HierarchicalDQNPolicy, HierarchicalQRDQNPolicy
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.spaces.observations import layout, local_observation

K, G = 5, 3
ENTRIES = K + K * G


def flat(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Observations of tasks with 3 and 4 sources and 2 strata, padded to 5 and 3."""
    tasks = [sample_task(s, sources=3 + s % 2, strata=2) for s in range(4)]
    options = EnvironmentOptions(learner="curves", max_sources=K, max_strata=G)
    env = CurvesVecEnv(4, tasks, options, decisions=8, in_order=True, seed=seed)
    env.reset()
    rng = np.random.default_rng(seed)
    for _ in range(3):
        observation = env.step(rng.uniform(-1, 1, (4, ENTRIES)).astype(np.float32))[0]
    return np.asarray(observation)


def permuted(observation: Any, order: Any) -> Any:
    """The same observations with the sources in another order."""
    out, parts = observation.copy(), layout((K, G))
    for name in ("sources", "strata"):
        part, size = parts[name]
        rows = observation[:, part].reshape(-1, *size)[:, order]
        out[:, part] = rows.reshape(len(observation), -1)
    masks = observation[:, parts["masks"][0]]
    cells = masks[:, K:].reshape(-1, K, G)[:, order].reshape(len(observation), -1)
    out[:, parts["masks"][0]] = np.concatenate([masks[:, :K][:, order], cells], 1)
    return out


def moved(entries: Any, order: Any) -> Any:
    """Entries of actions float[n, K + K * G] with the sources in another order."""
    inner = entries[:, K:].reshape(-1, K, G)[:, order].reshape(len(entries), -1)
    return torch.cat([entries[:, :K][:, order], inner], 1)


OBSERVATION = spaces.Box(-10, 10, (flat().shape[1],), np.float32)
BOX = spaces.Box(-1, 1, (ENTRIES,), np.float32)
WEIGHTS = spaces.Box(0, 1, (ENTRIES,), np.float32)
NUDGES = spaces.Discrete(1 + ENTRIES)


def rate(_: float) -> float:
    return 1e-3


def loud(policy: Any) -> Any:
    """Larger last layers, so that actions and values differ by more than rounding."""
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if any(part in name for part in ("top.2", "inner.2", "stay.2")):
                value.mul_(60).add_(0.05 * torch.randn(value.shape))
            if "rows.top.weight" in name or "rows.inner.weight" in name:
                value.copy_(0.2 * torch.randn(value.shape))
    return policy.eval()


def sac(**options: Any) -> Any:
    return HierarchicalSACPolicy(OBSERVATION, BOX, rate, width=16, **options)


MAKERS: dict[str, Callable[[], Any]] = {
    "gaussian": lambda: HierarchicalPolicy(OBSERVATION, BOX, rate, width=16),
    "dirichlet": lambda: HierarchicalPolicy(OBSERVATION, WEIGHTS, rate, width=16, head="dirichlet"),
    "sac": sac,
    "tqc": lambda: HierarchicalTQCPolicy(OBSERVATION, BOX, rate, width=16, n_quantiles=7),
    "crossq": lambda: HierarchicalCrossQPolicy(OBSERVATION, BOX, rate, width=16),
    "td3": lambda: HierarchicalTD3Policy(OBSERVATION, BOX, rate, width=16),
    "ars": lambda: HierarchicalARSPolicy(OBSERVATION, BOX, width=16),
    "ars linear": lambda: HierarchicalARSPolicy(OBSERVATION, BOX),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MAKERS)
def test_renaming_sources_renames_actions(name: str) -> None:
    policy = loud(MAKERS[name]())
    order = np.random.default_rng(1).permutation(K)
    one, two = torch.from_numpy(flat()), torch.from_numpy(permuted(flat(), order))
    with torch.no_grad():
        action, other = (policy._predict(o, deterministic=True) for o in (one, two))
    assert action.std() > 0.01
    torch.testing.assert_close(other, moved(action, order), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_absent_rows_get_nothing_and_change_nothing(name: str) -> None:
    policy = loud(MAKERS[name]())
    observation = torch.from_numpy(flat())
    mask = action_mask(split_rows(observation, K, G))
    with torch.no_grad():
        for deterministic in (True, False):
            action = policy._predict(observation, deterministic=deterministic)
            assert (action[mask == 0] == 0).all()
        # garbage in the features of absent rows is not seen
        dirty = observation.clone()
        rows, (part, size) = split_rows(observation, K, G), layout((K, G))["sources"]
        garbage = torch.randn(len(dirty), *size) * (~rows.source_mask)[..., None]
        dirty[:, part] += garbage.flatten(1)
        clean, same = (policy._predict(o, deterministic=True) for o in (observation, dirty))
    torch.testing.assert_close(same[:, :K], clean[:, :K], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["sac", "tqc", "crossq", "td3"])
def test_critics_see_rows_beside_their_entries(name: str) -> None:
    policy = MAKERS[name]().eval()
    observation, order = flat(), np.random.default_rng(2).permutation(K)
    rows = split_rows(torch.from_numpy(observation), K, G)
    mask = action_mask(rows)
    actions = torch.rand(4, ENTRIES) * 2 - 1

    def values(flat_observation: Any, acts: Any) -> Any:
        with torch.no_grad():
            found = policy.critic(torch.from_numpy(flat_observation), acts)
        return found if isinstance(found, torch.Tensor) else torch.cat(found, 1)

    base = values(observation, actions)
    again = values(permuted(observation, order), moved(actions, order))
    torch.testing.assert_close(again, base, atol=1e-5, rtol=1e-4)
    # masked entries do not count, others do
    torch.testing.assert_close(values(observation, actions * mask), base)
    swapped = actions.clone()
    swapped[:, 0] += 0.5
    assert (values(observation, swapped) - base).abs().min() > 1e-6
    # a common shift of a level leaves the mixture, and its value, as they are
    shifted = actions.clone()
    shifted[:, :K] += 0.25
    torch.testing.assert_close(values(observation, shifted), base, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quantiles", [None, 7])
def test_values_of_nudges_are_equivariant_and_masked_ones_are_staying(quantiles: Any) -> None:
    if quantiles is None:
        policy: Any = HierarchicalDQNPolicy(OBSERVATION, NUDGES, rate, width=16)
        net = policy.q_net
    else:
        policy = HierarchicalQRDQNPolicy(OBSERVATION, NUDGES, rate, width=16, n_quantiles=quantiles)
        net = policy.quantile_net
    loud(policy)
    order = np.random.default_rng(3).permutation(K)
    observation = flat()
    with torch.no_grad():
        one, two = (net(torch.from_numpy(o)) for o in (observation, permuted(observation, order)))
        best = policy._predict(torch.from_numpy(observation))
    if quantiles is not None:
        assert one.shape == (4, quantiles, 1 + ENTRIES)
        one, two = one.mean(1), two.mean(1)
    assert one.shape == (4, 1 + ENTRIES)
    torch.testing.assert_close(two[:, 1:], moved(one[:, 1:], order), atol=1e-5, rtol=1e-4)
    mask = action_mask(split_rows(torch.from_numpy(observation), K, G))
    staying = one[:, :1].expand_as(mask)
    torch.testing.assert_close(one[:, 1:][mask == 0], staying[mask == 0])
    assert one.std() > 0.01
    chosen = torch.cat([torch.ones(4, 1), mask], 1)[torch.arange(4), best]
    assert (chosen == 1).all(), "a masked nudge is never the best"


def test_ties_between_staying_and_a_masked_nudge_stay() -> None:
    values = torch.tensor([[[1.0], [9.0], [0.5]]])
    found = masked_values(values, torch.tensor([[0.0, 1.0]]))
    assert found.flatten().tolist() == [1.0, 1.0, 0.5]
    assert int(found.mean(-1).argmax(1)) == 0


@pytest.mark.parametrize("level", ["joint", "global", "local"])
@pytest.mark.parametrize("name", ["gaussian", "recurrent", "sac", "td3", "dqn", "ars"])
def test_each_level_has_its_own_entries(name: str, level: Any) -> None:
    observation = flat()
    entries = {"joint": ENTRIES, "global": K, "local": G}[level]
    if level == "local":
        observation = local_observation(observation, (K, G)).reshape(4 * K, -1)
    space = spaces.Box(-10, 10, (observation.shape[1],), np.float32)
    box: spaces.Space[Any] = spaces.Box(-1, 1, (entries,), np.float32)
    makers: dict[str, Any] = {
        "gaussian": HierarchicalPolicy,
        "recurrent": RecurrentHierarchicalPolicy,
        "sac": HierarchicalSACPolicy,
        "td3": HierarchicalTD3Policy,
        "dqn": HierarchicalDQNPolicy,
        "ars": HierarchicalARSPolicy,
    }
    if name == "dqn":
        box = spaces.Discrete(1 + entries)
    given = () if name == "ars" else (rate,)
    policy = makers[name](space, box, *given, width=8, level=level)
    action, _ = policy.predict(observation, deterministic=False)
    assert action.shape == ((len(observation),) if name == "dqn" else (len(observation), entries))
    assert rows_shape(space, box, level) == ((1, G) if level == "local" else (K, G))


def test_a_local_actor_of_a_row_is_the_same_for_rows_cut_from_the_joint_observation() -> None:
    observation = flat()
    joint = as_local(split_rows(torch.from_numpy(observation), K, G))
    own = torch.from_numpy(local_observation(observation, (K, G)).reshape(4 * K, -1))
    local = split_rows(own, 1, G, "local")
    for name in ("progress", "sources", "strata", "source_mask", "strata_mask"):
        assert torch.equal(getattr(joint, name), getattr(local, name)), name


def test_spaces_of_another_level_are_refused() -> None:
    with pytest.raises(ValueError, match="not those of the global level"):
        HierarchicalPolicy(OBSERVATION, BOX, rate, level="global")
    with pytest.raises(ValueError, match="not those of the local level"):
        HierarchicalSACPolicy(OBSERVATION, BOX, rate, level="local")
    with pytest.raises(ValueError, match="a level of joint, global, local"):
        HierarchicalPolicy(OBSERVATION, BOX, rate, level="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"environment\.action=weights"):
        HierarchicalPolicy(OBSERVATION, BOX, rate, head="dirichlet")
    with pytest.raises(ValueError, match="logits or delta"):
        HierarchicalPolicy(OBSERVATION, WEIGHTS, rate)


@pytest.mark.parametrize("name", [*MAKERS, "dqn"])
def test_unknown_options_name_the_nearest(name: str) -> None:
    makers: dict[str, Callable[..., Any]] = {
        "gaussian": HierarchicalPolicy,
        "sac": HierarchicalSACPolicy,
        "td3": HierarchicalTD3Policy,
        "dqn": HierarchicalDQNPolicy,
        "ars": HierarchicalARSPolicy,
    }
    maker = makers.get(name, HierarchicalPolicy)
    given = () if name == "ars" else (rate,)
    space = NUDGES if name == "dqn" else BOX
    with pytest.raises(TypeError, match=r"widht: .* did you mean width"):
        maker(OBSERVATION, space, *given, widht=3)


def test_state_dependent_exploration_is_refused() -> None:
    with pytest.raises(TypeError, match="use_sde"):
        sac(use_sde=True)


def test_log_probabilities_of_sac_are_means_over_entries_that_count() -> None:
    policy = loud(sac(log_std_init=-0.5))
    observation = torch.from_numpy(flat())
    torch.manual_seed(3)
    actions, log_prob = policy.actor.action_log_prob(observation)
    mask = action_mask(split_rows(observation, K, G))
    found = policy.actor.net(split_rows(observation, K, G))
    base = torch.distributions.Normal(found.inner.mean, found.inner.stddev)
    whole = torch.distributions.TransformedDistribution(
        base, torch.distributions.TanhTransform(cache_size=1)
    )
    for i in range(4):
        used = mask[i] > 0
        density = whole.log_prob(actions[i].clamp(-0.999999, 0.999999))[i][used]
        # the same formula by another way: mean over entries of the density of tanh of a Gaussian
        assert float(log_prob[i].detach()) == pytest.approx(
            float(density.detach().mean()), rel=1e-3
        )
    assert (actions[mask == 0] == 0).all()
    log_prob.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.actor.parameters())


def test_the_spread_of_sac_is_one_per_level() -> None:
    policy = sac(log_std_init=-0.7)
    with torch.no_grad():
        policy.actor.net.spread.net[-1].bias.add_(torch.tensor([0.0, 0.5]))
    found = policy.actor.net(split_rows(torch.from_numpy(flat()), K, G))
    std = found.inner.stddev
    assert torch.equal(std[:, :K], std[:, :1].expand(-1, K))
    assert torch.equal(std[:, K:], std[:, K : K + 1].expand(-1, K * G))
    assert not torch.equal(std[:, 0], std[:, K])


def test_a_memory_changes_what_is_done_and_is_cleared() -> None:
    policy = loud(RecurrentHierarchicalPolicy(OBSERVATION, BOX, rate, width=16, memory=8))
    with torch.no_grad():
        policy.actor_net.memory.recall.weight.mul_(20)
    observation = flat()
    first, state = policy.predict(observation, None, np.ones(4, bool), deterministic=True)
    second, state = policy.predict(observation, state, np.zeros(4, bool), deterministic=True)
    starts = np.array([True, False, False, False])
    third, _ = policy.predict(observation, state, starts, deterministic=True)
    assert np.abs(second - first).max() > 1e-4
    np.testing.assert_allclose(third[0], first[0], atol=1e-6)
    assert np.abs(third[1:] - second[1:]).max() > 1e-5
    order = np.random.default_rng(1).permutation(K)
    other, _ = policy.predict(permuted(observation, order), None, np.ones(4, bool), True)
    np.testing.assert_allclose(other, moved(torch.from_numpy(first), order).numpy(), atol=1e-5)


def test_linear_scores_have_few_parameters() -> None:
    assert sum(p.numel() for p in LinearActor().parameters()) == 76
    assert ActorSpec("deterministic", width=0).build().rows.level == "joint"


# --- distributions --------------------------------------------------------------------------------


def dirichlets() -> tuple[MaskedDirichlet, torch.Tensor, torch.Tensor]:
    """Three sources, of which two exist, over two strata; the second source has only one."""
    mask = torch.tensor([[1.0, 1, 0, 1, 1, 1, 0, 0, 0]])
    alpha = torch.rand(1, 9) * 4 + 0.5
    return MaskedDirichlet(alpha, mask, [3, 2, 2, 2]), alpha, mask


def test_dirichlets_are_those_of_torch_over_the_entries_that_count() -> None:
    found, alpha, mask = dirichlets()
    other = MaskedDirichlet(torch.rand(1, 9) * 4 + 0.5, mask, found.sizes)
    torch.manual_seed(1)
    sample = found.sample()
    top = torch.distributions.Dirichlet(alpha[:, :2])
    inner = torch.distributions.Dirichlet(alpha[:, 3:5])
    reference = top.log_prob(sample[:, :2]) + inner.log_prob(sample[:, 3:5])
    torch.testing.assert_close(found.log_prob(sample), reference)
    torch.testing.assert_close(found.entropy(), top.entropy() + inner.entropy())
    gap = torch.distributions.kl_divergence(found, other)
    pairs = [(top, other.concentration[:, :2]), (inner, other.concentration[:, 3:5])]
    wanted = sum(
        torch.distributions.kl_divergence(mine, torch.distributions.Dirichlet(theirs))
        for mine, theirs in pairs
    )
    torch.testing.assert_close(gap, wanted)


def test_samples_and_mode_of_dirichlets_are_weights() -> None:
    found, alpha, mask = dirichlets()
    for weights in (found.mode, found.sample()):
        assert (weights[mask == 0] == 0).all()
        assert weights[:, :3].sum() == pytest.approx(1.0, abs=1e-6)
        assert weights[:, 3:5].sum() == pytest.approx(1.0, abs=1e-6)
        assert weights[0, 5] == pytest.approx(1.0), "a source with one stratum gives it all"
        assert weights[:, 7:].sum() == 0.0
    torch.testing.assert_close(found.mode[0, :2], alpha[0, :2] / alpha[0, :2].sum())


def test_a_sharp_dirichlet_stays_finite() -> None:
    mask = torch.ones(1, 6)
    found = MaskedDirichlet(torch.full((1, 6), 0.02), mask, [2, 2, 2])
    for _ in range(20):
        sample = found.sample()
        assert torch.isfinite(found.log_prob(sample)).all()
        assert sample.min() > 0


def test_kl_of_gaussians_leaves_masked_entries_out() -> None:
    mask = torch.tensor([[1.0, 0.0]])
    one = MaskedNormal(torch.tensor([[0.5, 3.0]]), torch.tensor([[0.2, 0.1]]), mask)
    two = MaskedNormal(torch.tensor([[0.1, -3.0]]), torch.tensor([[0.4, 0.1]]), mask)
    # log(0.4 / 0.2) + (0.2^2 + 0.4^2) / (2 * 0.4^2) - 1/2
    wanted = np.log(2.0) + (0.04 + 0.16) / 0.32 - 0.5
    assert float(torch.distributions.kl_divergence(one, two)) == pytest.approx(wanted, rel=1e-5)
