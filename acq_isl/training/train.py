"""The training loop: ``python -m acq_isl.training.train CONFIG.yaml --out FOLDER``.

The folder keeps simulated fields, the checkpoint and, in the end, ``model.onnx``. A run that was
stopped goes on from its last checkpoint as if it had not been.
"""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from acq_isl.errors import ModelError
from acq_isl.training.assess import assess, calibrate, manifest_of, measure_halo, measure_margin
from acq_isl.training.config import Optimisation, TrainConfig, load_config
from acq_isl.training.dataset import Field, batch, prepare
from acq_isl.training.export import export_onnx
from acq_isl.training.network import Deployed, LiveNetwork, beta_nll
from acq_isl.training.simulate import cached

logger = logging.getLogger(__name__)

_LOG_EVERY = 50
_WARM_UP = 0.1
_FIRST, _LAST = 0.04, 0.002


def learning_rate(step: int, optimisation: Optimisation) -> float:
    """One cycle: a short rise, then half a cosine down to nearly nothing."""
    at = (step + 0.5) / optimisation.steps
    if at < _WARM_UP:
        share = _FIRST + (1 - _FIRST) * at / _WARM_UP
    else:
        share = _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * (at - _WARM_UP) / (1 - _WARM_UP)))
    return optimisation.learning_rate * share


@dataclass(slots=True, eq=False)
class Training:
    """Everything that changes while training; batches depend on the seed and the step only.

    Parameters
    ----------
    network, average : LiveNetwork
        The weights being trained, and their running average.
    optimiser : torch.optim.AdamW
    step : int
        Steps done.
    """

    network: LiveNetwork
    average: LiveNetwork
    optimiser: torch.optim.AdamW
    step: int = 0

    @classmethod
    def start(cls, config: TrainConfig) -> Training:
        """New weights from the configuration's seed."""
        torch.manual_seed(config.optimisation.seed)
        network = LiveNetwork(config.network)
        average = LiveNetwork(config.network)
        average.load_state_dict(network.state_dict())
        settings = config.optimisation
        optimiser = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        return cls(network, average.eval(), optimiser)

    def advance(self, fields: list[Field], optimisation: Optimisation) -> float:
        """One step; returns the loss."""
        rng = np.random.default_rng([optimisation.seed, self.step])
        x, y = batch(fields, rng, optimisation.batch, optimisation.patch_px)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, optimisation)
        self.network.train()
        mean, log_variance = self.network(x)
        loss = beta_nll(mean, log_variance, y, optimisation.beta)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self._follow(min(optimisation.average, (1 + self.step) / (10 + self.step)))
        self.step += 1
        return float(loss.detach())

    def _follow(self, decay: float) -> None:
        pairs = zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True)
        with torch.no_grad():
            for kept, new in pairs:
                if kept.is_floating_point():
                    kept.lerp_(new, 1 - decay)
                else:
                    kept.copy_(new)

    def save(self, path: Path) -> None:
        """Write a checkpoint as plain arrays (``.npz``, no pickle), replacing the old one once whole."""
        arrays = {f"network/{k}": v.numpy() for k, v in self.network.state_dict().items()}
        arrays |= {f"average/{k}": v.numpy() for k, v in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            arrays |= {f"optimiser/{index}/{name}": value.numpy() for name, value in state.items()}
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, step=np.array(self.step), **arrays)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; `ModelError` if it belongs to another network."""
        with np.load(path, allow_pickle=False) as kept:
            arrays = dict(kept)
        try:
            self.network.load_state_dict(_under("network/", arrays))
            self.average.load_state_dict(_under("average/", arrays))
        except RuntimeError as error:
            raise ModelError(
                f"{path} is a checkpoint of another network",
                got=str(error)[:200],
                fix="choose an empty folder",
            ) from error
        states: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _under("optimiser/", arrays).items():
            index, name = key.split("/")
            states.setdefault(int(index), {})[name] = value
        saved = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": states, "param_groups": saved["param_groups"]})
        self.step = int(arrays["step"])


def _under(prefix: str, arrays: dict[str, NDArray[np.generic]]) -> dict[str, torch.Tensor]:
    chosen = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return {k: torch.from_numpy(v.copy()) for k, v in chosen.items()}


def run(config: TrainConfig, folder: Path) -> Path:
    """Simulate, train, calibrate and export; returns the path of the model file."""
    optimisation = config.optimisation
    torch.set_num_threads(optimisation.threads)
    training = Training.start(config)
    checkpoint = folder / "checkpoint.npz"
    if checkpoint.exists():
        training.load(checkpoint)
        logger.info("going on from step %d", training.step)
    fields = _fields(config, folder, range(config.simulation.fields), training.network)
    while training.step < optimisation.steps:
        loss = training.advance(fields, optimisation)
        if training.step % _LOG_EVERY == 0:
            logger.info("step %d of %d, loss %.4f", training.step, optimisation.steps, loss)
        if training.step % optimisation.checkpoint_every == 0 or training.step == optimisation.steps:
            training.save(checkpoint)
    return finish(config, folder, training.average)


def finish(config: TrainConfig, folder: Path, network: LiveNetwork) -> Path:
    """Measure averaged weights on the held-out fields and write ``model.onnx``."""
    simulation = config.simulation
    indices = range(simulation.fields, simulation.fields + simulation.held_out)
    held_out = _fields(config, folder, indices, network)
    network.eval()
    scale = calibrate(network, held_out)
    metrics = assess(network, held_out, config.labels, scale)
    pair = cached(simulation, indices[0], folder / "fields")
    halo_px, margin_px = measure_halo(network, pair), measure_margin(network, pair)
    manifest = manifest_of(config, scale, metrics, halo_px, margin_px)
    for name, value in metrics.items():
        logger.info("%s: %.3f", name, value)
    path = folder / "model.onnx"
    difference = export_onnx(Deployed(network, scale), manifest, path)
    logger.info("%s written; halo %d px, graph within %.1g of torch", path, manifest.halo_px, difference)
    return path


def _fields(config: TrainConfig, folder: Path, indices: range, network: LiveNetwork) -> list[Field]:
    kept = folder / "fields"
    kept.mkdir(parents=True, exist_ok=True)
    pairs = (cached(config.simulation, index, kept) for index in indices)
    return prepare(pairs, network.normalise, config.network.high_pass_px)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run(load_config(arguments.config), arguments.out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
