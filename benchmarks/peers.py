"""Other people's networks, for `networks.py`: run, not copied."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

_STEP_PX = 32


class Peer(nn.Module):
    """A network of VisCy with the interface of ours; the second half of its outputs is the log variance."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "unet":
            from viscy.unet.networks.Unet25D import Unet25d

            filters = [16, 32, 64, 128, 256]
            self.body = Unet25d(1, 6, 13, 1, num_blocks=4, num_filters=filters, residual=True, task="reg")
        else:
            from viscy.unet.networks.unext2 import UNeXt2

            self.body = UNeXt2(1, 6, 13, 1, backbone="convnextv2_atto", stem_kernel_size=(13, 4, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % _STEP_PX, 0, -height % _STEP_PX), mode="reflect")
        both = self.body(x[:, None])[:, :, 0, :height, :width]
        mean, log_variance = both.chunk(2, dim=1)
        return mean, log_variance.clamp(-9, 3)

    def as_onnx(self, example: NDArray[np.float32]) -> bytes:
        """The network alone, for fields of this size."""
        file = io.BytesIO()
        program = torch.onnx.export(self, (torch.from_numpy(example),), input_names=["stack"], dynamo=True)
        program.save(file)
        return file.getvalue()
