"""The live networks: a normalised z-stack becomes a mean and a log variance per label. The whole of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCK_PX = 4
_CLIP_SD = 10.0
_TRUNCATE = 3.0
_LOG_VARIANCE = (-9.0, 3.0)

Kind = Literal["unet", "separable", "convnext"]


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


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Shape and size of the network.

    ``base`` are the channels of the finest of ``levels`` levels; each of the coarser ones has twice as many
    as the last. ``high_pass_px`` is the sigma of the Gaussian background that is subtracted from each plane.
    ``kind`` is what a level is made of: two 3x3 convolutions, two depthwise-separable ones, or residual
    blocks after Liu et al., "A ConvNet for the 2020s", CVPR 2022 (batch instead of layer normalisation). The
    first convolution lowers the resolution by ``fold``; the last one brings it back. ``members`` are
    networks side by side that look at the same stack and are averaged: two narrow ones are better than a
    wide one where training images are few.
    """

    planes: int = 13
    labels: int = 3
    base: int = 24
    levels: int = 4
    high_pass_px: float = 20.0
    kind: Kind = "unet"
    fold: int = 2
    members: int = 1

    @property
    def size_step_px(self) -> int:
        """Image sides must be multiples of this many pixels."""
        return int(self.fold * 2 ** (self.levels - 1))


def _convolve(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> tuple[nn.Module, ...]:
    padding = (size - stride) // 2
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


def _plain(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_convolve(inputs, outputs), *_convolve(outputs, outputs))


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (inputs, outputs):
        layers += [nn.Conv2d(source, source, 3, padding=1, groups=source, bias=False)]
        layers += _convolve(source, outputs, 1)
    return nn.Sequential(*layers)


class _Residual(nn.Module):
    """7x7 depthwise, twice as many channels, GELU, back, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1),
        )
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.scale * self.body(x)  # (N, C, H, W)
        return out


def _convnext(inputs: int, outputs: int) -> nn.Sequential:
    convolution, norm, _ = _convolve(inputs, outputs, 1)
    return nn.Sequential(convolution, norm, _Residual(outputs), _Residual(outputs))


_LEVELS: dict[Kind, Callable[[int, int], nn.Sequential]] = {
    "unet": _plain,
    "separable": _separable,
    "convnext": _convnext,
}


def _first(config: NetworkConfig) -> nn.Sequential:
    """Full resolution to the first level's: a strided convolution, faster than folding pixels."""
    fold, base = config.fold, config.base
    if config.kind == "unet":
        # Two pixels beyond its square: at fold 2 what 3x3 would be after folding pixels into channels.
        return nn.Sequential(*_convolve(config.planes, base, fold + 4, fold), *_convolve(base, base))
    return nn.Sequential(*_convolve(config.planes, base, fold, fold), *_LEVELS[config.kind](base, base))


class _Trunk(nn.Module):
    """One U-Net from normalised stack to means and log variances."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.base * 2**level for level in range(config.levels)]
        level = _LEVELS[config.kind]
        pairs = itertools.pairwise(widths)
        self.down = nn.ModuleList([_first(config), *(level(i, o) for i, o in pairs)])
        self.shrink = nn.ModuleList(nn.Conv2d(2 * w, w, 1) for w in widths[:-1])
        self.up = nn.ModuleList(level(2 * w, w) for w in widths[:-1])
        self.head = nn.Conv2d(config.base, config.fold**2 * 2 * config.labels, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def predict_folded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance, squares of pixels folded into channels, and the coarsest activations."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))  # (N, base 2^l, H/(fold 2^l), W/(fold 2^l))
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(self.shrink[level](x), scale_factor=2, mode="bilinear", align_corners=False)
            x = self.up[level](torch.cat([skips[level], x], dim=1))
        mean, log_variance = self.head(x).chunk(2, dim=1)  # (N, fold^2 L, H/fold, W/fold) each
        return mean, log_variance.clamp(*_LOG_VARIANCE), skips[-1]


class LiveNetwork(_Trunk):
    """U-Net at a lowered resolution, planes as channels; or several, averaged.

    Lowering the resolution by the first convolution is what makes it fast enough for live use:
    1.03 million parameters and about 65 kMAC per pixel at base 24 of kind ``unet``. Several members are a
    deep ensemble (Lakshminarayanan et al., NeurIPS 2017): the mixture's variance is the mean variance
    plus the variance of the means, so that disagreement shows.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.normalise = Normalise(config.planes, config.high_pass_px)
        self.others = nn.ModuleList(_Trunk(config) for _ in range(config.members - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, (N, L, H, W) float32 each, of a normalised (N, Z, H, W) float32 stack.

        H and W are multiples of ``config.size_step_px``. While training, each member sees its own part of the
        batch, which must hold as many stacks.
        """
        if len(self.others) and not self.training:
            mean, std, _ = self.predict_with_features(x)
            return mean, 2.0 * std.log()
        means, logs, _ = self._run_members(x.chunk(1 + len(self.others)))
        mean, log_variance = (F.pixel_shuffle(torch.cat(parts), self.config.fold) for parts in (means, logs))
        return mean, log_variance

    def predict_with_features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and SD, (N, L, H, W), of a trained network; the first member's coarsest activations."""
        means, logs, features = self._run_members((x,) * (1 + len(self.others)))
        # Mixed while folded: a shuffle of every member's pixels would cost as much as a convolution.
        mean, std = means[0], torch.exp(0.5 * logs[0])
        if len(self.others):
            mean = sum(means[1:], means[0]) / len(means)
            pairs = zip(means, logs, strict=True)
            variances = [log.exp() + (own - mean).square() for own, log in pairs]
            std = (sum(variances[1:], variances[0]) / len(means)).sqrt()
        fold = self.config.fold
        return F.pixel_shuffle(mean, fold), F.pixel_shuffle(std, fold), features[0]

    def _run_members(self, parts: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        members: tuple[_Trunk, ...] = (self, *self.others)
        runs = zip(members, parts, strict=True)
        return zip(*(member.predict_folded(part) for member, part in runs), strict=True)


class Deployed(nn.Module):
    """What is exported: camera bytes in, mean and one standard deviation out.

    uint16 cannot enter a TensorRT graph, so the camera's buffer is handed over as byte pairs. The SD is
    multiplied by scale * (1 + slope * mean), per label, from calibration; without a slope, by scale. A gate
    from `acq_isl.training.ood_gate` takes normalised stack and coarsest activations and gives (N, K, h, w).
    """

    spread_scale: Tensor
    spread_slope: Tensor

    def __init__(
        self,
        network: LiveNetwork,
        spread_scale: tuple[float, ...],
        gate: nn.Module | None = None,
        spread_slope: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self.network, self.gate = network, gate
        self.sloped = any(spread_slope)
        self.register_buffer("spread_scale", torch.tensor(spread_scale)[None, :, None, None])
        slope = torch.tensor(spread_slope or (0.0,) * len(spread_scale))
        self.register_buffer("spread_slope", slope[None, :, None, None])

    def forward(self, stack: Tensor, inv_sd: Tensor) -> tuple[Tensor, ...]:
        """Mean and SD, (N, L, H, W) float32 each, and with a gate distances, (N, K, h, w) float32.

        Parameters
        ----------
        stack : (N, Z, H, W, 2) uint8
            Little-endian bytes of uint16 counts.
        inv_sd : (N,) float32
            1 / `acq_isl.processing.normalize.contrast_sd` of each whole stack.
        """
        counts = stack[..., 0].float() + 256.0 * stack[..., 1].float()  # (N, Z, H, W)
        x = self.network.normalise(counts, inv_sd)
        mean, std, features = self.network.predict_with_features(x)
        mean, std = mean.clamp(min=0.0), std * self.spread_scale
        if self.sloped:
            std = std * (1.0 + self.spread_slope * mean)
        if self.gate is None:
            return mean, std
        return mean, std, self.gate(x, features)


def beta_nll(mean: Tensor, log_variance: Tensor, target: Tensor, beta: float) -> Tensor:
    """Gaussian negative log likelihood of each pixel, weighted by its predicted variance to the power beta.

    Seitzer et al., "On the pitfalls of heteroscedastic uncertainty estimation", ICLR 2022, eq. 5: without the
    weight, pixels that are hard to fit are given a large variance and then ignored. All are (N, L, H, W).
    """
    nll = 0.5 * (log_variance + (target - mean) ** 2 / log_variance.exp())
    return (beta * log_variance.detach()).exp() * nll


def sum_over_labels(
    pixels: Tensor, weight: Tensor, reduce: Callable[[Tensor], Tensor], processes: int = 1
) -> Tensor:
    """Mean loss over the known pixels of each label, summed over labels.

    A label counts fully wherever it is known, whatever other labels the samples lack. ``pixels`` and
    ``weight``, 0 where the truth is not known, are (N, L, H, W) float32. ``reduce`` sums over the processes
    that train together, whose gradients are averaged.
    """
    known = reduce(weight.sum(dim=(0, 2, 3))).clamp(min=1)  # (L,)
    # where: what is not known may be anything, even NaN
    chosen = torch.where(weight > 0, pixels * weight, 0.0).sum(dim=(0, 2, 3))  # (L,)
    return processes * (chosen / known).sum()


def select_labels(network: LiveNetwork, labels: Sequence[int | None]) -> LiveNetwork:
    """A copy of the network for some of its labels.

    ``labels`` are numbers of old labels in the new order; None: a new one, whose head starts anew.
    """
    fresh = LiveNetwork(replace(network.config, labels=len(labels)))
    state = fresh.state_dict()
    for name, old in network.state_dict().items():
        if "head" not in name.split("."):  # of every member
            state[name] = old.clone()
            continue
        head = state[name].clone().reshape(2, len(labels), -1)  # mean and log variance
        source = old.reshape(2, network.config.labels, -1)
        for at, label in enumerate(labels):
            if label is not None:
                head[:, at] = source[:, label]
        state[name] = head.reshape(state[name].shape)
    fresh.load_state_dict(state)
    return fresh


def join_members(networks: Sequence[LiveNetwork]) -> LiveNetwork:
    """One network whose members are those of all, so that it gives the mean of what they give.

    All have the same labels and size, save for how many members they have.
    """
    members: list[_Trunk] = [member for network in networks for member in (network, *network.others)]
    joined = LiveNetwork(replace(networks[0].config, members=len(members)))
    for new, old in zip((joined, *joined.others), members, strict=True):
        own = _Trunk(old.config).state_dict()
        new.load_state_dict({name: old.state_dict()[name] for name in own}, strict=False)
    return joined.eval()
