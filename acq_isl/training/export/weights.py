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
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from acq_isl.errors import ModelError
from acq_isl.manifest import MANIFEST_KEY, Manifest
from acq_isl.training.checkpoints import read_tensors
from acq_isl.training.export.onnx import NETWORK_KEY
from acq_isl.training.network import LiveNetwork, NetworkConfig

_PREFIX = "network."
_FOLDED = ".weight_bias"
_AGREEMENT = 1e-2
_FIX = "train it with this version of acq-isl, or use the weights.safetensors of its run"


@dataclass(frozen=True, slots=True, eq=False)
class Pretrained:
    """What adapting starts from.

    Parameters
    ----------
    network : LiveNetwork
        In evaluation mode.
    manifest : Manifest
    folded : tuple of str
        Names of batch normalisations that the exporter folded into convolutions: they do nothing until
        `unfold` gives them statistics.
    """

    network: LiveNetwork
    manifest: Manifest
    folded: tuple[str, ...] = ()


def read_pretrained(path: Path) -> Pretrained:
    """Read ``weights.safetensors`` of a run, or a model file.

    Raises
    ------
    ModelError
        Neither, damaged, or a network that cannot be trained further.
    """
    if path.suffix == ".safetensors":
        kept = read_tensors(path)
        if "network" not in kept.metadata or "manifest" not in kept.metadata:
            raise ModelError(
                f"{path} does not say what network it is of", fix="give the weights.safetensors of a run"
            )
        network = LiveNetwork(NetworkConfig(**json.loads(kept.metadata["network"])))
        network.load_state_dict(dict(kept.tensors))
        return Pretrained(network.eval(), Manifest.from_json(kept.metadata["manifest"]))
    return _from_onnx(path)


def _from_onnx(path: Path) -> Pretrained:
    try:
        content = path.read_bytes()
        model = onnx.load_from_string(content)
    except Exception as error:  # the parser's errors have no common base below this
        if not isinstance(error, (OSError, ValueError)) and type(error).__module__.split(".")[0] != "google":
            raise
        raise ModelError(f"{path} is no model file", got=str(error)[:200], fix="check the path") from error
    about = {entry.key: entry.value for entry in model.metadata_props}
    if MANIFEST_KEY not in about or NETWORK_KEY not in about:
        raise ModelError(f"{path} does not say how its network is built", wanted=NETWORK_KEY, fix=_FIX)
    manifest = Manifest.from_json(about[MANIFEST_KEY])
    network = LiveNetwork(NetworkConfig(**json.loads(about[NETWORK_KEY]))).eval()
    arrays = {
        one.name.removeprefix(_PREFIX): onnx.numpy_helper.to_array(one)
        for one in model.graph.initializer
        if one.name.startswith(_PREFIX)
    }
    folded = _fill(network, arrays, path)
    _compare(network, manifest, content, path)
    return Pretrained(network, manifest, folded)


def _fill(network: LiveNetwork, arrays: Mapping[str, NDArray[Any]], path: Path) -> tuple[str, ...]:
    """Give a network the arrays of a graph; returns the batch normalisations that were folded."""
    state, folded = network.state_dict(), []
    left = {name for name in state if not name.endswith("num_batches_tracked")}
    for convolution, norm in _normalised(network):
        if f"{norm}.weight" in arrays or f"{convolution}{_FOLDED}" not in arrays:
            continue
        folded.append(norm)
        eps = network.get_submodule(norm).eps
        nothing = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - float(eps)}  # type: ignore[arg-type]
        for part, value in nothing.items():
            state[f"{norm}.{part}"] = torch.full_like(state[f"{norm}.{part}"], value)
            left.discard(f"{norm}.{part}")
        state[f"{norm}.bias"] = torch.from_numpy(arrays[f"{convolution}{_FOLDED}"].copy())
    for name in sorted(left):
        found = arrays.get(name)
        if found is None or tuple(found.shape) != tuple(state[name].shape):
            raise ModelError(
                f"the weights of {path} cannot be read back",
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
            for (first, one), (second, two) in pairwise(module.named_children()):
                if isinstance(one, nn.Conv2d) and isinstance(two, nn.BatchNorm2d):
                    yield f"{name}.{first}", f"{name}.{second}"


def _compare(network: LiveNetwork, manifest: Manifest, content: bytes, path: Path) -> None:
    """Hold the network that was put together against the file."""
    side = max(manifest.min_tile_px, 8 * manifest.size_step_px)
    rng = np.random.default_rng(0)
    counts = rng.normal(30000, 3000, (1, manifest.planes, side, side)).clip(0, 65535).astype("<u2")
    inv_sd = np.full(1, 1 / 3000, np.float32)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    stack = counts.view(np.uint8).reshape(*counts.shape, 2)
    (wanted,) = session.run(["mean"], {"stack": stack, "inv_sd": inv_sd})
    with torch.no_grad():
        x = network.normalise(torch.from_numpy(counts.astype(np.float32)), torch.from_numpy(inv_sd))
        got = network(x)[0].clamp(min=0).numpy()
    difference = float(np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max())))
    if difference > _AGREEMENT:
        raise ModelError(
            f"the network read back from {path} computes something else",
            wanted=f"within {_AGREEMENT:g}",
            got=f"{difference:.2g}",
            fix=_FIX,
        )


def unfold(pretrained: Pretrained, patches: Sequence[Tensor]) -> LiveNetwork:
    """Give folded batch normalisations the statistics of new data; what the network computes stays the same.

    Parameters
    ----------
    pretrained : Pretrained
        Its network is changed in place.
    patches : sequence of (N, Z, H, W) float32
        Normalised, of the data to adapt to.
    """
    network = pretrained.network.eval()
    norms = [network.get_submodule(name) for name in pretrained.folded]
    sums = {norm: [torch.zeros(1), torch.zeros(1), torch.zeros(1)] for norm in norms}

    def seen(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double()
        count, total, squares = sums[norm]
        sums[norm] = [
            count + x.numel() / x.shape[1], total + x.sum(dim=(0, 2, 3)), squares + (x * x).sum(dim=(0, 2, 3))
        ]  # fmt: skip

    hooks = [norm.register_forward_pre_hook(seen) for norm in norms]
    with torch.no_grad():
        for x in patches:
            network(x)
        for hook in hooks:
            hook.remove()
        for norm in norms:
            if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
                continue
            count, total, squares = sums[norm]
            mean = total / count
            variance = (squares / count - mean * mean).clamp(min=1e-8)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.add_(mean.to(norm.bias.dtype))
    return network
