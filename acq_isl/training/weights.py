"""A trained network read back, from its weights or from the model file itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.errors import ModelError
from acq_isl.manifest import Manifest
from acq_isl.training.checkpoints import read_tensors
from acq_isl.training.export.onnx import NETWORK_KEY, compare_with_torch
from acq_isl.training.network import Deployed, LiveNetwork, NetworkConfig

_PREFIX = "network."
_FOLDED = ".weight_bias"
_AGREEMENT = 1e-2
_FIX = "train it with this version of acq-isl, or use the weights.safetensors of its run"


@dataclass(frozen=True, slots=True, eq=False)
class Pretrained:
    """What adapting starts from: a network in evaluation mode."""

    network: LiveNetwork
    manifest: Manifest
    folded: tuple[str, ...] = ()
    """Names of batch normalisations that the exporter folded into convolutions; see `unfold`."""


def read_pretrained(path: Path) -> Pretrained:
    """Read ``weights.safetensors`` of a run, or a model file. `ModelError`: neither, damaged, or a network
    that cannot be trained further."""
    if path.suffix != ".safetensors":
        return _from_onnx(read_model(str(path)))  # also "demo"
    kept = read_tensors(path)
    if "network" not in kept.metadata or "manifest" not in kept.metadata:
        raise ModelError(
            f"{path} does not say what network it is of", fix="give the weights.safetensors of a run"
        )
    network = LiveNetwork(NetworkConfig(**json.loads(kept.metadata["network"])))
    network.load_state_dict(dict(kept.tensors))
    return Pretrained(network.eval(), Manifest.from_json(kept.metadata["manifest"]))


def _from_onnx(file: ModelFile) -> Pretrained:
    model, where = onnx.load_from_string(file.content), file.info.where
    config = next((entry.value for entry in model.metadata_props if entry.key == NETWORK_KEY), None)
    if config is None:
        raise ModelError(f"{where} does not say how its network is built", wanted=NETWORK_KEY, fix=_FIX)
    network = LiveNetwork(NetworkConfig(**json.loads(config))).eval()
    arrays = {
        weight.name.removeprefix(_PREFIX): numpy_helper.to_array(weight)
        for weight in model.graph.initializer
        if weight.name.startswith(_PREFIX)
    }
    folded = _fill(network, arrays, where)
    difference = compare_with_torch(
        Deployed(network, (1.0,) * len(file.info.manifest.labels)),
        file.content,
        file.info.manifest,
        ("mean",),
    )
    if difference > _AGREEMENT:
        raise ModelError(
            f"the network read back from {where} computes something else",
            wanted=f"within {_AGREEMENT:g}",
            got=f"{difference:.2g}",
            fix=_FIX,
        )
    return Pretrained(network, file.info.manifest, folded)


def _fill(network: LiveNetwork, arrays: Mapping[str, NDArray[Any]], where: str) -> tuple[str, ...]:
    """Give a network the arrays of a graph; returns the batch normalisations that were folded."""
    state, folded = network.state_dict(), []
    left = {name for name in state if not name.endswith("num_batches_tracked")}
    for convolution, norm in _normalised(network):
        if f"{norm}.weight" in arrays or f"{convolution}{_FOLDED}" not in arrays:
            continue
        folded.append(norm)
        eps = network.get_submodule(norm).eps
        identity = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - float(eps)}  # type: ignore[arg-type]
        for part, value in identity.items():
            state[f"{norm}.{part}"] = torch.full_like(state[f"{norm}.{part}"], value)
            left.discard(f"{norm}.{part}")
        state[f"{norm}.bias"] = torch.from_numpy(arrays[f"{convolution}{_FOLDED}"].copy())
    for name in sorted(left):
        found = arrays.get(name)
        if found is None or tuple(found.shape) != tuple(state[name].shape):
            raise ModelError(
                f"the weights of {where} cannot be read back",
                wanted=f"{name} of shape {tuple(state[name].shape)}",
                got="nothing" if found is None else str(found.shape),
                fix=_FIX,
            )
        state[name] = torch.from_numpy(np.array(found))
    network.load_state_dict(state)
    return tuple(folded)


def _normalised(network: LiveNetwork) -> Iterator[tuple[str, str]]:
    """Names of convolutions that a batch normalisation follows, and of these."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Sequential):
            for (first, convolution), (second, norm) in pairwise(module.named_children()):
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    yield f"{name}.{first}", f"{name}.{second}"


def unfold(pretrained: Pretrained, patches: Sequence[Tensor]) -> LiveNetwork:
    """Give folded batch normalisations the statistics of new data; what the network computes stays the same.
    The network of ``pretrained`` is changed in place; ``patches``, (N, Z, H, W) float32, are normalised."""
    network = pretrained.network.eval()
    norms = (network.get_submodule(name) for name in pretrained.folded)
    sums = {
        norm: torch.zeros(3, norm.num_features, dtype=torch.float64)
        for norm in norms
        if isinstance(norm, nn.BatchNorm2d)
    }

    def add(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double().transpose(0, 1).flatten(1)  # (C, pixels)
        sums[norm] += torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)])

    hooks = [norm.register_forward_pre_hook(add) for norm in sums]
    with torch.no_grad():
        for x in patches:
            network(x)
        for hook in hooks:
            hook.remove()
        for norm, (count, total, squares) in sums.items():
            if norm.running_mean is None or norm.running_var is None:
                continue
            mean = total / count
            variance = (squares / count - mean * mean).clamp(min=1e-8)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.add_(mean.to(norm.bias.dtype))
    return network
