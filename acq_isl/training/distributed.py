"""One process, or one of several that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from acq_isl.errors import ExperimentError

_WAIT = timedelta(hours=2)  # the first process prepares all fields meanwhile
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes that train together: number of this one, of all of them, and where it computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as the group trains it: gradients are averaged over processes."""
        return network if self.size == 1 else nn.parallel.DistributedDataParallel(network)

    def wait(self) -> None:
        """Until all processes are here; at most two hours."""
        if self.size > 1:
            distributed.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values


@contextmanager
def join_group(device: str) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, if it did; ``device`` is auto, cpu or cuda. `ExperimentError`
    if a GPU is wanted, and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ExperimentError(
            "there is no GPU that torch can use",
            fix="set optimisation.device to auto, or install torch for it",
        )
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = torch.device("cuda", local) if gpu else _CPU
    if gpu:
        torch.cuda.set_device(chosen)
    if size == 1:
        yield ProcessGroup(device=chosen)
        return
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=_WAIT)
    try:
        yield ProcessGroup(distributed.get_rank(), distributed.get_world_size(), chosen)
    finally:
        distributed.destroy_process_group()


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there: GPUs and processors with instructions for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("arm_bf16"))
