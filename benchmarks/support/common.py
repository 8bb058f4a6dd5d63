"""What benchmarks set up alike: their command line, public text, the learner, TRL's settings."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any


def parse(parser: argparse.ArgumentParser, **smoke: Any) -> argparse.Namespace:
    """The command line, with a switch ``--smoke`` for the smallest run that does everything once.

    A smoke run takes generated sources: encoding real text is most of a small run's time.

    Args:
        parser: with the benchmark's own arguments.
        smoke: their values under ``--smoke``, unless they are given.
    """
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    if parser.parse_known_args()[0].smoke:
        parser.set_defaults(**smoke)
        os.environ.pop("MIXGYM_DATA", None)
    return parser.parse_args()


def text_sources(skipped: tuple[str, ...]) -> dict[str, dict[str, str]] | str:
    """The multitask sources below $MIXGYM_DATA but those to skip; generated ones without it."""
    root = os.environ.get("MIXGYM_DATA")
    if root is None:
        return "embedded"
    folders = sorted(path for path in (Path(root) / "multitask").iterdir() if path.is_dir())
    return {f.name: {"path": str(f)} for f in folders if f.name not in skipped}


def prepare_text(
    folder: Path, model: str, length: int, skipped: tuple[str, ...], **data: Any
) -> tuple[Any, ...]:
    """Encode the text once, save weights and tokenizer under ``model``; returns the sources."""
    from mixgym.envs.build import load_corpus
    from mixgym.envs.learners.models.loading import load_model
    from mixgym.envs.options import WorldOptions

    options = WorldOptions.model_validate(
        {
            "sources": text_sources(skipped),
            "data": {"max_length": length, "strata": 1, **data},
            "model": {"name": model},
        }
    )
    corpus = load_corpus(options)
    load_model(options.model, length).save_pretrained(folder / "model")
    corpus.tokenizer.save_pretrained(folder / "model")
    return corpus.sources


def save_for_workers(path: Path, data: Any) -> None:
    """Hand plain data to the processes that this benchmark starts."""
    path.write_bytes(pickle.dumps(data))


def saved_for_workers(path: Path) -> Any:
    """What :func:`save_for_workers` wrote a moment ago, in a folder of this benchmark's own."""
    return pickle.loads(path.read_bytes())


def learner_of(folder: Path, sources: Any, length: int, model: Any, training: Any) -> Any:
    """Our learner around the prepared model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mixgym.envs.learners.causal_lm import CausalLM

    return CausalLM(
        lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
        sources,
        max_length=length,
        model_options=model,
        training=training,
        seed=0,
    )


def quiet_libraries() -> None:
    """No bars and no advice of transformers and datasets between the numbers."""
    import transformers
    from datasets import disable_progress_bars

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bars()


def sft_config(output: str, length: int, **own: Any) -> Any:
    """TRL's settings that are the same everywhere: its best packing, our optimiser, no records."""
    import torch
    from trl import SFTConfig

    return SFTConfig(
        output_dir=output,
        num_train_epochs=1,
        max_length=length,
        packing=True,
        packing_strategy="bfd",
        gradient_checkpointing=False,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **own,
    )
