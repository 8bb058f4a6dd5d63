"""Predicted seconds per supervised token, and how an agent sees them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixgym
from mixgym.agents.rule import read_signals
from mixgym.envs.build import build_environment
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.options import WorldOptions
from mixgym.envs.packing.costs.cost_model import CostModel, Hardware, ModelShape
from mixgym.envs.packing.costs.token_cost import LARGEST, row_seconds, token_seconds, tokens_read
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.envs.packing.planner import PlanConfig
from mixgym.envs.packing.setup import PackingSetup
from mixgym.envs.probes import PROBES, TOKEN_SECONDS, TOKEN_SECONDS_STRATA
from mixgym.envs.sources.source import Source
from mixgym.envs.spaces.observations import parts_of
from mixgym.envs.spaces.signals import AGE, PREFIX, ZERO
from tests.envs.synthetic import make_source, random_sources

BOTH = {TOKEN_SECONDS: 1, TOKEN_SECONDS_STRATA: 1}

# a row of n tokens takes n seconds of dense work and n * n of attention
SHAPE = ModelShape(
    layers=1, heads=1, key_value_heads=1, key_width=1, value_width=1, layer_flops=1, head_flops=0
)
MACHINE = Hardware(
    devices=2,
    devices_per_node=2,
    dense_rate=3,
    attention_rate=7,
    link_rate=1e30,
    node_link_rate=1e30,
    fixed_seconds=0,
)


def setup(fixed: float = 0.0, groups: tuple[Group, ...] = (Group(64),)) -> PackingSetup:
    config = PlanConfig(groups, Cluster(2, 128))
    return PackingSetup(config, cost=CostModel(SHAPE, replace(MACHINE, fixed_seconds=fixed)))


def two() -> list[Source]:
    return [
        make_source("short", [2, 2], supervised=[1, 1], strata=[0, 1], n_strata=2),
        make_source("long", [4, 4], supervised=[2, 1], strata=[0, 0], n_strata=2),
    ]


def test_seconds_per_token_by_hand() -> None:
    """(2 + 4) * 2 seconds for 2 tokens are 6 each; (4 + 16) * 2 for 3 are 40 / 3; mean 29 / 3."""
    found = token_seconds(two(), setup())
    assert found[TOKEN_SECONDS] == pytest.approx(np.log([18 / 29, 40 / 29]))
    strata = found[TOKEN_SECONDS_STRATA]
    assert strata[0] == pytest.approx(np.log([18 / 29, 18 / 29]))
    assert strata[1, 0] == pytest.approx(np.log(40 / 29))
    assert np.isnan(strata[1, 1])  # no rows


def test_tokens_read_per_supervised_token_by_hand() -> None:
    """4 tokens for 2 supervised ones, and 8 for 3; the second source has rows in one stratum."""
    cost, cells = tokens_read(two())
    assert cost == pytest.approx([2, 8 / 3])
    assert cells[0] == pytest.approx([2, 2])
    assert cells[1, 0] == pytest.approx(8 / 3)
    assert np.isnan(cells[1, 1])


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_a_source_costs_what_its_strata_cost_by_their_supervised_tokens(seed: int) -> None:
    sources = random_sources(np.random.default_rng(seed))
    cost, cells = tokens_read(sources)
    assert (cost >= 1).all()
    for k, source in enumerate(sources):
        rows, stratum = source.splits["train"], source.strata["train"]
        supervised = np.bincount(stratum, rows.supervised, minlength=source.n_strata)
        known = supervised > 0
        assert (np.isnan(cells[k]) == ~known).all()
        assert cost[k] == pytest.approx(np.average(cells[k][known], weights=supervised[known]))


def test_a_row_pays_for_its_share_of_a_pack_and_for_every_device() -> None:
    lengths = np.array([4, 16, 32])
    assert row_seconds(lengths, setup()) == pytest.approx([20, 272, 1056])
    assert row_seconds(lengths, setup(fixed=8)) == pytest.approx([20.5, 274, 1060])
    groups = (Group(16), Group(64, 2))  # two devices wait for the fixed part of the longer packs
    assert row_seconds(lengths, setup(8, groups)) == pytest.approx([22, 280, 1064])


def test_without_a_cost_model_every_token_costs_the_same() -> None:
    assert row_seconds(np.array([3, 5]), replace(setup(), cost=None)).tolist() == [3, 5]
    found = token_seconds(two(), replace(setup(), cost=None))[TOKEN_SECONDS]
    assert found == pytest.approx(np.log([6 / 7, 8 / 7]))  # 4 / 2 and 8 / 3 tokens


@settings(max_examples=40)
@given(st.integers(0, 2**31))
def test_sources_in_another_order_have_the_same_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sources = random_sources(rng)
    order = rng.permutation(len(sources))
    one, two = (
        token_seconds(given, setup(3.0)) for given in (sources, [sources[i] for i in order])
    )
    for name in BOTH:
        assert one[name][order] == pytest.approx(two[name], nan_ok=True)
    assert np.log(np.exp(one[TOKEN_SECONDS]).mean()) == pytest.approx(0, abs=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_the_speed_of_the_machine_does_not_matter(seed: int, faster: float) -> None:
    sources = random_sources(np.random.default_rng(seed))
    slow = setup(3.0)
    assert slow.cost is not None
    rates = {"dense_rate": 3 * faster, "attention_rate": 7 * faster, "fixed_seconds": 3 / faster}
    fast = replace(slow, cost=CostModel(SHAPE, replace(MACHINE, **rates)))
    for name, values in token_seconds(sources, slow).items():
        assert token_seconds(sources, fast)[name] == pytest.approx(values, nan_ok=True)
        assert (np.abs(values[np.isfinite(values)]) <= LARGEST).all()


def test_sources_without_rows_are_unknown_and_one_alone_is_the_mean() -> None:
    target = replace(two()[0], splits={"train": two()[0].splits["train"].take([])})
    target = replace(target, strata={"train": np.zeros(0, np.int64)})
    found = token_seconds([target, two()[1]], setup())[TOKEN_SECONDS]
    assert np.isnan(found[0])
    assert found[1] == 0
    assert np.isnan(token_seconds([target], setup())[TOKEN_SECONDS]).all()


# what an agent sees


def environment(**options: Any) -> MixtureEnv:
    return build_environment(
        WorldOptions.model_validate(
            {
                "sources": {
                    "addition": {"embedded": "addition", "rows": 60},
                    "sorting": {"embedded": "sorting", "rows": 60},
                },
                "data": {"strata": 2, "max_length": 64},
                "training": {"steps": 2, "interval": 1, "packs": 1},
                "environment": {"observation": "dict", "max_sources": 4, "max_strata": 3} | options,
            }
        )
    )


def test_an_agent_sees_it_from_the_start_and_padded_sources_are_zero() -> None:
    env = environment(probes=BOTH)
    wanted = env.world.constants
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for _ in range(2):
        assert observation[AGE].tolist() == [0, 0]
        top = observation[PREFIX + TOKEN_SECONDS]
        cells = observation[PREFIX + TOKEN_SECONDS_STRATA].reshape(4, 3)
        assert top[:2] == pytest.approx(wanted[TOKEN_SECONDS], rel=1e-6)
        assert cells[:2, :2] == pytest.approx(wanted[TOKEN_SECONDS_STRATA], rel=1e-6)
        assert not top[2:].any()
        assert not cells[2:].any()
        assert not cells[:, 2].any()
        observation, *_, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert top[0] * top[1] < 0  # one costs more than the mean, the other less
    assert info["decision"]["probes"].keys() == BOTH.keys()
    assert info["decision"]["cost"]["probe_tokens"] == 0
    batch = parts_of({name: values[None] for name, values in observation.items()})
    seen = read_signals(batch, 0).probes[TOKEN_SECONDS]
    assert seen[:2] == pytest.approx(wanted[TOKEN_SECONDS], rel=1e-6)


def test_nothing_changes_for_agents_that_do_not_ask() -> None:
    observation, _ = environment().reset(seed=0)
    assert not any(name.startswith("probe") for name in observation)


def test_on_curves_every_token_costs_the_same() -> None:
    from mixgym.envs.registration import make_mixture_env

    env = make_mixture_env(environment={"observation": "dict", "probes": BOTH})
    observation, _ = env.reset(seed=0)
    for name in BOTH:
        assert set(np.unique(observation[PREFIX + name])) <= {np.float32(ZERO), np.float32(0)}


def test_the_readme_and_the_list_of_probes_name_it() -> None:
    readme = (Path(mixgym.__file__).parent.parent / "README.md").read_text("utf-8")
    for name in BOTH:
        assert f"`{name}`" in readme
        assert PROBES[name].level in ("source", "stratum")
        assert "predicted seconds" in PROBES[name].summary or "the same" in PROBES[name].summary
