"""Storage types, their conversion to working precision, and bit-level questions about them.

Chunks are numpy arrays of raw storage: bfloat16 is uint16 bits. Arithmetic is in float32, or in
float64 where an input or the output is. Only the two bfloat16 conversions use torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixgym.trainer.merging.errors import MergeError

Array = NDArray[Any]


@dataclass(frozen=True)
class StorageType:
    """How one element lies in a file.

    Attributes:
        name: The safetensors name, such as ``BF16``.
        storage: numpy type of the raw elements.
        kind: ``float`` values are merged; ``exact`` ones (integers, booleans) must agree.
    """

    name: str
    storage: np.dtype[Any]
    kind: str

    @property
    def bytes_each(self) -> int:
        """Bytes per element."""
        return self.storage.itemsize


def _float(name: str, storage: str) -> StorageType:
    return StorageType(name, np.dtype(storage), "float")


def _exact(name: str, storage: str) -> StorageType:
    return StorageType(name, np.dtype(storage), "exact")


STORAGE: dict[str, StorageType] = {
    kind.name: kind
    for kind in (
        _float("F64", "<f8"),
        _float("F32", "<f4"),
        _float("F16", "<f2"),
        _float("BF16", "<u2"),
        _exact("I64", "<i8"),
        _exact("I32", "<i4"),
        _exact("I16", "<i2"),
        _exact("I8", "i1"),
        _exact("U64", "<u8"),
        _exact("U32", "<u4"),
        _exact("U16", "<u2"),
        _exact("U8", "u1"),
        _exact("BOOL", "u1"),
    )
}

DTYPE_WORDS: dict[str, str] = {
    "float64": "F64",
    "fp64": "F64",
    "float32": "F32",
    "fp32": "F32",
    "float16": "F16",
    "fp16": "F16",
    "bfloat16": "BF16",
    "bf16": "BF16",
}

_EXPONENT_BITS = {"F64": 0x7FF << 52, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_WORDS = {2: (np.int16, np.uint16), 4: (np.int32, np.uint32), 8: (np.int64, np.uint64)}


def storage_type(name: str, where: str) -> StorageType:
    """Return the storage type of a safetensors name; ``where`` names model and tensor."""
    if name not in STORAGE:
        raise MergeError(
            f"{where} is stored as {name}, which cannot be merged; convert the model to "
            "bfloat16, float16, float32 or float64 first"
        )
    return STORAGE[name]


def promote(kinds: list[StorageType]) -> StorageType:
    """Return the narrowest floating type that holds every value of ``kinds``.

    >>> promote([STORAGE["BF16"], STORAGE["F16"]]).name
    'F32'
    """
    names = {kind.name for kind in kinds}
    if len(names) == 1:
        return kinds[0]
    return STORAGE["F64"] if "F64" in names else STORAGE["F32"]


def working_type(kinds: list[StorageType]) -> np.dtype[Any]:
    """Return float64 if one of ``kinds`` is F64, else float32."""
    return np.dtype(np.float64 if any(kind.name == "F64" for kind in kinds) else np.float32)


def decode(raw: Array, kind: StorageType, out: Array) -> Array:
    """Convert raw elements to working precision, exactly, into ``out``; return ``out``."""
    if kind.name != "BF16":
        np.copyto(out, raw)
    elif out.dtype == np.float32:
        torch.from_numpy(out).copy_(_as_bfloat16(raw))
    else:
        np.copyto(out, (raw.astype(np.uint32) << 16).view(np.float32))
    return out


def encode(values: Array, kind: StorageType, out: Array) -> Array:
    """Round working values to nearest, ties to even, into raw elements ``out``; return ``out``."""
    if kind.name == "BF16":
        # torch rounds float64 through float32, which would round twice
        single = values if values.dtype == np.float32 else round_to_odd(values)
        _as_bfloat16(out).copy_(torch.from_numpy(single))
    else:
        with np.errstate(over="ignore"):
            np.copyto(out, values, casting="same_kind")
    return out


def round_to_odd(values: Array) -> Array:
    """Round float64 to float32 such that a second rounding to fewer bits is the correct one.

    Inexact results take the odd neighbour, so they never look like a midpoint (Boldo and
    Melquiond, 2008).
    """
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    inexact = (single.astype(np.float64) != values) & np.isfinite(single)
    overshot = inexact & (np.abs(single.astype(np.float64)) > np.abs(values))
    bits -= overshot.astype(np.uint32)  # now truncated towards zero
    bits |= inexact.astype(np.uint32)
    return single


def _as_bfloat16(raw: Array) -> torch.Tensor:
    return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)


def through(values: Array, kind: StorageType) -> Array:
    """Return ``values`` rounded to ``kind`` and back: what a model cast to it holds."""
    raw = np.empty(values.shape, kind.storage)
    return decode(encode(values, kind, raw), kind, np.empty_like(values))


def first_nonfinite(raw: Array, kind: StorageType) -> int | None:
    """Return the index of the first NaN or infinity of raw floats, or None.

    Two integer maxima decide, since an all-ones exponent is the greatest of either sign.
    """
    signed, unsigned = _WORDS[kind.bytes_each]
    limit = _EXPONENT_BITS[kind.name]
    sign = 1 << (8 * kind.bytes_each - 1)
    if raw.size == 0:
        return None
    if int(raw.view(signed).max()) < limit and int(raw.view(unsigned).max()) < sign + limit:
        return None
    bits = raw.view(unsigned) & unsigned(limit)
    return int(np.flatnonzero(bits == unsigned(limit))[0])


def bits_of(values: Array) -> Array:
    """Return the same memory as unsigned integers of the same width."""
    return values.view(_WORDS[values.dtype.itemsize][1])
