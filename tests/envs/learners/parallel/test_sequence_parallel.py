from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mixgym.envs.errors import ConfigError, PackingError
from mixgym.envs.learners.batching import Batch, shard_batch
from mixgym.envs.learners.models.attention import DOCUMENTS, packed_forward, register
from mixgym.envs.learners.parallel.sequence_parallel import (
    WHOLE,
    Shard,
    check_heads,
    make_shards,
    to_heads,
    to_tokens,
)

Ranks = Callable[..., list[Any]]
VOCABULARY = 61
# degrees in the order in which they take turns, in one set of processes
TURNS = (1, 2, 4, 1, 4, 2)


def model(key_value_heads: int, kind: str = "llama") -> Any:
    """A seeded model of four heads in float64."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "initializer_range": 0.3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 64,
        "head_dim": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind == "gptOss":  # sinks, a window shorter than some documents, and every expert in use
        sizes |= {"num_local_experts": 2, "num_experts_per_tok": 2, "sliding_window": 4}
    kind = kind[0].upper() + kind[1:]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = getattr(transformers, f"{kind}ForCausalLM")(config)
    made = made if kind == "GptOss" else made.double()  # its experts are not for float64
    register()
    made.set_attn_implementation(DOCUMENTS)
    return made.train()


def batches(count: int) -> list[Batch]:
    """Packs of random documents; lengths that neither 2 nor 4 divides are among them."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        lengths = tuple(int(n) for n in generator.integers(2, 9, 4))
        tokens = sum(lengths)
        starts = np.cumsum((0, *lengths[:-1]))
        supervised = np.setdiff1d(np.flatnonzero(generator.random(tokens) < 0.6), starts)
        ids = torch.from_numpy(generator.integers(0, VOCABULARY, tokens))
        made.append(
            Batch(
                ids[None],
                torch.cat([torch.arange(n) for n in lengths])[None],
                lengths,
                torch.from_numpy(supervised - 1),
                ids[torch.from_numpy(supervised)],
                torch.ones(len(supervised)),
                np.zeros(len(supervised), np.int64),
                np.searchsorted(starts, supervised, side="right") - 1,
            )
        )
    return made


def backward(made: Any, batch: Batch, shard: Shard, count: int) -> float:
    """Adds the gradient of a pack's part of the global token mean; returns that part."""
    mine = shard_batch(batch, shard)
    logits = packed_forward(
        made,
        mine.input_ids,
        mine.position_ids,
        mine.document_lengths,
        logits_to_keep=mine.predictors,
        sequence=shard,
    )
    losses = torch.nn.functional.cross_entropy(logits[0], mine.labels, reduction="sum")
    loss = losses / count
    loss.backward()
    return float(loss.detach())


def gradients(made: Any) -> torch.Tensor:
    return torch.cat([p.grad.ravel() for p in made.parameters()])


def reference(made: Any, packs: list[Batch]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of all packs in one process."""
    made.zero_grad()
    count = sum(len(batch.labels) for batch in packs)
    loss = sum(backward(made, batch, WHOLE, count) for batch in packs)
    return loss, gradients(made)


def interleaved(key_value_heads: int, kind: str, turns: tuple[int, ...]) -> list[float]:
    """For each turn the largest difference to one process, of the loss or of a gradient."""
    made, packs = model(key_value_heads, kind), batches(4)
    wanted, wanted_gradient = reference(made, packs)
    count = sum(len(batch.labels) for batch in packs)
    shards = make_shards(turns)
    world = dist.get_world_size()
    apart = []
    for degree in turns:
        made.zero_grad()
        replica, replicas = dist.get_rank() // degree, world // degree
        loss = sum(backward(made, pack, shards[degree], count) for pack in packs[replica::replicas])
        found = torch.cat([gradients(made).double(), torch.tensor([loss], dtype=torch.float64)])
        dist.all_reduce(found)  # a sum over all ranks: every token's loss is on one of them
        difference = found - torch.cat(
            [wanted_gradient, torch.tensor([wanted], dtype=torch.float64)]
        )
        apart.append(float(difference.abs().max()))
    return apart


@pytest.fixture(scope="module")
def loaded() -> None:
    """What the ranks import is imported before they part, once."""
    batch = batches(1)[0]
    for kind in ("llama", "qwen2", "gptOss"):
        backward(model(4, kind), batch, WHOLE, 1)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(("key_value_heads", "kind"), [(4, "llama"), (2, "llama"), (1, "qwen2")])
def test_two_ranks_give_the_loss_and_gradients_of_one(
    run_ranks: Ranks, key_value_heads: int, kind: str
) -> None:
    for apart in run_ranks(2, interleaved, key_value_heads, kind, (1, 2, 1, 2)):
        assert max(apart) <= 1e-12


@pytest.mark.usefixtures("loaded")
def test_ranks_that_share_a_pack_have_the_sinks_of_their_heads(run_ranks: Ranks) -> None:
    for apart in run_ranks(2, interleaved, 2, "gptOss", (1, 2, 1, 2)):
        assert max(apart) <= 1e-5


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("key_value_heads", [4, 2])
def test_degrees_in_turn_on_four_ranks_give_the_loss_and_gradients_of_one(
    run_ranks: Ranks, key_value_heads: int
) -> None:
    for apart in run_ranks(4, interleaved, key_value_heads, "llama", TURNS):
        assert max(apart) <= 1e-12


def exchanges() -> dict[str, float]:
    """What the exchange does to known numbers, on this rank."""
    world, rank = dist.get_world_size(), dist.get_rank()
    shard = make_shards([world])[world]
    whole = torch.arange(4 * 8 * 3, dtype=torch.float64).reshape(1, 4, 8, 3)
    size, mine = 8 // world, 4 // world
    local = whole[:, :, rank * size : (rank + 1) * size]
    heads = to_heads(local, shard)
    wanted = whole[:, rank * mine : (rank + 1) * mine]
    # an input whose strides are permuted, as attention's are
    permuted = local.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not permuted.is_contiguous()
    leaf = permuted.detach().requires_grad_()
    weights = torch.arange(heads.numel(), dtype=torch.float64).reshape(heads.shape) + 100 * rank
    (to_heads(leaf, shard) * weights).sum().backward()
    assert leaf.grad is not None
    # the gradient of a permutation of numbers is the permutation back
    expected = to_tokens(weights, shard)
    return {
        "heads": float((heads - wanted).abs().max()),
        "back": float((to_tokens(heads, shard) - local).abs().max()),
        "permuted": float((to_heads(permuted, shard) - wanted).abs().max()),
        "gradient": float((leaf.grad - expected).abs().max()),
    }


def test_the_exchange_is_its_own_inverse_and_gradient_on_permuted_input_too(
    run_ranks: Ranks,
) -> None:
    for found in run_ranks(2, exchanges):
        assert max(found.values()) == 0


def repeated() -> list[float]:
    """One key-value head for two ranks: both get it, and its gradient is the sum."""
    shard = make_shards([2])[2]
    leaf = torch.ones(1, 1, 2, 1, dtype=torch.float64, requires_grad=True)
    to_heads(leaf, shard).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.ravel().tolist()


def test_repeated_heads_collect_the_gradients_of_all_ranks(run_ranks: Ranks) -> None:
    assert run_ranks(2, repeated) == [[2.0, 2.0], [2.0, 2.0]]


def test_shards_cover_a_batch_once_and_pad_the_end() -> None:
    batch = batches(1)[0]
    for degree in (2, 4):
        parts = [shard_batch(batch, Shard(degree, i)) for i in range(degree)]
        sizes = {part.tokens for part in parts}
        assert len(sizes) == 1
        whole = torch.cat([part.input_ids for part in parts], dim=1)[0]
        assert whole[: batch.tokens].tolist() == batch.input_ids[0].tolist()
        assert sum(parts[0].document_lengths) == degree * parts[0].tokens
        labels = torch.cat([part.labels for part in parts])
        assert labels.tolist() == batch.labels.tolist()
        size = parts[0].tokens
        places = torch.cat([part.predictors + i * size for i, part in enumerate(parts)])
        assert places.tolist() == batch.predictors.tolist()
        assert sum(len(part.cells) for part in parts) == len(batch.cells)
    assert shard_batch(batch, WHOLE) is batch


def test_a_degree_that_the_processes_do_not_allow_is_refused() -> None:
    assert make_shards([1]) == {1: WHOLE}
    with pytest.raises(ConfigError, match="degree 2 needs a number of processes that it divides"):
        make_shards([1, 2])


class Heads:
    """A configuration that only has heads."""

    def __init__(self, heads: int, shared: int | None) -> None:
        self.num_attention_heads, self.num_key_value_heads = heads, shared

    def get_text_config(self) -> "Heads":
        return self


def test_heads_that_cannot_be_dealt_are_refused() -> None:
    for heads, shared, degree in ((4, 4, 2), (4, 2, 4), (12, None, 4), (12, 3, 6), (4, 1, 4)):
        check_heads(Heads(heads, shared), degree)
    with pytest.raises(ConfigError, match="6 attention heads, which 4 ranks cannot share evenly"):
        check_heads(Heads(6, 6), 4)
    with pytest.raises(ConfigError, match="3 key-value heads, which 2 ranks can neither"):
        check_heads(Heads(6, 3), 2)
    with pytest.raises(PackingError, match="3 attention heads cannot be dealt to 2 ranks"):
        to_heads(torch.zeros(1, 3, 4, 2), Shard(2, 0))


def test_what_cannot_share_a_pack_says_so(make_model: Callable[..., Any]) -> None:
    made = make_model("llama")
    made.set_attn_implementation("sdpa")
    batch = shard_batch(batches(1)[0], Shard(2, 0))
    with pytest.raises(PackingError, match="'sdpa' cannot share a pack between ranks"):
        packed_forward(
            made,
            batch.input_ids,
            batch.position_ids,
            batch.document_lengths,
            sequence=Shard(2, 0),
        )
    with pytest.raises(PackingError, match="position_ids do not restart"):
        packed_forward(
            made,
            batch.input_ids,
            batch.position_ids + 1,
            batch.document_lengths,
            sequence=Shard(2, 0),
        )
