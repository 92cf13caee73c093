"""Which live network: quality on the recorded field against time, in one run.

    python benchmarks/networks.py ../shared/data/isl_condition_b --fields FIELDS --out OUT

Three folds of columns of one field (one well: optimistic), 32 px apart, two seeds. Each pixel's prediction
comes from a network that has not seen its columns; correlation and objects are of these put together.
FIELDS keeps the simulated fields of the demo model's configuration; they are made if they are not there.
``--peer`` adds VisCy's 2.5D U-Net (``pip install --no-deps viscy``), trained for as many CPU-seconds as the
plain recipe. What has been computed is kept in OUT and not computed again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from acq_isl.normalize import contrast_sd
from acq_isl.objects import object_score, segment
from acq_isl.training.augment import Augmentation, augmented
from acq_isl.training.config import load_config
from acq_isl.training.network import Deployed, LiveNetwork, NetworkConfig, Normalise, beta_nll, together
from acq_isl.training.simulate import cached

DEMO = Path(__file__).resolve().parents[1] / "acq_isl" / "models" / "demo.yaml"
LABELS = ("dapi", "map2", "nfh")
FOLDS, GAP_PX, PATCH_PX, BATCH = 3, 32, 128, 8
NUCLEUS, LEAST_UM2, PIXEL_UM = 0.25, 20.0, 0.3
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
    peer: bool = False


def _sized(**size: Any) -> NetworkConfig:
    return NetworkConfig(high_pass_px=60.0, **size)


SECOND = {"steps": 1200, "rate": 3e-3, "pretrained": 0, "simulated": 0.0, "augmentation": PLAIN}
RECIPES = (
    Recipe("plain recipe", _sized(), 1500, 3e-3, 0, 0, augmentation=PLAIN, average=0, squared=True, raw=True),
    Recipe("unet 24", _sized()),
    Recipe("two unets 16", _sized(base=16), second=True),
    Recipe("separable 32", _sized(base=32, kind="separable")),
    Recipe("convnext 24", _sized(kind="convnext")),
    Recipe(
        "fast: two unets 16 at 1/4, 5 planes",
        _sized(base=16, planes=5, fold=4, levels=3),
        second=True,
        planes=(2, 4, 6, 8, 10),
    ),
    Recipe("VisCy 2.5D U-Net", _sized(), 10**6, 3e-3, 0, 0, augmentation=PLAIN, raw=True, peer=True),
)


class Peer(nn.Module):
    """VisCy's 2.5D U-Net with the interface of ours; the second half of its outputs is the log variance."""

    def __init__(self) -> None:
        super().__init__()
        from viscy.unet.networks.Unet25D import Unet25d

        self.body = Unet25d(
            1, 6, 13, 1, num_blocks=4, num_filters=[16, 32, 64, 128, 256], residual=True, task="reg"
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_variance = self.body(x[:, None])[:, :, 0].chunk(2, dim=1)
        return mean, log_variance.clamp(-9, 3)


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
        return normalised(self.stack, recipe.network.high_pass_px)[list(recipe.planes)]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def normalised(stack: NDArray[np.uint16], high_pass_px: float) -> Singles:
    module = Normalise(len(stack), high_pass_px)
    inv_sd = torch.tensor([1 / contrast_sd(stack, high_pass_px)], dtype=torch.float32)
    with torch.no_grad():
        out: Singles = module(torch.from_numpy(stack.astype(np.float32))[None], inv_sd)[0].numpy()
    return out


def simulated_fields(folder: Path, recipe: Recipe) -> list[Field]:
    """Every other field the demo model was trained on; memory is what limits."""
    config, fields = load_config(DEMO).simulation, []
    for index in range(0, config.fields, 2):
        pair = cached(config, index, folder)
        x = normalised(pair.stack, recipe.network.high_pass_px)[list(recipe.planes)]
        fields.append((x.astype(np.float16), (pair.labels / np.float32(255)).astype(np.float16)))
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
        one, other = augmented(
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
        loss = F.mse_loss(mean, y) if recipe.squared else beta_nll(mean, log_variance, y, 0.8)
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


def cross_validate(
    recipe: Recipe, recorded: Recorded, fields: Path, out: Path, seed: int, budget_s: float
) -> float:
    """Predict every column from networks that have not seen it; kept as ``NAME_SEED.npz``."""
    path = out / f"{recipe.name.replace('/', '-')} seed {seed}.npz"
    if path.exists():
        return float(np.load(path)["seconds"])
    x, alone = recorded.input(recipe), replace(recipe, **SECOND)
    simulated = simulated_fields(fields, recipe) if recipe.pretrained else []
    start = pretrained(recipe, simulated, out) if recipe.pretrained else None
    whole = np.zeros(recorded.labels.shape, np.float32)
    seconds = []
    for fold in range(FOLDS):
        parts, columns = recorded.columns(fold)
        y = recorded.scaled(parts)
        own = [(x[:, :, a:b], y[:, :, a:b]) for a, b in parts]
        sources = [(1 - recipe.simulated, own)] + (
            [(recipe.simulated, simulated)] if recipe.simulated else []
        )
        torch.manual_seed(seed)
        network: nn.Module = Peer() if recipe.peer else LiveNetwork(recipe.network)
        if start is not None:
            network.load_state_dict(start)
        network, spent = train(
            network, recipe, lambda rng, s=sources: batch(s, recipe.augmentation, rng), recipe.steps, seed,
            budget_s if recipe.peer else math.inf,
        )  # fmt: skip
        if recipe.second:
            other, more = train(
                LiveNetwork(recipe.network), alone,
                lambda rng, s=sources[:1]: batch(s, alone.augmentation, rng), alone.steps, seed,
            )  # fmt: skip
            network, spent = together(network, other), spent + more
        whole[:, :, slice(*columns)] = predicted(network, x, columns)
        seconds.append(spent)
        say(f"{recipe.name}, seed {seed}, fold {fold}: {spent:.0f} CPU-s")
    np.savez(path, mean=whole, seconds=np.mean(seconds))
    return float(np.mean(seconds))


def pretrained(recipe: Recipe, simulated: list[Field], out: Path) -> dict[str, torch.Tensor]:
    """Weights after simulated fields only, one for all folds and seeds."""
    path = out / f"{recipe.name.replace('/', '-')} pretrained.npz"
    if not path.exists():
        torch.manual_seed(0)
        network, spent = train(
            LiveNetwork(recipe.network), recipe, lambda rng: batch([(1.0, simulated)], Augmentation(), rng),
            recipe.pretrained, 0,
        )  # fmt: skip
        np.savez(path, **{name: value.numpy() for name, value in network.state_dict().items()})
        say(f"{recipe.name}: {spent:.0f} CPU-s on simulated fields")
    with np.load(path, allow_pickle=False) as kept:
        return {name: torch.from_numpy(kept[name]) for name in kept.files}


def scores(recorded: Recorded, mean: Singles) -> dict[str, float]:
    """Of all columns together; labels as each fold scaled them."""
    truth = np.zeros_like(mean)
    for fold in range(FOLDS):
        parts, (low, high) = recorded.columns(fold)
        truth[:, :, low:high] = recorded.scaled(parts)[:, :, low:high]
    found: dict[str, float] = {
        f"r {name}": float(np.corrcoef(mean[n].ravel(), truth[n].ravel())[0, 1])
        for n, name in enumerate(LABELS)
    }
    found["r"] = float(np.mean([found[f"r {name}"] for name in LABELS]))
    objects = [segment(one[0], NUCLEUS, LEAST_UM2, PIXEL_UM) for one in (mean, truth)]
    score = object_score(*objects)
    return found | {"f1": score.f1, "nuclei": score.found, "true nuclei": score.true}


def latency_ms(recipe: Recipe) -> tuple[float, int]:
    """Median of one 13x1024x1024 field in ONNX Runtime on one thread, and the number of parameters."""
    import onnxruntime

    from acq_isl.training import export

    network = LiveNetwork(replace(recipe.network, members=2 if recipe.second else 1)).eval()
    model = export._to_onnx(Deployed(network, (1.0,) * 3).eval(), recipe.network.size_step_px)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    stack = rng.integers(20000, 40000, (1, recipe.network.planes, 1024, 1024)).astype("<u2")
    feed = {"stack": stack.view(np.uint8).reshape(*stack.shape, 2), "inv_sd": np.full(1, 1e-4, np.float32)}
    times = []
    for _ in range(5):
        began_s = time.process_time()
        session.run(None, feed)
        times.append(time.process_time() - began_s)
    return 1e3 * float(np.median(times)), sum(p.numel() for p in network.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recorded", type=Path)
    parser.add_argument("--fields", type=Path, required=True, help="folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of candidates")
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    recorded, rows, budget_s = Recorded(options.recorded), [], 150.0
    chosen = [
        r for r in RECIPES if (not options.only or r.name in options.only) and (options.peer or not r.peer)
    ]
    for recipe in chosen:
        each: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            seconds = cross_validate(recipe, recorded, options.fields, options.out, seed, budget_s)
            budget_s = seconds if recipe.name == "plain recipe" else budget_s
            kept = np.load(options.out / f"{recipe.name.replace('/', '-')} seed {seed}.npz")
            each.append(scores(recorded, kept["mean"]) | {"seconds": seconds})
        rows.append({"name": recipe.name, "seeds": each})
        say(json.dumps(rows[-1]))
    for recipe, row in zip(chosen, rows, strict=True):
        if not recipe.peer:
            row["ms"], row["parameters"] = latency_ms(recipe)
    (options.out / "networks.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    table(rows)
    plot(rows, options.out / "networks.png")


def table(rows: list[dict[str, Any]]) -> None:
    say("| network | parameters | ms | r DAPI | MAP2 | NFH | mean r | F1@.5 | CPU-s |\n|" + "---|" * 9)
    for row in rows:
        mean = {key: np.mean([one[key] for one in row["seeds"]]) for key in row["seeds"][0]}
        span = "/".join(f"{one['r']:.3f}" for one in row["seeds"])
        say(
            f"| {row['name']} | {row.get('parameters', 0) / 1e6:.2f} M | {row.get('ms', float('nan')):.0f} | "
            f"{mean['r dapi']:.3f} | {mean['r map2']:.3f} | {mean['r nfh']:.3f} | {mean['r']:.3f} ({span}) | "
            f"{mean['f1']:.2f} | {mean['seconds']:.0f} |"
        )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if "ms" in row:
            y = [one["r"] for one in row["seeds"]]
            axes.plot([row["ms"]] * len(y), y, "o")
            axes.annotate(
                row["name"], (row["ms"], np.mean(y)), xytext=(6, 0), textcoords="offset points", fontsize=8
            )
    axes.set(xlabel="ms per 13x1024x1024 field, ONNX Runtime, one thread", ylabel="mean Pearson, three folds")
    axes.set_xlim(0, 1.4 * axes.get_xlim()[1])
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
