"""What ``benchmarks/data_start.py`` is measured beside; each runs in a process of its own.

python benchmarks/support/other_starts.py datasets|trl FOLDER LENGTH
"""

import os
import sys
from pathlib import Path
from typing import Any


def rows_of(folder: Path) -> Any:
    """The Parquet file through ``datasets``."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    return load_dataset("parquet", data_files=str(folder / "many.parquet"), split="train")


def with_datasets(folder: Path, length: int) -> None:
    """Tokens of prompt and completion by ``map``, which keeps them in its cache."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = [p + c for p, c in zip(batch["prompt"], batch["completion"], strict=True)]
        return {"input_ids": tokenizer(texts, truncation=True, max_length=length)["input_ids"]}

    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    # a name of our own: the hash of a function with a tokenizer in it may change with every start
    found = rows_of(folder).map(
        encode,
        batched=True,
        num_proc=processes,
        new_fingerprint=f"tokens-{length}",
        remove_columns=["prompt", "completion"],
    )
    assert len(found[0]["input_ids"]) > 1


def with_trl(folder: Path, length: int) -> None:
    """TRL's trainer, its rows tokenised and packed, and one optimiser step."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTTrainer

    from support.common import quiet_libraries, sft_config

    quiet_libraries()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        args=sft_config(str(folder / "trl"), length, max_steps=1, per_device_train_batch_size=8),
        train_dataset=rows_of(folder),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    trainer.train()


if __name__ == "__main__":
    {"datasets": with_datasets, "trl": with_trl}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
