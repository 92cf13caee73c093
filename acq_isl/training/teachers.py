"""Models that a network is taught by: their weighted mean is what it learns to predict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from acq_isl.base import StrictModel
from acq_isl.errors import ModelError
from acq_isl.training.network import LiveNetwork, NetworkConfig, select_labels
from acq_isl.training.weights import Pretrained, read_pretrained


class Teacher(StrictModel):
    """A model file or the ``weights.safetensors`` of a run, and how much its word counts."""

    model: Path
    weight: float = Field(default=1.0, gt=0)


class Teaching(StrictModel):
    """What a network learns from others; every key is described in docs/training.md."""

    teachers: tuple[Teacher, ...] = ()
    share: float = Field(default=1.0, ge=0, le=1)
    """Of the teachers in what the mean learns; the truth has the rest."""
    share_live: float | None = Field(default=None, ge=0, le=1)
    """The same of fields in the light of the simulated microscope; None: no other."""
    start_from: Path | None = None
    """Whose weights are the first ones."""
    spread: float = Field(default=0.2, ge=0)
    """Weight of the SD, which always learns from the truth, beside the squared error of the mean."""
    spread_bright: float = Field(default=0.0, ge=0)
    """As `bright_weight`, of the SD."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that a run depends on."""
        start = () if self.start_from is None else (self.start_from,)
        return (*(teacher.model for teacher in self.teachers), *start)

    def below(self, base: Path) -> Teaching:
        """With relative paths taken from a folder."""
        teachers = tuple(one.model_copy(update={"model": base / one.model}) for one in self.teachers)
        start = None if self.start_from is None else base / self.start_from
        return self.model_copy(update={"teachers": teachers, "start_from": start})

    def digest(self) -> str:
        """Of the files' content; `ModelError` if one is not there."""
        return hashlib.sha256(b"".join(_read(path) for path in self.paths)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read", got=str(error), fix="train the teacher first, or correct teaching"
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Networks in evaluation mode, each with its weight and, for each label of the pupil, its own or None."""

    networks: tuple[tuple[LiveNetwork, float, tuple[int | None, ...]], ...]
    share: float
    share_live: float

    def targets(self, x: Tensor, truth: Tensor, live: Tensor) -> Tensor:
        """What the mean should be, (N, L, H, W) float32, of normalised (N, Z, H, W) stacks, their truth, and
        (N,) bool which are live; not below 0. A label that no teacher knows is the truth's alone."""
        total, weights = torch.zeros_like(truth), [0.0] * truth.shape[1]
        with torch.no_grad():
            for network, weight, order in self.networks:
                mean = network.predict_with_features(x)[0].float().clamp(min=0)
                for at, own in enumerate(order):
                    if own is not None:
                        total[:, at] += weight * mean[:, own]
                        weights[at] += weight
        known = torch.tensor(weights, device=x.device)[:, None, None]
        share = torch.where(live[:, None, None, None], self.share_live, self.share) * (known > 0)
        return share * total / known.clamp(min=1e-9) + (1 - share) * truth


def read_lesson(
    teaching: Teaching, labels: Sequence[str], config: NetworkConfig, device: torch.device
) -> Lesson | None:
    """The teachers of a network for these labels; None: there are none. `ModelError`: one cannot be used."""
    networks = []
    for teacher in teaching.teachers:
        found = read_pretrained(teacher.model)
        _check(found, config, teacher.model)
        names = found.manifest.label_names
        order = tuple(names.index(label) if label in names else None for label in labels)
        network: nn.Module = found.network.to(device).eval()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        networks.append((found.network, teacher.weight, order))
    share, live = teaching.share, teaching.share_live
    return Lesson(tuple(networks), share, share if live is None else live) if networks else None


def read_start(path: Path, labels: Sequence[str], config: NetworkConfig) -> LiveNetwork:
    """The network of a file, for these labels; `ModelError` if it is built otherwise than ``config``."""
    found = read_pretrained(path)
    names = found.manifest.label_names
    order = [names.index(label) if label in names else None for label in labels]
    network = select_labels(found.network, order)
    if network.config != config:
        raise ModelError(
            f"{path} is a network of another kind, so this one cannot start from it",
            wanted=str(config),
            got=str(network.config),
            fix="leave out teaching.start_from, or correct network",
        )
    return network


def _check(found: Pretrained, config: NetworkConfig, path: Path) -> None:
    own = found.network.config
    if (own.planes, own.high_pass_px) != (config.planes, config.high_pass_px):
        raise ModelError(
            f"the teacher {path} looks at other stacks",
            wanted=f"{config.planes} planes, background of {config.high_pass_px:g} px",
            got=f"{own.planes} planes, {own.high_pass_px:g} px",
            fix="choose a teacher with the same planes and high_pass_um",
        )
