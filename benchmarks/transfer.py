"""What pre-training on simulated fields is worth on the recorded field.

    python benchmarks/transfer.py ../shared/data/isl_condition_b RUN1 RUN2 RUN3

RUNs are folders of finished trainings on simulated fields (``acq-isl train acq_isl/models/demo.yaml``), one
a seed. First the whole field without any of its labels, beside the floor. Then fine-tuned on columns 0-300
and tested on columns 340-703, from each RUN and from scratch with as many seeds, steps and the same rate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from folds import LABELS, Field, Recipe, Recorded, Singles, batch, normalised, predicted, say, train
from scipy import ndimage

from acq_isl.training.data.augment import Augmentation
from acq_isl.training.network import LiveNetwork
from acq_isl.training.package import WEIGHTS
from acq_isl.training.weights import read_pretrained

COLUMNS, TEST = (0, 300), (340, 704)


def correlations(mean: Singles, truth: Singles) -> list[float]:
    return [float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(mean, truth, strict=True)]


def tell(name: str, values: list[list[float]]) -> None:
    """One line a seed, then their mean."""
    for seed, row in enumerate(values):
        say(f"| {name}, seed {seed} | " + " | ".join(f"{v:.3f}" for v in (*row, np.mean(row))) + " |")
    if len(values) > 1:
        mean = np.mean(values, axis=0)
        say(f"| **{name}, mean** | " + " | ".join(f"{v:.3f}" for v in (*mean, np.mean(mean))) + " |")


def floor(recorded: Recorded) -> Singles:
    """Logarithm of the variance over z, smoothed by 4 px: what needs no learning."""
    variance = recorded.stack.astype(np.float32).var(axis=0)
    smooth = ndimage.gaussian_filter(np.log(variance + 1), 4.0)
    return np.broadcast_to(smooth, recorded.labels.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recorded", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=3e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recorded = Recorded(options.recorded)
    starts = [read_pretrained(run / WEIGHTS).network.eval() for run in options.runs]
    config = starts[0].config
    x = normalised(recorded.stack, config.high_pass_px)
    whole = recorded.scaled([(0, recorded.stack.shape[2])])
    say("| | " + " | ".join((*LABELS, "mean")) + " |\n|" + "---|" * 5)
    tell("floor, no learning", [correlations(floor(recorded), whole)])
    tell("simulated fields only", [correlations(predicted(one, x, (0, x.shape[2])), whole) for one in starts])
    y = recorded.scaled([COLUMNS])
    own: list[Field] = [(x[:, :, slice(*COLUMNS)], y[:, :, slice(*COLUMNS)])]
    recipe = Recipe("transfer", config, options.steps, options.rate)
    for name in ("from scratch", "pre-trained"):
        found = []
        for seed, start in enumerate(starts):
            torch.manual_seed(seed)
            network = LiveNetwork(config)
            if name == "pre-trained":
                network.load_state_dict(start.state_dict())
            tuned, _ = train(
                network, recipe, lambda rng: batch([(1.0, own)], Augmentation(), rng), options.steps, seed
            )
            found.append(correlations(predicted(tuned, x, TEST), y[:, :, slice(*TEST)]))
        tell(f"{name}, {options.steps} steps on columns {COLUMNS[0]}-{COLUMNS[1]}", found)


if __name__ == "__main__":
    main()
