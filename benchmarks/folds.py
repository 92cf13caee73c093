"""The recorded field in folds of its columns, and how the benchmarks' candidates are trained on it."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from acq_isl.files import whole_file
from acq_isl.processing.normalize import contrast_sd
from acq_isl.training.config import load_config
from acq_isl.training.data.augment import Augmentation, augment
from acq_isl.training.data.source_simulated import Pair, SimulationConfig, simulate
from acq_isl.training.network import NetworkConfig, Normalise, beta_nll

DEMO = Path(__file__).resolve().parents[1] / "acq_isl" / "models" / "demo.yaml"
LABELS = ("dapi", "map2", "nfh")
FOLDS, GAP_PX, PATCH_PX, BATCH = 3, 32, 128, 8
PLAIN = Augmentation(gamma=(1, 1), gain=(0.9, 1.1), offset=(-0.1, 0.1), noise=(0, 0.15), blur=0)
RICH = Augmentation(xy_scale=(0.75, 1.35), z_shift=(-0.5, 0.5), z_scale=(0.92, 1.08))

Singles = NDArray[np.float32]
Field = tuple[Singles, Singles]  # normalised stack and labels


@dataclass(frozen=True)
class Recipe:
    """How a candidate is trained on the recorded field."""

    name: str
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(high_pass_px=60.0))
    steps: int = 600
    rate: float = 1e-3
    pretrained: int = 800  # steps on simulated fields; 0: none
    simulated: float = 0.5  # share of simulated patches while fine-tuning
    second: bool = False  # a second member, from scratch on the recorded field only
    augmentation: Augmentation = RICH
    average: float = 0.99
    squared: bool = False  # plain regression
    raw: bool = False  # one mean and SD for the whole stack, no high-pass
    planes: tuple[int, ...] = tuple(range(13))
    shipped: bool = False  # starts from a training of the shipped model instead
    teacher: str = ""  # name of the recipe whose predictions are learned
    peer: str = ""  # one of VisCy's networks


class Recorded:
    """The recorded field, normalised, and its folds."""

    def __init__(self, folder: Path) -> None:
        self.stack = tifffile.imread(folder / "phase_contrast.ome.tif")
        self.labels = np.stack([tifffile.imread(folder / f"{n}.ome.tif") for n in LABELS]).astype(np.float32)
        self.edges = np.linspace(0, self.stack.shape[2], FOLDS + 1).astype(int)

    def columns(self, fold: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Training and test columns."""
        low, high, width = self.edges[fold], self.edges[fold + 1], self.stack.shape[2]
        parts = [(0, low - GAP_PX), (high + GAP_PX, width)]
        return [(a, b) for a, b in parts if b - a >= PATCH_PX], (low, high)

    def scaled(self, parts: list[tuple[int, int]]) -> Singles:
        """Labels, 0 and 1 at percentiles 1 and 99.8 of the training columns."""
        seen = np.concatenate([self.labels[:, :, a:b].reshape(3, -1) for a, b in parts], axis=1)
        low, high = np.percentile(seen, [1, 99.8], axis=1)[..., None, None]
        return np.clip((self.labels - low) / (high - low), 0, 1).astype(np.float32)

    def input(self, recipe: Recipe) -> Singles:
        if recipe.raw:
            plain = self.stack.astype(np.float32)
            return (plain - plain.mean()) / plain.std()
        return normalised(self.stack, recipe.network.high_pass_px)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def normalised(stack: NDArray[np.uint16], high_pass_px: float) -> Singles:
    module = Normalise(len(stack), high_pass_px)
    inv_sd = torch.tensor([1 / contrast_sd(stack, high_pass_px)], dtype=torch.float32)
    with torch.no_grad():
        out: Singles = module(torch.from_numpy(stack.astype(np.float32))[None], inv_sd)[0].numpy()
    return out


def cached(config: SimulationConfig, index: int, folder: Path) -> Pair:
    """`simulate`, kept as ``.npz`` in a folder that belongs to one configuration."""
    path = folder / f"field_{index:04d}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return Pair(stored["stack"], stored["labels"])
    pair = simulate(config, index)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, stack=pair.stack, labels=pair.labels)
    return pair


def simulated_fields(folder: Path, recipe: Recipe) -> list[Field]:
    """Every other field the demo model was trained on; memory is what limits."""
    config, fields = load_config(DEMO).data[0].simulation, []
    for index in range(0, config.fields, 2):
        pair = cached(config, index, folder)
        x = normalised(pair.stack, recipe.network.high_pass_px)
        y = pair.labels[: len(LABELS)] / np.float32(255)  # no dead cells: none are labelled in the recorded
        fields.append((x.astype(np.float16), y.astype(np.float16)))
    return fields


def batch(
    sources: list[tuple[float, list[Field]]], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of several sources by their shares, half of them about bright nuclei or dendrites."""
    xs, ys = [], []
    for at in range(BATCH):
        shares = np.array([share for share, _ in sources])
        fields = sources[int(np.searchsorted(np.cumsum(shares / shares.sum()), rng.random()))][1]
        sizes = np.array([x[0].size for x, _ in fields], float)
        x, y = fields[int(rng.choice(len(fields), p=sizes / sizes.sum()))]
        side = min(math.ceil(PATCH_PX * augmentation.reach), *x.shape[1:])
        corner = [int(rng.integers(0, n - side + 1)) for n in x.shape[1:]]
        if at % 2 == 0:
            bright = np.argwhere(y[:2, ::4, ::4].max(axis=0) > 0.3)
            if len(bright):
                middle = 4 * bright[int(rng.integers(len(bright)))] + rng.integers(-32, 33, 2)
                corner = [
                    int(np.clip(m - side // 2, 0, n - side)) for m, n in zip(middle, x.shape[1:], strict=True)
                ]
        cut = (slice(None), slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side))
        one, other = augment(
            x[cut].astype(np.float32), y[cut].astype(np.float32), PATCH_PX, augmentation, rng
        )
        xs.append(np.ascontiguousarray(one))
        ys.append(np.ascontiguousarray(other))
    return torch.from_numpy(np.stack(xs)), torch.from_numpy(np.stack(ys))


def train(
    network: nn.Module,
    recipe: Recipe,
    draw: Callable[[np.random.Generator], tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    seed: int,
    limit_s: float = math.inf,
) -> tuple[nn.Module, float]:
    """AdamW, one cycle, bfloat16; returns the averaged network and the CPU-seconds."""
    network = network.to(memory_format=torch.channels_last) if not recipe.peer else network
    kept = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW(network.parameters(), recipe.rate, weight_decay=1e-3)
    began_s = time.thread_time()
    for step in range(steps):
        spent_s = time.thread_time() - began_s
        at = spent_s / limit_s if math.isfinite(limit_s) else (step + 0.5) / steps
        if at >= 1:
            break
        rate = recipe.rate * (
            at / 0.1 if at < 0.1 else 0.002 + 0.998 * 0.5 * (1 + math.cos(math.pi * (at - 0.1) / 0.9))
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        x, y = draw(np.random.default_rng([seed, step]))
        network.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean, log_variance = network(
                x if recipe.peer else x.contiguous(memory_format=torch.channels_last)
            )
        mean, log_variance = mean.float(), log_variance.float()
        loss = F.mse_loss(mean, y) if recipe.squared else beta_nll(mean, log_variance, y, 0.8).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        decay = min(recipe.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for old, new in zip(kept.state_dict().values(), network.state_dict().values(), strict=True):
                old.lerp_(new, 1 - decay) if old.is_floating_point() else old.copy_(new)
    return kept, time.thread_time() - began_s


def predicted(network: nn.Module, x: Singles, columns: tuple[int, int]) -> Singles:
    """Mean, at least 0, of the test columns with 96 px of surroundings, (label, y, x)."""
    low = max(columns[0] // 16 * 16 - 96, 0)
    high = min(low + math.ceil((columns[1] + 96 - low) / 16) * 16, x.shape[2])
    with torch.no_grad():
        mean = network(torch.from_numpy(np.ascontiguousarray(x[:, :, low:high]))[None])[0][0]
    out: Singles = mean[:, :, columns[0] - low : columns[1] - low].clamp(min=0).numpy()
    return out
