"""What two levels of weights mean to the sampler that draws from their product."""

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.sources.sampler import MixtureSampler
from mixgym.envs.spaces.mixture import Mixture

from ..synthetic import make_source

TOP = [0.6, 0.4]
INNER = [[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]
JOINT = [[0.06, 0.12, 0.18, 0.24], [0.1, 0.1, 0.1, 0.1]]


def counts(mixture: Mixture, rows: int, seed: int = 0) -> FloatArray:
    """Rows drawn from each source and stratum."""
    sources = [
        make_source(name, [1] * 400, strata=[g for g in range(4) for _ in range(100)], n_strata=4)
        for name in ("a", "b")
    ]
    sampler = MixtureSampler(sources, "rows", seed)
    sampler.set_mixture(mixture)
    drawn = np.zeros(8)
    while drawn.sum() < rows:
        proposal = sampler.propose(min(1000, int(rows - drawn.sum())))
        count = min(len(proposal), int(rows - drawn.sum()))
        drawn += np.bincount(proposal.cell[:count], minlength=8)
        sampler.take(proposal, count)
    return drawn.reshape(2, 4)


def test_cells_are_drawn_by_the_product_of_both_levels() -> None:
    mixture = Mixture.of(TOP, INNER)
    np.testing.assert_allclose(mixture.cells, JOINT, atol=1e-12)
    rows = 20_000
    expected = rows * mixture.cells
    chi_square = ((counts(mixture, rows) - expected) ** 2 / expected).sum()
    assert chi_square < 24.3  # the 99.9th percentile with 7 degrees of freedom


def test_a_batch_mixes_sources_and_strata() -> None:
    assert (counts(Mixture.of(TOP, INNER), 64) > 0).all()


def test_the_strata_of_a_source_do_not_touch_another_source() -> None:
    other = counts(Mixture.of(TOP, [[1, 0, 0, 0], INNER[1]]), 10_000)
    same = counts(Mixture.of(TOP, INNER), 10_000)
    np.testing.assert_allclose(other[1], same[1], atol=2)
    np.testing.assert_allclose(other.sum(-1), same.sum(-1), atol=2)
