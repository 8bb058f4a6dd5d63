from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import MixgymError
from mixgym.envs.interval_plan import Budget, IntervalPlan
from mixgym.envs.packing.plane import PackedPlane
from mixgym.envs.sources.sampler import MixtureSampler, Proposal
from mixgym.envs.sources.source import Source
from mixgym.envs.spaces.mixture import Mixture

from ..synthetic import make_source, random_sources

SEEDS = st.integers(0, 2**31)
UNITS = ("supervised_tokens", "tokens", "rows")


def random_mixture(rng: np.random.Generator, sources: list[Source]) -> Mixture:
    """Weights on some of the sources and strata, with rows behind all of them."""
    available = MixtureSampler(sources, "rows", 0).available()
    tops = rng.dirichlet(np.ones(len(sources)))
    inner = rng.dirichlet(np.ones(sources[0].n_strata), len(sources))
    return Mixture(tops, inner).restricted(available)


def drawn(sampler: MixtureSampler, proposal: Proposal, count: int) -> list[tuple[int, int]]:
    """Take ``count`` rows; returns (cell, position) of each."""
    sampler.take(proposal, count)
    pairs = zip(proposal.cell[:count].tolist(), proposal.position[:count].tolist(), strict=True)
    return list(pairs)


def units_of(source: Source, unit: str) -> np.ndarray:
    rows = source.splits["train"]
    return {
        "supervised_tokens": rows.supervised,
        "tokens": rows.lengths,
        "rows": np.ones(len(rows), np.int64),
    }[unit]


@settings(max_examples=60)
@given(SEEDS)
def test_no_row_is_lost_or_repeated_within_an_epoch_of_its_stratum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sources = random_sources(rng, rows=(1, 12))
    sampler = MixtureSampler(sources, "supervised_tokens", seed)
    history: dict[int, list[int]] = {}
    for _ in range(25):
        if not sampler.available().any():
            break
        try:
            sampler.set_mixture(random_mixture(rng, sources))
        except MixgymError:  # all that this mixture weights is used up
            continue
        proposal = sampler.propose(int(rng.integers(1, 200)))
        for cell, position in drawn(sampler, proposal, int(rng.integers(len(proposal) + 1))):
            history.setdefault(cell, []).append(position)
    for cell, positions in history.items():
        size = len(sampler.cells[cell].rows)
        for epoch in range(0, len(positions), size):
            part = positions[epoch : epoch + size]
            assert len(set(part)) == len(part), "repeated"
            if len(part) == size:
                assert sorted(part) == list(range(size)), "lost"


def cell_order(sampler: MixtureSampler, cell: int, mixtures: list[Mixture]) -> list[int]:
    found = []
    for mixture in mixtures:
        sampler.set_mixture(mixture)
        proposal = sampler.propose(150)
        pairs = drawn(sampler, proposal, len(proposal) // 2)
        found += [int(sampler.cells[c].rows[p]) for c, p in pairs if c == cell]
    return found


def test_the_order_of_a_cell_depends_on_seed_name_stratum_and_epoch_only() -> None:
    a = make_source("a", list(range(2, 22)), strata=[0, 1] * 10, n_strata=2)
    b = make_source("b", [7] * 30, strata=[0, 1] * 15, n_strata=2)
    c = make_source("c", [9] * 5, strata=[0] * 5, n_strata=2)
    even = Mixture.of([0.5, 0.5], np.full((2, 2), 0.5))
    mixed = [Mixture.of([w, 1 - w], [[v, 1 - v]] * 2) for w, v in ((0.9, 0.2), (0.3, 0.7))]
    other = Mixture.of([0.2, 0.3, 0.5], [[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]])
    orders = [
        cell_order(MixtureSampler([a, b], "supervised_tokens", 3), 0, [even] * 12),
        cell_order(MixtureSampler([a, b], "rows", 3), 0, mixed * 6),
        cell_order(MixtureSampler([c, b, a], "tokens", 3), 4, [other] * 12),
    ]
    shortest = min(map(len, orders))
    assert shortest > 10, "more than an epoch"
    assert orders[0][:shortest] == orders[1][:shortest] == orders[2][:shortest]

    def first_epochs(source: Source, cell: int, seed: int) -> list[list[int]]:
        cells = MixtureSampler([source], "rows", seed).cells[cell]
        return [cells.order(seed, epoch).tolist() for epoch in (0, 1)]

    renamed = make_source("d", list(range(2, 22)), strata=[0, 1] * 10, n_strata=2)
    seen = [
        tuple(order)
        for orders in (
            first_epochs(a, 0, 3),
            first_epochs(a, 1, 3),
            first_epochs(a, 0, 4),
            first_epochs(renamed, 0, 3),
        )
        for order in orders
    ]
    assert max(Counter(seen).values()) == 1


class Account:
    """Requested and realised units since the last change of mixture, kept by the test."""

    def __init__(self, sources: list[Source], unit: str) -> None:
        self.units = [units_of(source, unit) for source in sources]
        self.longest = np.zeros((len(sources), sources[0].n_strata))
        for k, source in enumerate(sources):
            for g in range(source.n_strata):
                inside = source.strata["train"] == g
                self.longest[k, g] = self.units[k][inside].max(initial=0)
        self.mixture: Mixture | None = None
        self.realised = np.zeros_like(self.longest)

    def add(self, mixture: Mixture, plan: IntervalPlan) -> None:
        if self.mixture is None or not np.array_equal(mixture.cells, self.mixture.cells):
            self.mixture, self.realised = mixture, np.zeros_like(self.longest)
        for step in plan.steps:
            for pack in step:
                for k, g, row in pack.rows.tolist():
                    self.realised[k, g] += self.units[k][row]

    def worst(self) -> float:
        """Largest |requested - realised|, in longest rows of its cell."""
        assert self.mixture is not None
        gap = np.abs(self.realised - self.mixture.cells * self.realised.sum())
        return float((gap / np.maximum(self.longest, 1e-12))[self.mixture.cells > 0].max())

    def near_a_common_total(self, rows: float) -> bool:
        """Whether there is a total of which every cell is within ``rows`` longest rows."""
        assert self.mixture is not None
        used = self.mixture.cells > 0
        share, slack = self.mixture.cells[used], rows * self.longest[used] + 1e-6
        low = (self.realised[used] - slack) / share
        return bool(low.max() <= ((self.realised[used] + slack) / share).min())


@settings(max_examples=60)
@given(SEEDS, st.sampled_from(UNITS))
def test_shares_are_within_a_row_of_what_was_asked_at_the_end_of_every_balanced_interval(
    seed: int, unit: str
) -> None:
    rng = np.random.default_rng(seed)
    sources = random_sources(rng, capped=0.0)
    data = PackedPlane(sources, unit=unit, capacity=32, packs=2, seed=seed)  # type: ignore[arg-type]
    account = Account(sources, unit)
    mixture = random_mixture(rng, sources)
    for _ in range(12):
        if rng.random() < 0.2:
            mixture = random_mixture(rng, sources)
        plan = data.plan(mixture, Budget(int(rng.integers(1, 5))))
        account.add(mixture, plan)
        assert np.array_equal(account.realised, data.sampler.realised())
        assert plan.balanced == (account.worst() <= 1 + 1e-6)
        # rows are due at their middle, so that even between balance points every cell is within
        # half a row of its share of one common total, if not of the sum of what was handed out
        assert account.near_a_common_total(0.5)


def test_intervals_are_balanced_in_ordinary_settings() -> None:
    """At least 20 rows per cell in an interval: nearly every interval ends balanced."""
    flags = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        unit = UNITS[seed % 3]
        sources = random_sources(rng, rows=(60, 90), sources=(1, 3), capped=0.0)
        mixture = random_mixture(rng, sources)
        smallest = mixture.cells[mixture.cells > 0].min()
        steps = int(np.ceil(20 * 17 / max(smallest, 0.02) / (32 * 4)))
        data = PackedPlane(sources, unit=unit, capacity=32, packs=4, seed=seed)  # type: ignore[arg-type]
        flags += [data.plan(mixture, Budget(steps)).balanced for _ in range(2)]
    assert np.mean(flags) >= 0.99


def test_rows_that_did_not_fit_are_first_next_time() -> None:
    sources = random_sources(np.random.default_rng(5), rows=(30, 40), sources=(3, 3), capped=0.0)
    sampler = MixtureSampler(sources, "supervised_tokens", 0)
    sampler.set_mixture(random_mixture(np.random.default_rng(6), sources))
    whole = sampler.propose(600)
    sampler.take(whole, 11)
    rest = sampler.propose(100)
    assert len(rest) < len(whole) - 11
    for name in ("cell", "position", "row", "tokens", "supervised", "balanced"):
        assert getattr(rest, name).tolist() == getattr(whole, name)[11 : 11 + len(rest)].tolist()


@settings(max_examples=40)
@given(SEEDS)
def test_a_longer_proposal_begins_with_the_shorter_one(seed: int) -> None:
    """What is due next does not depend on how far one looks, caps or not."""
    rng = np.random.default_rng(seed)
    sources = random_sources(rng)
    sampler = MixtureSampler(sources, "supervised_tokens", seed)
    sampler.set_mixture(random_mixture(rng, sources))
    short, long = sampler.propose(int(rng.integers(1, 200))), sampler.propose(400)
    count = min(len(short), len(long))
    assert short.cell[:count].tolist() == long.cell[:count].tolist()
    assert short.position[:count].tolist() == long.position[:count].tolist()


def test_due_times_by_hand() -> None:
    # a: rows of 4 and weight .25, due when the total is 8, 24, ...; b: rows of 2 and weight .75,
    # due at 4/3, 4, 20/3, 28/3, 12, ...
    sources = [make_source("a", [4] * 9), make_source("b", [2] * 99)]
    sampler = MixtureSampler(sources, "tokens", 0)
    sampler.set_mixture(Mixture.of([0.25, 0.75], [[1.0], [1.0]]))
    assert sampler.propose(26).cell.tolist()[:10] == [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("epochs", "rows", "limit"),
    [(1.0, 7, 7), (2.0, 3, 6), (0.5, 4, 2), (0.5, 3, 2), (1.1, 10, 11), (0.01, 5, 1), (2.5, 2, 5)],
)
def test_a_cap_on_epochs_is_a_number_of_rows(epochs: float, rows: int, limit: int) -> None:
    source = make_source("a", [3] * rows, max_epochs=epochs)
    sampler = MixtureSampler([source], "rows", 0)
    sampler.set_mixture(Mixture.of([1.0], [[1.0]]))
    proposal = sampler.propose(10_000)
    assert len(proposal) == limit
    sampler.take(proposal, limit - 1)
    assert sampler.available().all()
    sampler.take(sampler.propose(1), 1)
    assert not sampler.available().any()
    assert sampler.epochs().item() == pytest.approx(limit / rows)
    with pytest.raises(MixgymError, match="used up"):
        sampler.set_mixture(Mixture.of([1.0], [[1.0]]))


def test_cells_without_rows_are_never_available() -> None:
    sources = [
        make_source("a", [3, 4], strata=[1, 1], n_strata=3),
        make_source("target only", [], n_strata=3),
    ]
    sampler = MixtureSampler(sources, "tokens", 0)
    assert sampler.available().tolist() == [[False, True, False], [False] * 3]
    sampler.set_mixture(Mixture.of([0.5, 0.5], np.full((2, 3), 1 / 3)))
    assert set(sampler.propose(50).cell.tolist()) == {1}


def test_the_account_starts_anew_only_when_the_mixture_changes() -> None:
    sources = [make_source("a", [3] * 50), make_source("b", [5] * 50)]
    sampler = MixtureSampler(sources, "tokens", 0)
    for _ in range(2):
        sampler.set_mixture(Mixture.of([0.5, 0.5], [[1.0], [1.0]]))
        sampler.take(sampler.propose(40), 8)
    assert sampler.realised().sum() == pytest.approx(sampler.requested().sum())
    assert sampler.realised().sum() > 8 * 5
    sampler.set_mixture(Mixture.of([0.4, 0.6], [[1.0], [1.0]]))
    assert sampler.realised().sum() == 0


@settings(max_examples=30)
@given(SEEDS)
def test_a_snapshot_goes_on_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sources = random_sources(rng)
    one = MixtureSampler(sources, "supervised_tokens", seed)
    mixture = random_mixture(rng, sources)
    one.set_mixture(mixture)
    one.take(one.propose(80), 5)
    state = one.snapshot()
    two = MixtureSampler(sources, "supervised_tokens", seed + 1)
    two.restore(state)
    assert two.snapshot() == state
    assert two.available().tolist() == one.available().tolist()
    if not one.available().any():
        return
    for sampler in (one, two):
        sampler.set_mixture(
            random_mixture(np.random.default_rng(seed), sources).restricted(sampler.available())
        )
    here, there = one.propose(90), two.propose(90)
    assert here.row.tolist() == there.row.tolist()
    one.take(here, len(here))
    assert two.snapshot()["drawn"] == state["drawn"]


def test_a_row_far_above_the_mean_of_its_cell_leaves_nothing_due_for_long() -> None:
    """A tenth of the units to a cell of tiny rows and one huge one: after that, none for long."""
    tiny = [2] * 400
    tiny[137] = 300  # somewhere in the order, a thousand times what is asked next
    sources = [
        make_source("heavy-tailed", tiny, supervised=[1] * 137 + [299] + [1] * 262),
        make_source("even", [20] * 400),
    ]
    sampler = MixtureSampler(sources, "supervised_tokens", 0)
    taken = [0, 0]
    for _ in range(3000):
        sampler.set_mixture(Mixture.of([0.1, 0.9], [[1.0], [1.0]]))
        proposal = sampler.propose(1)
        sampler.take(proposal, 1)
        taken[int(proposal.cell[0])] += 1
    assert min(taken) > 0
    assert np.abs(sampler.requested() - sampler.realised()).max() <= 299 / 2 + 20
