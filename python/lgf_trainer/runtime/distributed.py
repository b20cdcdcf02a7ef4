"""Devices and processes: copies of the model (DDP) or shards of it (FSDP2), and gathered tensors."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from .errors import TrainerError, explained

if TYPE_CHECKING:
    from accelerate import PartialState

TRAINED = 16  # bytes for a weight that is trained in float32: itself, its gradient, both moments of AdamW


def parallelise(model: nn.Module, blocks: Iterable[nn.Module], *, processes: int, shard: bool) -> nn.Module:
    """Wrap the model for several processes; return itself for one.

    Sharded, every block is gathered only while it runs. Gradients are means over the processes either way.

    Args:
        model: the same on all processes, on its device.
        blocks: of the transformer, the units of sharding.
    """
    if shard:
        for block in blocks:
            fully_shard(block)
        return fully_shard(model)
    if processes > 1:
        device = next(model.parameters()).device
        return DistributedDataParallel(
            model,
            device_ids=None if device.index is None else [device.index],
            broadcast_buffers=False,  # learned positions among them, which never change
            gradient_as_bucket_view=True,
        )
    return model


@contextmanager
def accumulating(model: nn.Module, *, more: bool) -> Iterator[None]:
    """Exchange gradients after the last batch of a step only; `more` batches are to come before that."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not more)
        yield
    elif isinstance(model, DistributedDataParallel) and more:
        with model.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor without its sharding. All processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def like(tensor: Tensor, example: Tensor) -> Tensor:
    """Return a whole tensor on the device, and with the sharding, of `example`."""
    tensor = tensor.to(example.device)
    return (
        distribute_tensor(tensor, example.device_mesh, example.placements) if isinstance(example, DTensor) else tensor
    )


def this_process() -> "PartialState":
    """Return this process among those of `accelerate launch`; alone if there are no others."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without a GPU, accelerate treats several processes as one unless it is told to use the CPU.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # Processes synchronise only at the end, and the videos of one may be much longer than those of another.
    return PartialState(cpu, timeout=timedelta(days=30))


def choose_device(name: str, default: torch.device | None = None) -> torch.device:
    """Return the device called `name`. "auto": `default`, or else the first GPU, or else the CPU."""
    if name == "auto":
        return default or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds, way_out = (RuntimeError, AssertionError, NotImplementedError), "Leave it out to take what there is"
    with explained(f"--device {name} cannot be used here", *kinds, way_out=way_out):
        return torch.empty(0, device=name).device


def must_fit(weights: int, device: torch.device, shards: int) -> None:
    """Refuse to train all weights of a model where not even they fit."""
    needed = TRAINED * weights / shards
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else host
    if needed > there:
        raise TrainerError(
            f"model.train full needs {needed / 2**30:.1f} GiB in every process, for {weights / 1e9:.2f} billion weights, their "
            f"gradients and AdamW's moments, and {device} has {there / 2**30:.1f}. Shard it over more processes "
            "(run.shard), or set model.train to lora"
        )
