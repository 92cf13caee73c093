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


@dataclass(frozen=True, slots=True)
class Team:
    """Who trains together.

    Parameters
    ----------
    rank, size : int
        Number of this process, and of processes.
    device : torch.device
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as the team trains it: gradients are averaged over processes."""
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)

    def wait(self) -> None:
        """Until all processes are here; at most two hours."""
        if self.size > 1:
            distributed.barrier()

    def total(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started, if it did.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    ExperimentError
        A GPU is wanted, and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ExperimentError(
            "there is no GPU that torch can use",
            fix="set optimisation.device to auto, or install torch for it",
        )
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Team(0, 1, chosen)
        return
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=_WAIT)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size(), chosen)
    finally:
        distributed.destroy_process_group()


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there: GPUs and processors with instructions for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("arm_bf16"))
