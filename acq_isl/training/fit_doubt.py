"""A doubt that ranks errors and grows with them: ``MODEL`` in, ``MODEL`` with another SD out.

    python -m acq_isl.training.fit_doubt MODEL.onnx [--out OTHER.onnx] [--floor nuclei] [--seed 0]

The SD that a network learned beside its means is smallest where something bright is missed altogether: most
pixels are background, and there it is right. Here a small head (`acq_isl.training.doubt_head`) learns the
error of the means as they are, on simulated fields that the network has not seen, each also blurred, with one
plane repeated, and noisy, by the Gaussian likelihood; bright pixels count for most of it. Its scale is
fitted to other fields by `acq_isl.training.calibrate`, which keeps the counts: they follow from means alone.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from acq_isl.engines.agreement import as_bytes
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.errors import ExperimentError
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.stack import Float32Image, Uint16Image
from acq_isl.training.calibrate import calibrate, write_manifest
from acq_isl.training.conditions import add_noise, blur, repeat
from acq_isl.training.doubt_head import DoubtHead, last_activations, with_doubt
from acq_isl.training.fit_gate import Scene, simulated_scenes

_SEED, _FIELDS, _SCALED = 191, 40, 24
_BRIGHT, _SHOWN, _DARK_SHARE = 0.3, 0.1, 0.05  # of the truth; share of the background that is learned from
_HIDDEN, _STEPS, _BATCH, _RATE = 32, 600, 8192, 0.02
_FIRST_LOG = -4.0
_BRIGHT_SHARE = 0.7  # of bright pixels in what is learned; chosen on fields seen by nothing else
_LEAST_BRIGHT_PX = 1000

Rows = NDArray[np.float32]
Spoil = Callable[[Uint16Image, np.random.Generator], Uint16Image]

logger = logging.getLogger(__name__)

_AS: Spoil = lambda stack, _rng: stack  # noqa: E731
_WAYS: tuple[Spoil, ...] = (
    _AS,
    lambda stack, rng: blur(rng.uniform(1.5, 5)).perturb(stack, rng),
    lambda stack, rng: repeat(rng.uniform(0.02, 0.3)).perturb(stack, rng),
    lambda stack, rng: add_noise(rng.uniform(0.5, 2)).perturb(stack, rng),
)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Places of the last activations: these, (n, C); square of the error of each mean there, and whether its
    truth is bright, (n, L fold^2); and how many places each stands for, (n,)."""

    activations: Rows
    squares: Rows
    bright: NDArray[np.bool_]
    weight: Rows


class _Activations:
    """A model in ONNX Runtime, on one thread, that also gives its last activations."""

    def __init__(self, file: ModelFile) -> None:
        self.manifest = file.info.manifest
        model = onnx.load_from_string(file.content)
        self._name = last_activations(model)
        model.graph.output.append(helper.make_tensor_value_info(self._name, TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def look(self, stack: Uint16Image, truth: Float32Image, rng: np.random.Generator) -> Cells:
        """Of a (z, y, x) stack and its (label, y, x) truth, all where something is and some of the rest."""
        inv_sd = inverse_contrast(stack, self.manifest.high_pass_um / self.manifest.pixel_size_um)
        feeds = {"stack": as_bytes(stack[None]), "inv_sd": np.full(1, inv_sd, np.float32)}
        mean, found = (out[0] for out in self._session.run(["mean", self._name], feeds))
        return sample(mean, found, truth, rng)


def sample(mean: Float32Image, found: Float32Image, truth: Float32Image, rng: np.random.Generator) -> Cells:
    """Places of (C, h, w) activations, given (L, H, W) means and their truth."""
    fold = mean.shape[1] // found.shape[1]
    known = np.nan_to_num(truth)
    means, true = _fold(mean, fold), _fold(known, fold)
    shown = (true > _SHOWN).any(axis=0)
    kept = shown | (rng.random(shown.shape) < _DARK_SHARE)
    return Cells(
        found[:, kept].T, np.square(means - true)[:, kept].T, (true > _BRIGHT)[:, kept].T,
        np.where(shown, 1, 1 / _DARK_SHARE)[kept].astype(np.float32),
    )  # fmt: skip


def _fold(images: Float32Image, fold: int) -> Float32Image:
    """(L, H, W) with squares of pixels as channels, (L fold^2, H / fold, W / fold), as torch unshuffles."""
    labels, rows, columns = images.shape
    squares = images.reshape(labels, rows // fold, fold, columns // fold, fold).transpose(0, 2, 4, 1, 3)
    return squares.reshape(-1, rows // fold, columns // fold)


def gather(file: ModelFile, scenes: Iterable[Scene]) -> Cells:
    """Of scenes as they are, and spoilt; `ModelError` if the model can be given no head."""
    activations = _Activations(file)
    return _join(_look_at_all(activations, scenes))


def _look_at_all(activations: _Activations, scenes: Iterable[Scene]) -> Iterator[Cells]:
    choosing = np.random.default_rng(_SEED)
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng(number)
        for spoil in _WAYS:
            yield activations.look(np.ascontiguousarray(spoil(scene.stack, rng)), scene.truth, choosing)
        logger.info("%s", scene.name)


def _join(found: Iterable[Cells]) -> Cells:
    parts = [(each.activations, each.squares, each.bright, each.weight) for each in found]
    if not parts:
        raise ExperimentError("no doubt can be learned without fields", fix="give --fields of at least 8")
    return Cells(*(np.concatenate(own) for own in zip(*parts, strict=True)))


def learn(cells: Cells, seed: int = 0, steps: int = _STEPS) -> DoubtHead:
    """The head under which the errors are likeliest, bright pixels of a label counting `_BRIGHT_SHARE`.

    `ExperimentError` if hardly anything in these fields is bright. The weights depend on the seed.
    """
    torch.manual_seed(seed)
    x, squares, bright, weight = (
        torch.from_numpy(np.ascontiguousarray(part, np.float32))
        for part in (cells.activations, cells.squares, cells.bright, cells.weight)
    )
    if not bright.any(dim=1).sum() >= _LEAST_BRIGHT_PX:
        raise ExperimentError(
            "no doubt can be learned from these fields",
            wanted=f"{_LEAST_BRIGHT_PX} places with something bright",
            got=str(int(bright.any(dim=1).sum())),
            fix="use more fields, or fields with more cells",
        )
    balance = _balance(bright, weight)
    first, second = nn.Linear(x.shape[1], _HIDDEN), nn.Linear(_HIDDEN, squares.shape[1])
    network = nn.Sequential(first, nn.ReLU(), second)
    nn.init.constant_(second.bias, _FIRST_LOG)
    optimiser = torch.optim.Adam(network.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (_BATCH,))
        log = network(x[chosen]).clamp(-9.0, 3.0)
        loss = 0.5 * (log + squares[chosen] / log.exp())
        total = (loss * balance(chosen)).mean(dim=0).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        schedule.step()
    parts = (first.weight, first.bias, second.weight, second.bias)
    return DoubtHead(*(np.asarray(part.detach(), np.float32) for part in parts))


def _balance(bright: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Weights of chosen places, (n, L fold^2), under which bright ones count for their share."""
    all_bright = (weight[:, None] * bright).mean(dim=0).clamp(min=1e-6)
    all_dark = (weight[:, None] * (1 - bright)).mean(dim=0).clamp(min=1e-6)
    lit = all_bright > 1e-6  # a label that is bright nowhere has only dark pixels to learn from

    def of(chosen: Tensor) -> Tensor:
        own = bright[chosen]
        dark = torch.where(lit, 1 - _BRIGHT_SHARE, 1.0) / all_dark
        balanced = torch.where(own > 0, _BRIGHT_SHARE / all_bright, dark)
        return weight[chosen, None] * balanced

    return of


def add_doubt(
    model: Path | str, scenes: Iterable[Scene], out: Path, seed: int = 0, floored: Sequence[str] = ()
) -> None:
    """Fit a head to scenes and write the model file with it; the scale of its SD is not known yet.

    ``floored`` are labels whose SD is not below the network's own where much is predicted.

    Raises
    ------
    ExperimentError
        Nothing in the scenes is bright, or the model has not such a label.
    ModelError
        The model cannot be used, or has no tags.
    StorageError
        The file cannot be written.
    """
    file = read_model(model)
    names = file.info.manifest.label_names
    strange = [label for label in floored if label not in names]
    if strange:
        raise ExperimentError(f"the model has no label {strange[0]}", wanted=", ".join(names))
    head = learn(gather(file, scenes), seed)
    content = with_doubt(file.content, head, [label in floored for label in names])
    unscaled = {"spread_scale": (1.0,) * len(names), "spread_slope": ()}
    write_manifest(content, file.info.manifest.model_copy(update=unscaled), out)


def main(words: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, help="by default the model itself")
    parser.add_argument("--fields", type=int, default=_FIELDS)
    parser.add_argument("--scaled", type=int, default=_SCALED, help="other fields, to fit its scale to")
    parser.add_argument("--floor", nargs="*", default=[], help="labels that are predicted pale elsewhere")
    parser.add_argument("--seed", type=int, default=0, help="of the fit")
    options = parser.parse_args(words)
    manifest = read_model(options.model).info.manifest
    scenes = simulated_scenes(manifest, options.fields, _SEED)
    out = options.out or options.model
    add_doubt(options.model, scenes, out, options.seed, options.floor)
    calibrate(out, out, options.scaled, keep_counts=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
