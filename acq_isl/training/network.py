"""The live networks: a normalised z-stack becomes a mean and a log variance per label. The whole of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acq_isl.errors import ModelError

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


_LOG_VARIANCE = (-9.0, 3.0)

Kind = Literal["unet", "separable", "convnext"]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Shape and size of the network.

    Parameters
    ----------
    planes, labels : int
    base : int
        Channels of the finest level; each of the coarser levels has twice as many as the last.
    levels : int
        Levels of the U-Net, after the first lowering of the resolution.
    high_pass_px : float
        Sigma of the Gaussian background that the network subtracts from each plane, in pixels.
    kind : {"unet", "separable", "convnext"}
        What a level is made of: two 3x3 convolutions, two depthwise-separable ones, or a residual block
        after Liu et al., "A ConvNet for the 2020s", CVPR 2022 (batch instead of layer normalisation).
    fold : int
        The first convolution lowers the resolution by this factor; the last one brings it back.
    members : int
        Networks side by side that look at the same normalised stack and whose predictions are averaged.
        Two narrow ones are better than a wide one of the same cost where training images are few.
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


def _plain(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_dense(inputs, outputs), *_dense(outputs, outputs))


def _dense(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> tuple[nn.Module, ...]:
    padding = (size - stride) // 2
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (inputs, outputs):
        layers += [nn.Conv2d(source, source, 3, padding=1, groups=source, bias=False)]
        layers += _dense(source, outputs, 1)
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
    convolution, norm, _ = _dense(inputs, outputs, 1)
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
        return nn.Sequential(*_dense(config.planes, base, fold + 4, fold), *_dense(base, base))
    return nn.Sequential(*_dense(config.planes, base, fold, fold), *_LEVELS[config.kind](base, base))


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

    def through(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log variance, squares of pixels folded into channels, and the coarsest activations."""
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
    plus the variance of the means, so that disagreement shows as doubt.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.normalise = Normalise(config.planes, config.high_pass_px)
        self.others = nn.ModuleList(_Trunk(config) for _ in range(config.members - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from a normalised stack.

        While training, each member sees its own part of the batch, which must hold as many stacks.

        Parameters
        ----------
        x : (N, Z, H, W) float32
            Output of `Normalise`; H and W multiples of ``config.size_step_px``.

        Returns
        -------
        mean, log_variance : (N, L, H, W) float32
        """
        if len(self.others) and not self.training:
            mean, spread, _ = self.with_bottom(x)
            return mean, 2.0 * spread.log()
        means, logs, _ = self._through_each(x.chunk(1 + len(self.others)))
        mean, log_variance = (F.pixel_shuffle(torch.cat(one), self.config.fold) for one in (means, logs))
        return mean, log_variance

    def with_bottom(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and spread, one SD, of a trained network; the first member's coarsest activations."""
        means, logs, bottoms = self._through_each((x,) * (1 + len(self.others)))
        # Mixed while folded: a shuffle of every member's pixels would cost as much as a convolution.
        mean, spread = means[0], torch.exp(0.5 * logs[0])
        if len(self.others):
            mean = sum(means[1:], means[0]) / len(means)
            both = zip(means, logs, strict=True)
            variances = [log.exp() + (one - mean).square() for one, log in both]
            spread = (sum(variances[1:], variances[0]) / len(means)).sqrt()
        fold = self.config.fold
        return F.pixel_shuffle(mean, fold), F.pixel_shuffle(spread, fold), bottoms[0]

    def _through_each(self, parts: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
        members: tuple[_Trunk, ...] = (self, *self.others)
        return zip(*(one.through(part) for one, part in zip(members, parts, strict=True)), strict=True)


def together(first: LiveNetwork, *others: LiveNetwork) -> LiveNetwork:
    """One network of networks that were trained apart on the same normalisation, in evaluation mode."""
    config = replace(first.config, members=1 + len(others))
    whole = LiveNetwork(config)
    state = dict(first.state_dict())
    for at, other in enumerate(others):
        if replace(other.config, members=1) != replace(first.config, members=1):
            raise ValueError(f"members differ: {first.config} and {other.config}")
        state |= {f"others.{at}.{name}": value for name, value in other.state_dict().items()}
    whole.load_state_dict(state)
    return whole.eval()


class Deployed(nn.Module):
    """What is exported: camera bytes in, mean and one standard deviation out.

    uint16 cannot enter a TensorRT graph, so the camera's buffer is handed over as byte pairs.

    Parameters
    ----------
    network : LiveNetwork
    spread_scale : tuple of float
        Per label, from calibration.
    gate : torch.nn.Module or None
        From `acq_isl.training.ood_gate`: normalised stack and coarsest activations in, (N, K, h, w) out.
    spread_slope : tuple of float
        Per label, from calibration: the spread is multiplied by 1 + slope * mean. Empty: by 1.
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
        """Predict from camera counts.

        Parameters
        ----------
        stack : (N, Z, H, W, 2) uint8
            Little-endian bytes of uint16 counts.
        inv_sd : (N,) float32
            1 / `acq_isl.processing.normalize.contrast_sd` of each whole stack.

        Returns
        -------
        mean, spread : (N, L, H, W) float32
        distance : (N, K, h, w) float32
            With a gate only.
        """
        counts = stack[..., 0].float() + 256.0 * stack[..., 1].float()  # (N, Z, H, W)
        x = self.network.normalise(counts, inv_sd)
        mean, spread, bottom = self.network.with_bottom(x)
        mean, spread = mean.clamp(min=0.0), spread * self.spread_scale
        if self.sloped:
            spread = spread * (1.0 + self.spread_slope * mean)
        if self.gate is None:
            return mean, spread
        return mean, spread, self.gate(x, bottom)


def beta_nll(mean: Tensor, log_variance: Tensor, target: Tensor, beta: float = 0.5) -> Tensor:
    """Gaussian negative log likelihood, each pixel weighted by its predicted variance to the power beta.

    Seitzer et al., "On the pitfalls of heteroscedastic uncertainty estimation", ICLR 2022, eq. 5:
    without the weight, pixels that are hard to fit are given a large variance and then ignored.
    """
    return pixel_nll(mean, log_variance, target, beta).mean()


def pixel_nll(mean: Tensor, log_variance: Tensor, target: Tensor, beta: float) -> Tensor:
    """beta-NLL of each pixel, see `acq_isl.training.network.beta_nll`."""
    nll = 0.5 * (log_variance + (target - mean) ** 2 / log_variance.exp())
    return (beta * log_variance.detach()).exp() * nll  # (N, L, H, W)


def over_labels(pixels: Tensor, weight: Tensor, total: Callable[[Tensor], Tensor], size: int = 1) -> Tensor:
    """Mean over the known pixels of each label, summed over labels.

    A label counts fully wherever it is known, whatever other labels the samples lack.

    Parameters
    ----------
    pixels : (N, L, H, W) float32
        Loss of each pixel.
    weight : (N, L, H, W) float32
        0 where the truth is not known.
    total : callable
        Sums over the processes that train together.
    size : int
        Number of these; their gradients are averaged.
    """
    known = total(weight.sum(dim=(0, 2, 3))).clamp(min=1)  # (L,)
    # where: what is not known may be anything, even NaN
    chosen = torch.where(weight > 0, pixels * weight, 0.0).sum(dim=(0, 2, 3))  # (L,)
    return size * (chosen / known).sum()


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
