"""Numbers small enough to be worked out by hand."""

import math

import pytest
import torch

from mixgym.trainer.merging.methods.geometry import model_stock, spherical_mean

A = [1.0, 0.0, 0.0, 2.0, 0.0, -1.0]
B = [0.0, 0.0, 3.0, 2.0, 0.0, 1.0]
ZERO = [0.0] * 6


def test_average(bench):
    assert bench.one("linear", [A, B]).tolist() == [0.5, 0.0, 1.5, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(6))
def test_exhaustive_resampling_leaves_only_true_choices(bench, seed):
    merged = bench.one("select", [A, B], ZERO, seed=seed, parameters={"resample": "all"}).tolist()
    assert merged[:5] == [1.0, 0.0, 3.0, 2.0, 0.0]
    assert merged[5] in (-1.0, 1.0)


def test_selection_without_resampling(bench):
    seen = [bench.one("select", [A, B], seed=seed).tolist() for seed in range(24)]
    columns = [set(column) for column in zip(*seen, strict=True)]
    assert columns == [{0.0, 1.0}, {0.0}, {0.0, 3.0}, {2.0}, {0.0}, {-1.0, 1.0}]


@pytest.mark.parametrize(("rounds", "zero"), [(0, 2 / 3), (1, 1 / 3), (2, 0.0)])
def test_finite_rounds_draw_without_replacement(bench, rounds, zero):
    n = 60_000
    models = [torch.ones(n), torch.zeros(n), torch.zeros(n)]
    merged = bench.one("select", models, torch.zeros(n), parameters={"resample": rounds})
    share = float((merged == 0).double().mean())
    assert abs(share - zero) <= 4 * math.sqrt(zero * (1 - zero) / n)


TIES = [[2.0, -1.0, 0.0], [1.0, 3.0, -4.0], [-5.0, 1.0, 0.0]]


def test_ties(bench):
    assert bench.one("ties", TIES, [0.0] * 3).tolist() == [-5.0, 2.0, -4.0]


def test_ties_trimmed_to_one_entry_each(bench):
    merged = bench.one("ties", TIES, [0.0] * 3, parameters={"density": 0.34})
    assert merged.tolist() == [-5.0, 0.0, -4.0]


def test_equal_magnitudes_are_kept_in_index_order(bench):
    merged = bench.one("ties", [[1.0, -1.0, 1.0, 1.0]], [0.0] * 4, parameters={"density": 0.5})
    assert merged.tolist() == [1.0, -1.0, 0.0, 0.0]


def test_int_of_density_times_size_is_kept(bench):
    merged = bench.one("ties", [torch.ones(100)], torch.zeros(100), parameters={"density": 0.29})
    assert int(merged.count_nonzero()) == 28


def test_dare_doubles_or_drops(bench):
    n = 1_000_000
    merged = bench.one("dare_linear", [torch.ones(n)], torch.zeros(n), parameters={"density": 0.5})
    assert set(merged.unique().tolist()) == {0.0, 2.0}
    assert abs(float(merged.double().mean()) - 1.0) <= 0.004


def test_breadcrumbs_drop_both_ends(bench):
    values = [1.0, 10.0, 3.0, 4.0, 5.0]
    parameters = {"density": 0.4, "gamma": 0.2}
    merged = bench.one("breadcrumbs", [values], [0.0] * 5, parameters=parameters)
    assert merged.tolist() == [0.0, 0.0, 0.0, 4.0, 5.0]


def test_model_stock_of_orthogonal_deltas_is_the_base(bench):
    merged = bench.one("model_stock", [[2.0, 1.0], [1.0, 2.0]], [1.0, 1.0])
    assert merged.tolist() == [1.0, 1.0]


def test_model_stock_of_identical_deltas_is_the_model(bench):
    assert bench.one("model_stock", [[2.0, 3.0]] * 2, [1.0, 1.0]).tolist() == [2.0, 3.0]


def test_model_stock_formula():
    gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double().numpy()
    assert model_stock(gram).tolist() == pytest.approx([1 / 3, 1 / 3])  # t = 2 * .5 / 1.5


def test_slerp_of_orthonormal_vectors(bench):
    merged = bench.one("slerp", [[1.0, 0.0], [0.0, 1.0]])
    assert merged.tolist() == pytest.approx([math.sqrt(0.5)] * 2)


@pytest.mark.parametrize("method", ["karcher", "multislerp", "nuslerp"])
def test_spherical_means_of_two_agree_with_slerp(bench, method):
    merged = bench.one(method, [[1.0, 0.0], [0.0, 1.0]])
    assert merged.tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_karcher_mean_of_three_axes_is_their_diagonal():
    mean = spherical_mean(torch.eye(3).double().numpy(), torch.ones(3).double().numpy(), 50, 1e-12)
    assert mean.tolist() == pytest.approx([3**-0.5] * 3)


def test_nearswap_moves_by_its_reach(bench):
    merged = bench.one("nearswap", [[1.5, 0.4, -3.0]], [1.0, 0.5, 1.0], parameters={"t": 0.25})
    assert merged.tolist() == pytest.approx([1.25, 0.4, 0.75])


def test_sce_weighs_by_energy(bench):
    # energies 4 and 1, all signs agree: (4 * 2 + 1 * 1) / 5
    merged = bench.one("sce", [[2.0, 2.0], [1.0, 1.0]], [0.0, 0.0])
    assert merged.tolist() == pytest.approx([1.8, 1.8])


def test_task_arithmetic_adds_scaled_deltas(bench):
    merged = bench.one(
        "task_arithmetic", [[2.0, 1.0], [1.0, 3.0]], [1.0, 1.0], parameters={"lambda": 0.5}
    )
    assert merged.tolist() == [1.5, 2.0]


def test_ties_then_select(bench):
    merged = bench.one(
        "select",
        [[5.0, 1.0, 1.0, 1.0], [1.0, 5.0, 1.0, 1.0]],
        [0.0] * 4,
        sparsify="magnitude",
        parameters={"density": 0.25, "resample": "all"},
    )
    assert merged.tolist() == [5.0, 5.0, 0.0, 0.0]


def test_passthrough_copies_negative_zero(bench):
    merged = bench.one("passthrough", [[-0.0, 1.0]])
    assert torch.signbit(merged).tolist() == [True, False]
