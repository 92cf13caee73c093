"""The published network with random weights: what it costs depends on its shape only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from acq_isl.cli.gpu_kit.card import Card
from acq_isl.engines.model_file import read_model
from acq_isl.manifest import MANIFEST_KEY, Label, Manifest
from acq_isl.training.reference.dense import DenseSpec, build_dense
from acq_isl.training.reference.network import STRIDE_PX, ReferenceConfig, variable_shapes

_PLANES = 13
_HEADS = ("MAXPROJECT/DAPI_CONFOCAL", "MAXPROJECT/MAP2_CONFOCAL", "MAXPROJECT/NFH_CONFOCAL")
_BINS = 256
_PIXEL_UM, _STEP_UM, _HIGH_PASS_UM = 0.3, 1.5, 6.0
_TILE_PX = 624


def random_reference(width: int) -> bytes:
    """A model file of the single-phase form; ``width`` is 400 as published."""
    config = ReferenceConfig(width, _PLANES, _HEADS, _BINS)
    rng = np.random.default_rng(0)
    values = {}
    for name, shape in variable_shapes(config).items():
        if "/BatchNorm/" in name:
            ones = name.endswith(("gamma", "variance"))
            values[name] = np.full(shape, float(ones), np.float32)
        else:
            scale = 1 / np.sqrt(max(float(np.prod(shape[:-1])), 1.0))
            values[name] = rng.normal(scale=scale, size=shape).astype(np.float32)
    spec = DenseSpec(config.heads, _PLANES, "single phase", _HIGH_PASS_UM / _PIXEL_UM, ("mean", "spread"))
    manifest = _manifest(spec)
    return bytes(
        build_dense(values, width, spec, {MANIFEST_KEY: manifest.model_dump_json()}).SerializeToString()
    )


def reference_side(card: Card, path: Path) -> int:
    """Side of a field that is one tile."""
    manifest = read_model(path).info.manifest
    border_px = max(manifest.size_step_px, manifest.blank_px)
    most = min(manifest.max_tile_px or _TILE_PX, _TILE_PX, max(card.sides_px) + 2 * border_px)
    return max(most, manifest.least_side_px) - 2 * border_px


def _manifest(spec: DenseSpec) -> Manifest:
    return Manifest(
        name="isl-reference-random",
        version="1",
        licence="BSD-3-Clause",
        description="The published in-silico-labelling network with random weights, for timing only",
        modality="phase contrast",
        polarity="dark",
        pixel_size_um=_PIXEL_UM,
        z_offsets_um=tuple(_STEP_UM * (plane - _PLANES // 2) for plane in range(_PLANES)),
        high_pass_um=_HIGH_PASS_UM,
        labels=tuple(Label(name=head.rpartition("/")[2].lower(), marker="none") for head in spec.heads),
        min_tile_px=spec.min_tile_px,
        halo_px=spec.halo_px,
        size_step_px=STRIDE_PX,
        max_tile_px=spec.max_tile_px,
        blank_px=spec.halo_px,
        trained_on="nothing",
    )
