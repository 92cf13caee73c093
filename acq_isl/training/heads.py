"""A network with other labels and the same weights.

All that depends on the number of labels is the head, whose outputs lie in the order (mean or log variance,
label, pixel of a square).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from acq_isl.errors import ModelError
from acq_isl.training.network import LiveNetwork, NetworkConfig


def chosen_labels(network: LiveNetwork, labels: Sequence[int | None]) -> LiveNetwork:
    """The same network for some of its labels.

    Parameters
    ----------
    network : LiveNetwork
    labels : sequence of int or None
        Numbers of old labels in the new order; None: a new one, whose head starts as in a new network.

    Returns
    -------
    LiveNetwork
        A copy.
    """
    config = replace(network.config, labels=len(labels))
    fresh = LiveNetwork(config)
    state = fresh.state_dict()
    for name, old in network.state_dict().items():
        if old.shape == state[name].shape and list(labels) == list(range(network.config.labels)):
            state[name] = old.clone()
        elif "head" in name.split("."):  # of every member
            state[name] = _head(old.cpu(), state[name], network.config, labels)
        elif old.shape == state[name].shape:
            state[name] = old.clone()
        else:
            raise ModelError(f"{name} depends on the number of labels", fix="report this kind of network")
    fresh.load_state_dict(state)
    return fresh


def _head(old: Tensor, fresh: Tensor, config: NetworkConfig, labels: Sequence[int | None]) -> Tensor:
    source = old.reshape(2, config.labels, -1)
    target = fresh.clone().reshape(2, len(labels), -1)
    with torch.no_grad():
        for at, label in enumerate(labels):
            if label is not None:
                target[:, at] = source[:, label]
    return target.reshape(fresh.shape)
