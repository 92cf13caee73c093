"""Camera counts as every live network sees them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCK_PX = 4
_CLIP_SD = 10.0
_TRUNCATE = 3.0


class Normalise(nn.Module):
    """Raw counts minus their local background, in units of the stack's contrast.

    The background is a Gaussian of block means, as in `acq_isl.processing.normalize.contrast_sd`, brought
    back to full resolution bilinearly; four pixels of a block of sixteen are enough for it, and cost a third.
    Training and the exported graph both run this module.
    """

    kernel: Tensor

    def __init__(self, planes: int, high_pass_px: float) -> None:
        super().__init__()
        sigma = max(high_pass_px / _BLOCK_PX, 1e-3)
        radius = max(int(_TRUNCATE * sigma + 0.5), 1)
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
        self.radius = radius
        self.planes = planes
        self.register_buffer("kernel", (weights / weights.sum()).expand(planes, 1, -1).clone(), False)

    def background(self, counts: Tensor) -> Tensor:
        """Local background of (N, Z, H, W) counts; H and W multiples of 4."""
        r = self.radius
        low = F.avg_pool2d(counts, 2, stride=_BLOCK_PX)  # (N, Z, H/4, W/4)
        low = F.pad(low, (r, r, r, r), mode="replicate")
        low = F.conv2d(low, self.kernel[:, :, :, None], groups=self.planes)
        low = F.conv2d(low, self.kernel[:, :, None, :], groups=self.planes)
        return F.interpolate(low, scale_factor=_BLOCK_PX, mode="bilinear", align_corners=False)

    def forward(self, counts: Tensor, inv_sd: Tensor) -> Tensor:
        """Normalise (N, Z, H, W) float32 counts with (N,) float32 reciprocal contrasts."""
        x = (counts - self.background(counts)) * inv_sd[:, None, None, None]
        return x.clamp(-_CLIP_SD, _CLIP_SD)  # (N, Z, H, W)
