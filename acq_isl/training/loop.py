"""One step of training after another. What happens depends on the seed and the step only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from acq_isl.errors import ExperimentError, ModelError, TrainingFailed
from acq_isl.training.checkpoints import Tensors
from acq_isl.training.config import Optimisation, TrainConfig
from acq_isl.training.data.dataset import Field
from acq_isl.training.data.patches import Batch, Patches
from acq_isl.training.distributed import ProcessGroup, computes_in_bf16
from acq_isl.training.network import LiveNetwork, beta_nll, select_labels, sum_over_labels
from acq_isl.training.teachers import Lesson, read_lesson, read_start

_WARM_UP = 0.1
_FIRST, _LAST = 0.04, 0.002
_CLIP = 1.0
_ALONE = ProcessGroup()


def learning_rate(step: int, optimisation: Optimisation) -> float:
    """One cycle: a short rise, then half a cosine down to nearly nothing."""
    at = (step + 0.5) / optimisation.steps
    if at < _WARM_UP:
        share = _FIRST + (1 - _FIRST) * at / _WARM_UP
    else:
        share = _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * (at - _WARM_UP) / (1 - _WARM_UP)))
    return optimisation.learning_rate * share


def _computes_low(config: TrainConfig, group: ProcessGroup) -> bool:
    precision = config.optimisation.precision
    return precision == "bf16" or (precision == "auto" and computes_in_bf16(group.device))


@dataclass(slots=True, eq=False)
class Training:
    """Everything that changes while training. ``average`` is the running average of the weights of
    ``network``, ``model`` the network as the group trains it. Batch statistics of ``frozen`` parts stay as
    they are. ``step`` counts the steps done; without a ``lesson`` all is learned from the truth."""

    config: TrainConfig
    group: ProcessGroup
    network: LiveNetwork
    average: LiveNetwork
    model: nn.Module
    optimiser: torch.optim.AdamW
    step: int = 0
    frozen: tuple[nn.Module, ...] = ()
    lesson: Lesson | None = None

    @classmethod
    def start(cls, config: TrainConfig, group: ProcessGroup = _ALONE) -> Training:
        """New weights from the configuration's seed, or those it says. `ExperimentError` if a batch is
        smaller than the number of networks that share it; `ModelError`: a teacher that cannot be used."""
        if config.optimisation.batch < config.network.members:
            raise ExperimentError(
                "networks side by side share each batch, and there are more of them than patches in it",
                wanted=f"a batch of at least {config.network.members}",
                got=str(config.optimisation.batch),
                fix="raise optimisation.batch, or recipe.batch where a model is adapted",
            )
        settings = config.optimisation
        torch.manual_seed(settings.seed)
        size = config.network
        if settings.auto_encoding > 0:
            size = replace(size, labels=size.labels + 1)
        names, teaching = [label.name for label in config.labels], config.teaching
        network, average = LiveNetwork(size).to(group.device), LiveNetwork(size).to(group.device)
        if teaching.start_from is not None:
            network.load_state_dict(read_start(teaching.start_from, names, size).state_dict())
        average.load_state_dict(network.state_dict())
        if _computes_low(config, group):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.AdamW(
            network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        lesson = read_lesson(teaching, names, replace(size, planes=config.planes), group.device)
        return cls(config, group, network, average.eval(), group.wrap(network), optimiser, lesson=lesson)

    @property
    def patches(self) -> Patches:
        """How patches are drawn."""
        settings = self.config.optimisation
        return Patches(settings.batch, settings.patch_px, settings.foreground, self.config.augmentation)

    @property
    def result(self) -> LiveNetwork:
        """The averaged weights without what only training needs, on the processor."""
        labels = range(len(self.config.labels))
        return select_labels(self.average, tuple(labels)).to("cpu").eval()

    def advance(self, fields: Sequence[Field]) -> float:
        """One step; returns the loss, a sum over labels. `TrainingFailed` if the loss or its gradient is not
        finite; the weights are as before this step."""
        settings = self.config.optimisation
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, settings)
        # A trailing 0 changes nothing: a single process draws what it drew before there were several.
        rng = np.random.default_rng([settings.seed, self.step, self.group.rank])
        self.model.train()
        for part in self.frozen:
            part.eval()
        loss = self._loss(self.patches.draw(fields, rng))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP * len(self.config.labels))
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise TrainingFailed(
                f"training diverged at step {self.step}",
                wanted="a finite loss and gradient",
                got=f"loss {value}, gradient {float(norm)}",
                fix="lower optimisation.learning_rate or set precision: fp32; the last checkpoint is kept",
            )
        self.optimiser.step()
        self._update_average(min(settings.average, (1 + self.step) / (10 + self.step)))
        self.step += 1
        return value

    def _loss(self, batch: Batch) -> Tensor:
        device, settings = self.group.device, self.config.optimisation
        x, y, weight = (part.to(device) for part in (batch.x, batch.y, batch.weight))
        low = _computes_low(self.config, self.group)
        if low:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            mean, log_variance = self.model(x[:, :: self.config.every_plane])
            wanted = None if self.lesson is None else self.lesson.targets(x, y, batch.live.to(device))
        mean, log_variance = mean.float(), log_variance.float()
        labels = len(self.config.labels)
        loss = self._against(wanted, mean[:, :labels], log_variance[:, :labels], y, weight)
        if settings.auto_encoding > 0:
            middle = x[:, x.shape[1] // 2, None].float()
            again = beta_nll(mean[:, labels:], log_variance[:, labels:], middle, settings.beta)
            loss = loss + settings.auto_encoding * again.mean()
        return loss

    def _against(
        self, wanted: Tensor | None, mean: Tensor, log_variance: Tensor, y: Tensor, weight: Tensor
    ) -> Tensor:
        """Loss against the truth ``y``, or of the mean against what the teachers ``wanted``."""
        settings, teaching = self.config.optimisation, self.config.teaching
        # Most pixels are background: a network that doubts where something is finds it cheapest to pale it.
        bright = weight * (1 + settings.bright_weight * y)
        if wanted is None:
            pixels = beta_nll(mean, log_variance, y, settings.beta)
            return sum_over_labels(pixels, bright, self.group.sum, self.group.size)
        taught = sum_over_labels((mean - wanted).square(), bright, self.group.sum, self.group.size)
        doubted = beta_nll(mean.detach(), log_variance, y, 1.0)
        weight = weight * (1 + teaching.spread_bright * y)
        spread = sum_over_labels(doubted, weight, self.group.sum, self.group.size)
        return taught + teaching.spread * spread

    def _update_average(self, decay: float) -> None:
        pairs = zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True)
        with torch.no_grad():
            for average, new in pairs:
                if average.is_floating_point():
                    average.lerp_(new, 1 - decay)
                else:
                    average.copy_(new)

    def state(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, as tensors by name."""
        tensors = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{index}/{name}": value for name, value in state.items()}
        return tensors

    def restore(self, step: int, saved: Tensors) -> None:
        """Go on from a checkpoint; `ModelError` if it belongs to another network."""
        try:
            self.network.load_state_dict(saved.under("network/"))
            self.average.load_state_dict(saved.under("average/"))
        except RuntimeError as error:
            raise ModelError(
                "the checkpoint is of another network", got=str(error)[:200], fix="choose an empty folder"
            ) from error
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.under("optimiser/").items():
            index, name = key.split("/")
            states.setdefault(int(index), {})[name] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": states, "param_groups": groups})
        self.step = step
