"""Probes of a causal LM, each against numbers by hand or a reference written differently."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mixgym.envs.errors import ConfigError, DivergenceError
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.models.language_model import LanguageModel
from mixgym.envs.learners.probes import gradients
from mixgym.envs.learners.probes.losses import Probes, mean_cosine
from mixgym.envs.learners.probes.probe_rows import bare_rows, baseline_cost, draw_rows, probe_cost
from mixgym.envs.learners.probes.probed import Probed
from mixgym.envs.options import ModelOptions
from mixgym.envs.probes import PROBES
from mixgym.envs.sources.source import EncodedRows, Source, SourceReport

MEASURED = [name for name, kind in PROBES.items() if kind.passes]
Make = Callable[..., CausalLM]


# --- numbers by hand --------------------------------------------------------------------------


class Table(torch.nn.Module):
    """A model that is one vector."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Computes(LanguageModel):
    """Token losses are a function of the vector and the labels."""

    def __init__(self, values: list[float], loss: Callable[..., torch.Tensor]) -> None:
        self.module, self.device, self.attention = Table(values), torch.device("cpu"), "eager"
        self.options, self.loss = ModelOptions(), loss

    def token_losses(self, batch: Any, module: Any = None) -> torch.Tensor:
        return self.loss(self.module.values, batch.labels)


class Hand(Probes):
    """Probes of a model whose token losses are a function of its vector and the labels."""

    def __init__(
        self, rows: list[list[int]], values: list[float], loss: Callable[..., torch.Tensor]
    ) -> None:
        pairs = [
            (np.array([0, *row], np.int32), np.array([False, *([True] * len(row))])) for row in rows
        ]
        splits = {"train": EncodedRows.from_lists(pairs), "reward": EncodedRows.from_lists(pairs)}
        strata = {name: np.zeros(len(rows), np.int64) for name in splits}
        source = Source("a", 1.0, splits, strata, 1, None, SourceReport("a", "text"))
        trained: Any = SimpleNamespace(drops=False, recomputes=False)
        trained.language = Computes(values, loss)
        self.model = trained.module = trained.language.module
        trained.parameters = lambda: dict(self.model.named_parameters())
        optimisation: Any = None
        super().__init__(Probed(trained, optimisation, (source,), 64, 8, 0))

    probe, begin_probes = Probes.measure, Probes.begin


def unigram(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """NLL under softmax(logits), whatever stands before."""
    return -torch.log_softmax(logits, 0)[labels]


def half_square(weights: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(w . x - 0) ** 2 / 2, x the unit vector that the label names."""
    return 0.5 * weights[labels] ** 2


@pytest.mark.parametrize(("row", "norm"), [([0], 0.707107), ([0, 1], 0.0), ([0, 0, 1], 0.235702)])
def test_gradient_norms_of_a_unigram_model_by_hand(row: list[int], norm: float) -> None:
    model = Hand([row], [0.0, 0.0], unigram)
    for name in ("gradient_norm", "gradient_norm_examples"):
        assert model.probe(name).values == pytest.approx([norm], abs=1e-6)


def test_the_norm_of_a_mean_is_not_the_mean_of_norms() -> None:
    model = Hand([[0], [1]], [0.0, 0.0], unigram)
    assert model.probe("gradient_norm").values == pytest.approx([0.0], abs=1e-12)
    assert model.probe("gradient_norm_examples").values == pytest.approx([0.707107], abs=1e-6)
    toy = Hand([[0], [1]], [3.0, 4.0], half_square)
    assert toy.probe("gradient_norm").values == pytest.approx([2.5])
    assert toy.probe("gradient_norm_examples").values == pytest.approx([3.5])


def test_the_norm_scales_with_the_loss() -> None:
    once = Hand([[0, 0, 1], [1]], [0.3, -0.2], unigram)
    thrice = Hand([[0, 0, 1], [1]], [0.3, -0.2], lambda v, y: 3 * unigram(v, y))
    for name in ("gradient_norm", "gradient_norm_examples"):
        assert 3 * once.probe(name).values == pytest.approx(thrice.probe(name).values)


def test_ratios_by_hand() -> None:
    # token i has the probability that the vector says: two rows, of two and three tokens
    model = Hand([[0, 1], [2, 3, 4]], [0.25, 0.125, 0.6, 0.5, 0.4], lambda p, y: -torch.log(p[y]))
    names = ("perplexity_ratio", "nll_difference", "loss_ratio", "loss")
    model.begin_probes(names)
    for name in names[:-1]:
        assert model.probe(name).values[0, 0] == (name != "nll_difference")
    model.model.values.data = torch.tensor([0.5, 0.25, 0.9, 0.8, 0.5], dtype=torch.float64)
    found = {name: model.probe(name).values[0, 0] for name in names}
    first, second = math.log(2.828427), math.log(1.405721)
    begun = math.log(5.656854), math.log(2.027401)
    assert found["perplexity_ratio"] == pytest.approx(0.596681, abs=1e-6)
    assert math.exp(found["nll_difference"]) == pytest.approx(0.588796, abs=1e-6)
    assert found["loss"] == pytest.approx((first + second) / 2, abs=1e-6)
    ratio = (first / begun[0] + second / begun[1]) / 2
    assert found["loss_ratio"] == pytest.approx(ratio, abs=1e-6)


def test_ifd_compares_with_the_completion_alone() -> None:
    pairs = [(np.array([7, 8, 9, 3, 4, 5], np.int32), np.array([0, 0, 0, 1, 1, 1], np.bool_))]
    pairs.append((np.array([7, 3, 8, 9, 4], np.int32), np.array([0, 1, 0, 0, 1], np.bool_)))
    bare = bare_rows(EncodedRows.from_lists(pairs))
    assert [bare.row(i)[0].tolist() for i in range(2)] == [[9, 3, 4, 5], [7, 3, 4]]
    assert [bare.row(i)[1].tolist() for i in range(2)] == [[0, 1, 1, 1], [0, 1, 1]]


def test_embeddings_are_compared_with_all_others_and_themselves() -> None:
    whole = np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, 1.0], [1.0, 1.0]])
    assert mean_cosine(whole) == pytest.approx(
        [0.569036, np.nan, 0.569036, 0.804738], abs=1e-6, nan_ok=True
    )


# --- against a reference ----------------------------------------------------------------------


def plain_losses(model: Any, tokens: Any, labels: Any) -> torch.Tensor:
    """NLL of the supervised tokens of one row, by the library's own attention, unpacked."""
    ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
    logits = model(input_ids=ids).logits[0]
    every = torch.nn.functional.cross_entropy(logits[:-1].float(), ids[0, 1:], reduction="none")
    return every[torch.from_numpy(np.asarray(labels, np.bool_)[1:])]


def blocks(model: Any) -> Any:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


class Reference:
    """The same probes, row by row and by ``backward``, on a copy of the model."""

    def __init__(self, learner: CausalLM) -> None:
        self.learner = learner
        self.model = copy.deepcopy(learner.model).eval()
        self.model.set_attn_implementation("eager")
        self.rows = draw_rows(learner.sources, learner.probes.probed.per_stratum, learner._seed)

    def mine(self, source: int) -> list[tuple[Any, Any]]:
        rows = self.learner.sources[source].splits["train"]
        return [rows.row(int(i)) for k, _, i in self.rows if k == source]

    def gradient(self, rows: list[tuple[Any, Any]], parameters: Any = None) -> torch.Tensor:
        self.model.zero_grad()
        torch.cat([plain_losses(self.model, *row) for row in rows]).mean().backward()
        chosen = self.model.parameters() if parameters is None else parameters
        return torch.cat([p.grad.flatten().double() for p in chosen])

    def target(self, source: int) -> torch.Tensor:
        rows = self.learner.sources[source].splits["reward"]
        return self.gradient([rows.row(i) for i in range(len(rows))])

    def row_losses(self) -> list[float]:
        with torch.no_grad():
            return [
                float(
                    plain_losses(
                        self.model, *self.learner.sources[k].splits["train"].row(int(i))
                    ).mean()
                )
                for k, _, i in self.rows
            ]


@pytest.fixture
def weighted(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """The second source counts three times as much."""
    return (sources[0], replace(sources[1], target=3.0))


@pytest.fixture(params=["llama", "gpt2", "qwen2"])
def pair(request: Any, make_learner: Make, weighted: Any) -> tuple[CausalLM, Reference]:
    learner = make_learner(request.param, sources=weighted)
    learner.probe_rows = 3
    return learner, Reference(learner)


CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 1e-5}


def test_gradients_are_those_of_backward(pair: tuple[CausalLM, Reference]) -> None:
    learner, slow = pair
    own = [slow.gradient(slow.mine(k)) for k in range(2)]
    targets = [slow.target(k) for k in range(2)]
    target = 0.25 * targets[0] + 0.75 * targets[1]
    cosine = torch.nn.functional.cosine_similarity
    expected = {
        "gradient_norm": [g.norm() for g in own],
        "gradient_norm_examples": [
            np.mean([float(slow.gradient([row]).norm()) for row in slow.mine(k)]) for k in range(2)
        ],
        "gradient_alignment": [g @ target / target.norm() for g in own],
        "gradient_influence": [own[0] @ own[1], own[0] @ own[1]],
        "gradient_cosine": [
            0.25 * cosine(g, targets[0], 0) + 0.75 * cosine(g, targets[1], 0) for g in own
        ],
    }
    for name, values in expected.items():
        found = learner.probe(name).values
        np.testing.assert_allclose(found, [float(v) for v in values], **CLOSE, err_msg=name)


def test_the_last_block_alone(pair: tuple[CausalLM, Reference]) -> None:
    learner, slow = pair
    kept = list(blocks(slow.model)[-1].parameters())
    expected = [float(slow.gradient(slow.mine(k), kept).norm()) for k in range(2)]
    np.testing.assert_allclose(learner.probe("gradient_norm_last").values, expected, **CLOSE)
    assert all(p.requires_grad for p in learner.model.parameters())


def test_norms_of_packed_rows_are_those_of_rows_alone(pair: tuple[CausalLM, Reference]) -> None:
    learner, slow = pair
    kept = [
        p
        for module in blocks(slow.model)[-1].modules()
        if type(module).__name__ in ("Linear", "Conv1D")
        for p in module.parameters()
    ]
    for rows in (3, 8):
        learner.probes = learner.make_probes(rows, 3)
        slow.rows = draw_rows(learner.sources, rows, learner._seed)
        expected = [
            np.mean([float(slow.gradient([row], kept).norm()) for row in slow.mine(k)])
            for k in range(2)
        ]
        found = learner.probe("gradient_norm_examples_last").values
        np.testing.assert_allclose(found, expected, **CLOSE)
    assert all(p.requires_grad for p in learner.model.parameters())


def test_losses_are_those_of_rows_alone(
    pair: tuple[CausalLM, Reference], make_plan: Any, make_pack: Any
) -> None:
    from mixgym.envs.learners.base import PlainStep

    learner, slow = pair
    names = [n for n in MEASURED if PROBES[n].level == "stratum" and not PROBES[n].needs_reference]
    learner.begin_probes(names)
    start, bare_start = slow.row_losses(), bare_losses(slow)
    learner.train(make_plan([[make_pack([(0, 1), (1, 2)])]] * 3), PlainStep(), 0.0)
    slow = Reference(learner)
    now, bare = slow.row_losses(), bare_losses(slow)
    by_row = {
        "loss": now,
        "nll_difference": np.subtract(now, start),
        "perplexity_ratio": np.exp(now) / np.exp(start),
        "loss_ratio": np.divide(now, start),
        "ifd_ratio": (np.exp(now) / np.exp(bare)) / (np.exp(start) / np.exp(bare_start)),
    }
    cells = [(int(k), int(g)) for k, g, _ in slow.rows]
    for name in names:
        table = np.zeros((2, 2))
        for cell in set(cells):
            table[cell] = np.mean(
                [v for v, c in zip(by_row[name], cells, strict=True) if c == cell]
            )
        np.testing.assert_allclose(learner.probe(name).values, table, **CLOSE, err_msg=name)


def bare_losses(slow: Reference) -> list[float]:
    """Row NLL with everything but the completion and the token before it cut away."""
    found = []
    for k, _, i in slow.rows:
        tokens, labels = slow.learner.sources[k].splits["train"].row(int(i))
        first = labels.tolist().index(True)
        kept = [t for j, t in enumerate(tokens.tolist()) if labels[j] or j == first - 1]
        with torch.no_grad():
            losses = plain_losses(slow.model, kept, [False] + [True] * (len(kept) - 1))
        found.append(float(losses.mean()))
    return found


def test_embeddings_are_means_over_tokens_then_rows(pair: tuple[CausalLM, Reference]) -> None:
    learner, slow = pair
    means = []
    for k in range(2):
        rows = []
        for tokens, _ in slow.mine(k):
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            with torch.no_grad():
                rows.append(
                    slow.model(input_ids=ids, output_hidden_states=True)
                    .hidden_states[-1][0]
                    .mean(0)
                )
        means.append(torch.stack(rows).mean(0))
    other = float(torch.nn.functional.cosine_similarity(means[0], means[1], 0))
    assert learner.probe("cosine_similarity").values == pytest.approx(
        [(1 + other) / 2] * 2, abs=1e-5
    )


def test_projections_keep_cosines(pair: tuple[CausalLM, Reference]) -> None:
    learner, slow = pair
    parameters = learner.probes.probed.parameters()
    target = 0.25 * slow.target(0) + 0.75 * slow.target(1)
    exact = []
    for k in range(2):
        g = slow.gradient(slow.mine(k))
        exact.append(float(torch.nn.functional.cosine_similarity(g / (g.abs() + 1e-8), target, 0)))
    assert sum(p.numel() for p in parameters) == len(target)
    np.testing.assert_allclose(learner.probe("projected_alignment").values, exact, atol=0.05)
    again = learner.probe("projected_alignment").values
    assert again.tolist() == learner.probe("projected_alignment").values.tolist()


def test_adams_direction_is_the_step_that_adam_takes(
    make_learner: Make, make_plan: Any, make_pack: Any
) -> None:
    from mixgym.envs.learners.base import PlainStep

    learner = make_learner("llama", weight_decay=0.0, clip=None)
    learner.train(make_plan([[make_pack([(0, 1), (1, 2)])]] * 3), PlainStep(), 0.0)
    parameters = learner.probes.probed.parameters()
    before = [p.detach().clone() for p in parameters]
    packs = (make_pack([(0, 3), (1, 4)]),)
    learner.accumulate(packs)
    wanted = gradients.adam_direction(
        [p.grad.clone() for p in parameters if p.grad is not None],
        parameters,
        learner.optimisation.optimizer,
    )
    learner.apply()
    rate = learner.optimisation.optimizer.param_groups[0]["lr"]
    for old, new, step in zip(before, parameters, wanted, strict=True):
        torch.testing.assert_close((old - new.detach()) / rate, step, rtol=1e-3, atol=2e-4)


# --- what stays as it was ---------------------------------------------------------------------


def everything(learner: CausalLM) -> list[Any]:
    """All that a probe must not touch, as plain values."""
    return [
        [p.detach().clone() for p in learner.model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in learner.model.parameters()],
        [p.requires_grad for p in learner.model.parameters()],
        [b.clone() for b in learner.model.buffers()],
        copy.deepcopy(learner.optimisation.optimizer.state_dict()),
        [module.training for module in learner.model.modules()],
        [len(module._forward_hooks) for module in learner.model.modules()],
        torch.get_rng_state(),
        str(np.random.get_state()),  # noqa: NPY002 - the global stream is what is watched
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.fixture
def learner(make_learner: Make, make_plan: Any, make_pack: Any) -> CausalLM:
    """A model with dropout in the middle of its training, its modes mixed, a gradient left over."""
    from mixgym.envs.learners.base import PlainStep

    rates = {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    found = make_learner("gpt2", config=rates)
    found._make_reference = lambda: make_learner("gpt2", config={"initializer_range": 0.1})
    found.probes = found.make_probes(8, 3)
    found.begin_probes(MEASURED)
    found.train(make_plan([[make_pack([(0, 1), (1, 2)])]] * 2), PlainStep(), 0.0)
    found.accumulate((make_pack([(0, 3)]),))
    found.model.transformer.h[1].eval()
    return found


@pytest.mark.parametrize("name", MEASURED)
def test_probes_leave_everything_as_it_was(name: str, learner: CausalLM) -> None:
    before = everything(learner)
    first = learner.probe(name)
    assert same(everything(learner), before)
    second = learner.probe(name)
    np.testing.assert_array_equal(first.values, second.values)
    assert first.tokens == second.tokens > 0
    assert np.isfinite(first.values).all()


def test_training_goes_on_as_if_nobody_had_looked(
    make_learner: Make, make_plan: Any, make_pack: Any
) -> None:
    from mixgym.envs.learners.base import PlainStep

    names = [name for name in MEASURED if not PROBES[name].needs_reference]

    def run(probed: bool) -> list[float]:
        learner = make_learner("gpt2", config={"resid_pdrop": 0.2})
        learner.begin_probes(names if probed else [])
        for step in range(3):
            learner.train(make_plan([[make_pack([(0, step), (1, 2)])]]), PlainStep(), 0.1 * step)
            for name in names if probed else []:
                learner.probe(name)
        return [float(p.detach().double().sum()) for p in learner.model.parameters()]

    assert run(True) == run(False)


def test_recomputed_activations_change_nothing(make_learner: Make) -> None:
    plain = make_learner("llama")
    again = make_learner("llama", model={"gradient_checkpointing": True})
    for name in [name for name in gradients.PROBES if name != "projected_alignment"]:
        np.testing.assert_allclose(plain.probe(name).values, again.probe(name).values, **CLOSE)


def test_masks_give_what_packing_gives(make_learner: Make) -> None:
    plain, masked = make_learner("llama"), make_learner("llama", model={"attention": "sdpa"})
    for name in ("gradient_norm", "cosine_similarity", "loss"):
        np.testing.assert_allclose(plain.probe(name).values, masked.probe(name).values, **CLOSE)


# --- rows, costs, state, errors ---------------------------------------------------------------


def test_rows_are_drawn_once_by_seed_and_source(sources: tuple[Source, ...]) -> None:
    rows = draw_rows(sources, 3, 7)
    assert rows.tolist() == draw_rows(sources, 3, 7).tolist()
    assert rows.tolist() != draw_rows(sources, 3, 8).tolist()
    for k, source in enumerate(sources):
        alone = draw_rows((source,), 3, 7)
        assert rows[rows[:, 0] == k][:, 1:].tolist() == alone[:, 1:].tolist()
        assert (source.strata["train"][alone[:, 2]] == alone[:, 1]).all()
        assert len(set(alone[:, 2].tolist())) == len(alone) == 6
    every = draw_rows(sources, 1000, 7)
    assert len(every) == sum(len(source.splits["train"]) for source in sources)


def test_costs_are_known_before_there_is_a_model(make_learner: Make) -> None:
    learner = make_learner("llama")
    rows = (learner.sources, learner.probes.probed.per_stratum, learner._seed)
    read: list[int] = []
    forward = learner.trained.language.token_losses

    def counted(batch: Any, model: Any = None) -> torch.Tensor:
        read.append(batch.tokens)
        return forward(batch, model)

    learner.trained.language.token_losses = counted  # type: ignore[method-assign]
    assert learner.begin_probes(["perplexity_ratio", "ifd_ratio"]) == sum(read)
    assert sum(read) == baseline_cost(["perplexity_ratio", "ifd_ratio"], *rows)
    for name in MEASURED:
        if PROBES[name].needs_reference:
            continue
        read.clear()
        cost = learner.probe(name).tokens
        assert cost == probe_cost(name, *rows)
        back = PROBES[name].level == "source" and name != "cosine_similarity"
        assert cost == sum(read) * ((2 if name.endswith("last") else 3) if back else 1), name


def test_what_the_start_was_survives_snapshots_forks_and_files(
    make_learner: Make, make_plan: Any, make_pack: Any, tmp_path: Path
) -> None:
    from mixgym.envs.learners.base import PlainStep

    learner = make_learner("llama")
    learner.begin_probes(["perplexity_ratio", "ifd_ratio"])
    learner.train(make_plan([[make_pack([(0, 1), (1, 2)])]] * 3), PlainStep(), 0.0)
    expected = learner.probe("perplexity_ratio").values.tolist()
    assert max(max(row) for row in expected) != 1.0
    other, third = make_learner("llama"), make_learner("llama")
    other.restore(learner.snapshot())
    learner.save(tmp_path)
    third.load(tmp_path)
    for twin in (other, third, learner.fork()):
        assert twin.probe("perplexity_ratio").values.tolist() == expected
        assert twin.probe("ifd_ratio").values.tolist() == learner.probe("ifd_ratio").values.tolist()


def test_excess_over_the_reference_by_hand() -> None:
    model = Hand([[0, 1], [2]], [0.5, 0.25, 0.5], lambda p, y: -torch.log(p[y]))
    better = Hand([[0, 1], [2]], [0.25, 0.5, 1.0], lambda p, y: -torch.log(p[y]))
    model._make_reference = lambda: better.token_losses(bare=False)
    model.begin_probes(["excess_loss"])
    # the first token is better than the reference's: 0; the others are log 2 worse each
    assert model.probe("excess_loss").values == pytest.approx(np.array([[2 * math.log(2) / 3]]))


def test_what_cannot_be_compared_is_an_error(make_learner: Make) -> None:
    learner = make_learner("llama")
    with pytest.raises(ConfigError, match=r"excess_loss compares with a reference model"):
        learner.begin_probes(["loss", "excess_loss"])
    with pytest.raises(ConfigError, match="were not measured"):
        learner.probe("perplexity_ratio")


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "cosine_similarity"])
def test_a_value_that_is_not_finite_names_the_source(name: str, make_learner: Make) -> None:
    learner = make_learner("llama")
    with torch.no_grad():
        next(iter(learner.model.parameters())).fill_(math.nan)
    with pytest.raises(DivergenceError, match=f"the probe {name} of source 'first' is not finite"):
        learner.probe(name)
