"""One guarded acquisition after another: a failure ends one of them, not the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from acq_isl.errors import AcqIslError, AcquisitionFailed
from acq_isl.hooks.guard import GuardedAcquisition
from acq_isl.hooks.pycromanager_backend import forget_places
from acq_isl.stack import StackKey, StackRequest, Uint16Image

logger = logging.getLogger(__name__)


class RenewingAcquisition:
    """A microscope for a session, whose acquisition is begun again by `recover` after it has failed.

    Each has a data set of its own in the same folder. Raises as `GuardedAcquisition`, also on entering.
    """

    def __init__(self, begin: Callable[[], GuardedAcquisition]) -> None:
        self._begin = begin
        self._now = begin()
        self._earlier: list[GuardedAcquisition] = []
        self._where: dict[StackKey, GuardedAcquisition] = {}
        self._lost = False  # nobody knows where stage and wheels are

    def __enter__(self) -> Self:
        self._now.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._now.__exit__(kind, error, trace)

    @property
    def captured(self) -> int:
        """Number of images so far."""
        return sum(each.captured for each in (*self._earlier, self._now))

    def recover(self) -> None:
        """Make ready for the next stack; AcqIslError if a device still holds Pycro-Manager's threads."""
        if not self._now.failed:
            return
        logger.warning("the acquisition is begun again, once its devices answer")
        patience_s = self._now.patience_s
        try:
            self._now.__exit__(None, None, None)
        except AcqIslError as error:
            logger.warning("the acquisition that failed did not end in order: %s", error)
        if not forget_places(patience_s):
            raise AcquisitionFailed(
                "a device does not let go of Pycro-Manager", fix="restart the program, and check that device"
            )
        following = self._begin()
        following.__enter__()
        self._earlier.append(self._now)
        self._now, self._lost = following, True

    def acquire(self, request: StackRequest) -> None:
        """As `GuardedAcquisition.acquire`."""
        self._find_back(request)
        self._now.acquire(request)
        self._where[request.key] = self._now

    def acquire_until(self, request: StackRequest, stop: Callable[[], bool] | None, first: int = 0) -> int:
        """As `GuardedAcquisition.acquire_until`."""
        self._find_back(request)
        taken = self._now.acquire_until(request, stop, first)
        self._where[request.key] = self._now
        return taken

    def focus(self, request: StackRequest) -> float:
        """As `GuardedAcquisition.focus`."""
        return self._now.focus(request)

    def set_preset(self, group: str, preset: str) -> None:
        """As `GuardedAcquisition.set_preset`."""
        self._now.set_preset(group, preset)

    def set_property(self, device: str, name: str, value: str) -> None:
        """As `GuardedAcquisition.set_property`."""
        self._now.set_property(device, name, value)

    def move(self, x_um: float, y_um: float, z_um: float | None = None) -> None:
        """As `GuardedAcquisition.move`."""
        self._now.move(x_um, y_um, z_um)

    def images(self, request: StackRequest) -> Uint16Image:
        """As `GuardedAcquisition.images`, from whichever acquisition it was that took them."""
        return self._where.get(request.key, self._now).images(request)

    def _find_back(self, request: StackRequest) -> None:
        """After a failure an engine may think that stage and wheels are where they are not.

        It leaves out a move to where it was last, so the first stack's place is gone to without it.
        """
        if self._lost:
            request = replace(request, autofocus=None)
            self._now.check(request)
            self._now.move(request.x_um, request.y_um, request.z_um[0])
            self._now.set_preset(request.group, request.preset)
            self._lost = False
