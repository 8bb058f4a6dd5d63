"""A bench on which tests write small checkpoints, merge them and read the result."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixgym.trainer.merging import MergeReport, Recipe, merge

Tensors = dict[str, torch.Tensor]

CONFIG = {
    "architectures": ["LlamaModel"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 16,
    "tie_word_embeddings": False,
}


class Bench:
    """Writes models under one folder, and merges them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def write(
        self,
        name: str,
        tensors: Tensors,
        *,
        shards: int = 1,
        as_bin: bool = False,
        config: dict[str, Any] | None = None,
    ) -> str:
        folder = self.folder / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
        stem, ending = ("pytorch_model", "bin") if as_bin else ("model", "safetensors")
        names = list(tensors)
        weight_map = {}
        for i in range(shards):
            file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{i + 1:05d}.{ending}"
            part = {key: tensors[key] for key in names[i::shards]}
            weight_map.update(dict.fromkeys(part, file))
            if as_bin:
                torch.save(part, folder / file)
            else:
                save_file(part, folder / file, metadata={"format": "pt"})
        if shards > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
        return str(folder)

    def recipe(
        self, method: str, models: list[Any], base: str | None = None, **more: Any
    ) -> Recipe:
        self.count += 1
        data = {"method": method, "models": models, "base": base, **more}
        data.setdefault("out", str(self.folder / f"out{self.count}"))
        return Recipe.parse({key: value for key, value in data.items() if value is not None})

    def run(
        self, method: str, models: list[Any], base: str | None = None, **more: Any
    ) -> tuple[Tensors, MergeReport]:
        report = merge(self.recipe(method, models, base, **more))
        return self.load(report.out), report

    def merge(
        self, method: str, models: list[Any], base: str | None = None, **more: Any
    ) -> Tensors:
        return self.run(method, models, base, **more)[0]

    def one(
        self,
        method: str,
        values: list[Any],
        base: Any = None,
        dtype: Any = torch.float32,
        **more: Any,
    ) -> torch.Tensor:
        """Merge models that consist of one tensor, given as values; return the merged tensor."""
        self.count += 1
        models = [
            self.write(f"m{self.count}-{i}", {"w": torch.as_tensor(v).to(dtype)})
            for i, v in enumerate(values)
        ]
        own = None
        if base is not None:
            own = self.write(f"b{self.count}", {"w": torch.as_tensor(base).to(dtype)})
        weights = more.pop("weights", None)
        if weights is not None:
            models = [{"model": m, "weight": w} for m, w in zip(models, weights, strict=True)]
        return self.merge(method, models, own, **more)["w"]

    @staticmethod
    def load(folder: str) -> Tensors:
        tensors: Tensors = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            tensors.update(load_file(file))
        return tensors


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def random_tensors(seed: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensors:
    """A small model's tensors: larger than a block, odd sizes, a vector and a scalar."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (16, 8),
        "model.layers.0.mlp.up_proj.weight": (97, 101),
        "model.layers.1.mlp.up_proj.weight": (33, 128),
        "model.layers.1.norm.weight": (8,),
        "scale": (),
    }
    return {
        name: (torch.randn(shape, generator=generator) * scale).to(dtype)
        for name, shape in shapes.items()
    }


@pytest.fixture
def family(bench: Bench) -> tuple[str, list[str], Tensors, list[Tensors]]:
    """A base and three models near it: paths and tensors, bf16."""
    base = random_tensors(0)
    models = []
    for seed in (1, 2, 3):
        noise = random_tensors(seed, torch.float32, 0.01)
        models.append({k: (base[k].float() + noise[k]).to(torch.bfloat16) for k in base})
    paths = [bench.write(f"model{i}", tensors) for i, tensors in enumerate(models)]
    return bench.write("base", base), paths, base, models


@pytest.fixture
def make_tensors() -> Any:
    return random_tensors


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
