"""Samples a second of training on one and two processes: ``python benchmarks/training.py [--steps 12]``.

Each is what ``torchrun`` starts, with one thread a process; the network, patches and precision of a default
run, on simulated fields that are read from disk. The first steps, in which torch makes room, are not counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SKIPPED = 3


def train(folder: Path, steps: int) -> None:
    """One of the processes; the first one says how fast it went."""
    import torch

    from acq_isl.training.config import TrainConfig
    from acq_isl.training.distributed import join_group
    from acq_isl.training.loop import Training
    from acq_isl.training.train import prepare_datasets

    torch.set_num_threads(1)
    simulation = {"fields": 4, "held_out": 1, "side_px": 320}
    config = TrainConfig.model_validate({
        "name": "speed", "version": "0", "description": "how fast training is",
        "data": [{"kind": "simulated", "simulation": simulation}],
        "optimisation": {"steps": steps + _SKIPPED},
    })  # fmt: skip
    with join_group("cpu") as group:
        data = prepare_datasets(config, config.divide(), folder, group, lambda _: None)
        training = Training.start(config, group)
        for _ in range(_SKIPPED):
            training.advance(data.train)
        group.wait()
        began = time.perf_counter()
        for _ in range(steps):
            training.advance(data.train)
        group.wait()
        took = time.perf_counter() - began
        if group.leads:
            samples = steps * config.optimisation.batch * group.size
            sys.stdout.write(f"{samples / took:.3f} {config.optimisation.batch} {took / steps:.3f}\n")


def measure(processes: int, folder: Path, steps: int) -> tuple[float, int, float]:
    """Samples a second, batch of a process, seconds a step."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", str(processes), __file__, "--worker", str(folder), "--steps", str(steps),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rate, batch, step_s = found.stdout.split()
    return float(rate), int(batch), float(step_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker is not None:
        train(options.worker, options.steps)
        return
    sys.stdout.write(
        "| round | processes | batch of each | s a step | samples/s | of one process |\n" + "|---" * 6 + "|\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            alone = 0.0
            for processes in (1, 2):
                rate, batch, step_s = measure(processes, Path(folder), options.steps)
                alone = alone or rate
                line = (
                    f"| {turn + 1} | {processes} | {batch} | {step_s:.2f} | {rate:.1f} | {rate / alone:.2f} |"
                )
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
