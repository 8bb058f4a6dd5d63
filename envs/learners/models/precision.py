"""How a learner computes, without touching what the rest of the process does.

Two settings: automatic mixed precision, and the library that multiplies float32 matrices on CPU.
PyTorch sends float32 products to MKL, which on some processors (AMD) uses half of what the core
can do; oneDNN takes them when it is allowed to round to bfloat16, and uses that allowance only
where the processor has matrix units for it (AMX). Elsewhere the products stay true float32, which
:func:`check_onednn` measures instead of believing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from mixgym.envs.errors import ConfigError

Matmul = Literal["default", "onednn"]
FLOAT32_ERROR = 1e-5  # relative; float32 products of this size are about 3e-7 off, bfloat16's 3e-3


@contextmanager
def matmul(library: Matmul) -> Iterator[None]:
    """Multiply float32 matrices on CPU with ``library`` inside the block, backward included."""
    if library == "default":
        yield
        return
    settings = _matmul_settings()
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def check_onednn() -> None:
    """Raise a ConfigError if oneDNN would round float32 products on this machine."""
    if _matmul_settings() is None:
        raise ConfigError("model.fp32_matmul=onednn: this PyTorch cannot choose: use default")
    error = onednn_error()
    if error > FLOAT32_ERROR:
        raise ConfigError(
            f"model.fp32_matmul=onednn: this processor would round float32 products "
            f"(relative error {error:.1e}): use default, or precision bf16 if that is wanted"
        )


def _matmul_settings() -> Any:
    """What PyTorch lets one choose; None before the version that does."""
    import torch

    backend: Any = torch.backends.mkldnn
    return getattr(backend, "matmul", None)


def onednn_error() -> float:
    """Largest error of a float32 product by oneDNN, relative to its largest entry."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    with matmul("onednn"):
        product = left @ right
    return float((product - exact).abs().max() / exact.abs().max())


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """``model.eval()`` inside the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
