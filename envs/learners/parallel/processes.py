"""This process's device, and its meeting with the others that train the same model.

Nothing here or later reads what launchers put into the environment beside ranks and addresses: the
configuration alone says how a model is trained. What asks for something else is named.
"""

import os
import warnings
from typing import TYPE_CHECKING

from mixgym.envs.errors import RunError
from mixgym.envs.ranks import world_size

if TYPE_CHECKING:
    import torch

OFF = ("", "0", "false", "no", "none")
"""Values of the variables below, in lower case, that ask for nothing."""

_INSTEAD = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "training.accumulation splits a step",
    "ACCELERATE_MIXED_PRECISION": "model.precision chooses it",
    "ACCELERATE_DOWNCAST_BF16": "model.precision chooses it",
    "ACCELERATE_DYNAMO_BACKEND": "models are not compiled",
}
"""Variables that launchers set and that change nothing here, and what does."""

_SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
"""Variables that ask for a model in parts, which would not be."""


def join() -> "torch.device":
    """The device of this process; where torchrun has started several, they meet here.

    Raises:
        RunError: if a launcher asked for a model in parts, there are fewer devices than processes,
            or the processes cannot meet.
    """
    import torch
    from accelerate import PartialState

    _check_environment()
    device = own_device()
    reason = "nobody has told them of each other"
    try:
        # it chooses the backend and lets processes meet; no more of accelerate is used
        state = PartialState(cpu=device.type == "cpu")
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
    if world_size() > 1 and not torch.distributed.is_initialized():
        raise RunError(
            f"{world_size()} processes cannot meet ({reason}): start them with "
            "torchrun --nproc_per_node"
        )
    return device if device.type == "cpu" else state.device


def own_device() -> "torch.device":
    """The CPU, or the GPU of this process's place on its machine.

    Raises:
        RunError: if there are fewer GPUs than processes.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= there:
        raise RunError(
            f"process {local} of this machine has no device, of which there are {there}: start as "
            "many processes as devices"
        )
    return torch.device("cuda", local)


def _check_environment() -> None:
    """Name what a launcher asks for and does not get."""
    asked = [name for name in _SHARDING if os.environ.get(name, "").lower() not in OFF]
    if asked:
        raise RunError(
            f"{asked[0]}={os.environ[asked[0]]}: models are not cut into parts by accelerate here: "
            "start with torchrun, without that setting"
        )
    for name, instead in _INSTEAD.items():
        usual = "1" if name.endswith("_STEPS") else ""
        if (value := os.environ.get(name, "")).lower() not in (*OFF, usual):
            warnings.warn(f"{name}={value} has no effect: {instead}", stacklevel=3)
