"""Which live network: quality on the recorded field against time, in one run.

    python benchmarks/networks.py ../shared/data/isl_condition_b --fields FIELDS --out OUT --runs RUN0 RUN1

Three folds of columns of one field (one well: optimistic), 32 px apart, two seeds. Each pixel's prediction
comes from a network that has not seen its columns; correlation and objects are of these put together.
FIELDS keeps the simulated fields of the demo model's configuration; they are made if they are not there.
RUNs are trainings of ``acq_isl/models/demo.yaml`` with seeds 0 and 1, which the live network starts from.
The fast size is taught by the live one of its seed and fold (Hinton et al., "Distilling the knowledge in a
neural network", 2015): its labels are .7 of the teacher's prediction and .3 of the truth.
``--peer`` adds VisCy's 2.5D U-Net and UNeXt2 (``pip install --no-deps viscy timm``), trained for as many
CPU-seconds as the plain recipe. What has been computed is kept in OUT and not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from folds import (
    FOLDS,
    LABELS,
    PLAIN,
    Field,
    Recipe,
    Recorded,
    Singles,
    batch,
    predicted,
    say,
    simulated_fields,
    train,
)
from peers import Peer
from torch import nn

from acq_isl.processing.segmentation import object_score, segment
from acq_isl.training.data.augment import Augmentation
from acq_isl.training.export import onnx as export
from acq_isl.training.network import Deployed, LiveNetwork, NetworkConfig
from acq_isl.training.package import WEIGHTS
from acq_isl.training.weights import read_pretrained

NUCLEUS, LEAST_UM2, PIXEL_UM = 0.25, 20.0, 0.3
TAUGHT = 0.7


def _sized(**size: Any) -> NetworkConfig:
    return NetworkConfig(high_pass_px=60.0, **size)


SECOND = {"steps": 1200, "rate": 3e-3, "pretrained": 0, "simulated": 0.0, "augmentation": PLAIN}
LIVE = Recipe("two unets 16", _sized(base=16), second=True, pretrained=0, shipped=True)
RECIPES = (
    Recipe("plain recipe", _sized(), 1500, 3e-3, 0, 0, augmentation=PLAIN, average=0, squared=True, raw=True),
    Recipe("unet 24", _sized()),
    Recipe("separable 32", _sized(base=32, kind="separable")),
    Recipe("convnext 24", _sized(kind="convnext")),
    LIVE,
    Recipe(
        "fast: unet 24 at 1/4, 7 planes, taught",
        _sized(planes=7, fold=4, levels=3), 2000, 3e-3, 0, 0.25,
        augmentation=Augmentation(), planes=tuple(range(0, 13, 2)), teacher=LIVE.name,
    ),
    *(
        Recipe(name, _sized(), 10**6, 3e-3, 0, 0, augmentation=PLAIN, raw=True, peer=kind)
        for name, kind in (("VisCy 2.5D U-Net", "unet"), ("VisCy UNeXt2, atto", "unext2"))
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Desk:
    """What every candidate works on, and where results are kept."""

    recorded: Recorded
    fields: Path
    out: Path
    runs: list[Path]

    def path(self, recipe: Recipe, rest: str) -> Path:
        return self.out / f"{recipe.name.replace('/', '-')} {rest}.npz"


def cross_validate(recipe: Recipe, desk: Desk, seed: int, budget_s: float) -> float:
    """Predict every column from networks that have not seen it; kept as ``NAME seed SEED.npz``."""
    path, recorded = desk.path(recipe, f"seed {seed}"), desk.recorded
    if path.exists():
        return float(np.load(path)["seconds"])
    x = recorded.input(recipe)
    simulated = simulated_fields(desk.fields, recipe) if recipe.pretrained or recipe.simulated else []
    start = started(recipe, simulated, desk, seed)
    whole = np.zeros(recorded.labels.shape, np.float32)
    seconds = []
    for fold in range(FOLDS):
        parts, columns = recorded.columns(fold)
        y = recorded.scaled(parts)
        own = [(x[:, :, a:b], y[:, :, a:b]) for a, b in parts]
        sources = [(1 - recipe.simulated, own)]
        sources += [(recipe.simulated, simulated)] if recipe.simulated else []
        if recipe.teacher:
            sources = [(share, taught(fields, recipe, desk, seed, fold)) for share, fields in sources]
        network, spent = fold_network(recipe, sources, start, seed, budget_s)
        keep(network, desk.path(recipe, f"seed {seed} fold {fold}"))
        whole[:, :, slice(*columns)] = predicted(network, x[list(recipe.planes)], columns)
        seconds.append(spent)
        say(f"{recipe.name}, seed {seed}, fold {fold}: {spent:.0f} CPU-s")
    np.savez(path, mean=whole, seconds=np.mean(seconds))
    return float(np.mean(seconds))


def fold_network(
    recipe: Recipe,
    sources: list[tuple[float, list[Field]]],
    start: dict[str, torch.Tensor] | None,
    seed: int,
    budget_s: float,
) -> tuple[nn.Module, float]:
    """The network of one fold and the CPU-seconds it took."""
    torch.manual_seed(seed)
    network: nn.Module = Peer(recipe.peer) if recipe.peer else LiveNetwork(recipe.network)
    if start is not None:
        network.load_state_dict(start)
    network, spent = train(
        network, recipe, lambda rng: batch(sources, recipe.augmentation, rng), recipe.steps, seed,
        budget_s if recipe.peer else math.inf,
    )  # fmt: skip
    if recipe.second:
        alone = replace(recipe, **SECOND)
        torch.manual_seed(seed)
        other, more = train(
            LiveNetwork(recipe.network), alone,
            lambda rng: batch(sources[:1], alone.augmentation, rng), alone.steps, seed,
        )  # fmt: skip
        network, spent = join_members(network, other), spent + more
    return network, spent


def join_members(first: LiveNetwork, other: LiveNetwork) -> LiveNetwork:
    """One network of two that were trained apart on the same normalisation, in evaluation mode."""
    whole = LiveNetwork(replace(first.config, members=2))
    others = {f"others.0.{name}": value for name, value in other.state_dict().items()}
    whole.load_state_dict(first.state_dict() | others)
    return whole.eval()


def started(recipe: Recipe, simulated: list[Field], desk: Desk, seed: int) -> dict[str, torch.Tensor] | None:
    """Weights after simulated fields only: the first member of a RUN, or one network for all."""
    if recipe.shipped:
        whole = read_pretrained(desk.runs[seed] / WEIGHTS).network.state_dict()
        return {name: value for name, value in whole.items() if not name.startswith("others.")}
    if not recipe.pretrained:
        return None
    path = desk.path(recipe, "pretrained")
    if not path.exists():
        torch.manual_seed(0)
        network, spent = train(
            LiveNetwork(recipe.network), recipe, lambda rng: batch([(1.0, simulated)], Augmentation(), rng),
            recipe.pretrained, 0,
        )  # fmt: skip
        keep(network, path)
        say(f"{recipe.name}: {spent:.0f} CPU-s on simulated fields")
    return kept(path)


def keep(network: nn.Module, path: Path) -> None:
    np.savez(path, **{name: value.numpy() for name, value in network.state_dict().items()})


def kept(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as found:
        return {name: torch.from_numpy(found[name]) for name in found.files}


def taught(fields: list[Field], recipe: Recipe, desk: Desk, seed: int, fold: int) -> list[Field]:
    """Fields with the planes of the candidate and labels that are mostly what its teacher predicts."""
    by = next(one for one in RECIPES if one.name == recipe.teacher)
    teacher = LiveNetwork(replace(by.network, members=2 if by.second else 1)).eval()
    teacher.load_state_dict(kept(desk.path(by, f"seed {seed} fold {fold}")))
    step, out = by.network.size_step_px, []
    for stack, labels in fields:
        h, w = (n // step * step for n in stack.shape[1:])
        x, y = stack[:, :h, :w], labels[:, :h, :w]
        with torch.no_grad():
            mean = teacher(torch.from_numpy(x.astype(np.float32))[None])[0][0].clamp(min=0).numpy()
        out.append((x[list(recipe.planes)], (TAUGHT * mean + (1 - TAUGHT) * y).astype(y.dtype)))
    return out


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
    rng = np.random.default_rng(0)
    if recipe.peer:
        peer = Peer(recipe.peer).eval()
        feed = {"stack": rng.normal(size=(1, 13, 1024, 1024)).astype(np.float32)}
        return timed_ms(peer.as_onnx(feed["stack"]), feed), sum(p.numel() for p in peer.parameters())
    network = LiveNetwork(replace(recipe.network, members=2 if recipe.second else 1)).eval()
    model = export._to_onnx(Deployed(network, (1.0,) * 3).eval(), recipe.network.size_step_px)
    stack = rng.integers(20000, 40000, (1, recipe.network.planes, 1024, 1024)).astype("<u2")
    feed = {"stack": stack.view(np.uint8).reshape(*stack.shape, 2), "inv_sd": np.full(1, 1e-4, np.float32)}
    return timed_ms(model.SerializeToString(), feed), sum(p.numel() for p in network.parameters())


def timed_ms(model: bytes, feed: dict[str, Any]) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    times = []
    for _ in range(5):
        began_s = time.process_time()
        session.run(None, feed)
        times.append(time.process_time() - began_s)
    return 1e3 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recorded", type=Path)
    parser.add_argument("--fields", type=Path, required=True, help="folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="one a seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of candidates")
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    desk = Desk(Recorded(options.recorded), options.fields, options.out, options.runs)
    rows, budget_s = [], 150.0
    chosen = [
        r for r in RECIPES if (not options.only or r.name in options.only) and (options.peer or not r.peer)
    ]
    for recipe in chosen:
        each: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            seconds = cross_validate(recipe, desk, seed, budget_s)
            budget_s = seconds if recipe.name == "plain recipe" else budget_s
            mean = np.load(desk.path(recipe, f"seed {seed}"))["mean"]
            each.append(scores(desk.recorded, mean) | {"seconds": seconds})
        rows.append({"name": recipe.name, "seeds": each})
        say(json.dumps(rows[-1]))
    for recipe, row in zip(chosen, rows, strict=True):
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
            f"| {row['name']} | {row['parameters'] / 1e6:.2f} M | {row['ms']:.0f} | "
            f"{mean['r dapi']:.3f} | {mean['r map2']:.3f} | {mean['r nfh']:.3f} | {mean['r']:.3f} ({span}) | "
            f"{mean['f1']:.2f} | {mean['seconds']:.0f} |"
        )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        y = [one["r"] for one in row["seeds"]]
        axes.plot([row["ms"]] * len(y), y, "o-", label=row["name"])
    axes.set_xscale("log")
    axes.set(xlabel="ms per 13x1024x1024 field, ONNX Runtime, one thread", ylabel="mean Pearson, three folds")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
