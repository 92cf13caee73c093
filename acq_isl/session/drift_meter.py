"""How far the picture of each place moves from time point to time point."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.events import Seen
from acq_isl.processing.display import reduced
from acq_isl.processing.drift import find_drift
from acq_isl.stack import StackKey, StackRequest

_PICTURE_PX = 160
_MOST_PLACES = 1024


class Drift:
    """How far the (y, x) picture of a place lies from where it was at first, x and y in um, or NaN."""

    def __init__(self, picture: NDArray[Any], field_um: float) -> None:
        self.picture, self.field_um = picture, field_um
        self.um = (0.0, 0.0)
        self.why, self.told = "", False

    def follow(self, picture: NDArray[Any], pixel_um: float) -> None:
        """Add how far the next picture has moved against the last."""
        moved = find_drift(self.picture, picture)
        self.picture = picture
        if moved is None:
            self.um, self.why = (math.nan, math.nan), "the pictures have too little in common"
        else:
            self.um = self.um[0] + moved[1] * pixel_um, self.um[1] + moved[0] * pixel_um


class DriftMeter:
    """Follows the pictures of up to 1,024 places, those visited last; see `Drift`."""

    def __init__(self) -> None:
        self._waiting: dict[StackKey, Seen] = {}
        self._places: OrderedDict[tuple[str, str], Drift] = OrderedDict()

    def see(self, event: Seen) -> None:
        """Any thread; one picture of each stack, of which few are open at once."""
        while len(self._waiting) > 8:
            self._waiting.pop(next(iter(self._waiting)), None)
        self._waiting[event.key] = event

    def measure(self, request: StackRequest) -> Drift | None:
        """The drift of a stack's place, once there was an earlier time point; None before that."""
        seen = self._waiting.pop(request.key, None)
        if seen is None or seen.pixels is None:
            return None
        picture = np.asarray(reduced(seen.pixels, _PICTURE_PX), np.float32)
        pixel_um = seen.pixel_size_um * seen.shape[0] / picture.shape[0]
        place = (request.key.position, request.key.channel)
        known = self._places.pop(place, None)
        if known is None:
            self._places[place] = Drift(picture, min(seen.shape) * seen.pixel_size_um)
            while len(self._places) > _MOST_PLACES:
                self._places.popitem(last=False)
            return None
        self._places[place] = known
        known.follow(picture, pixel_um)
        return known
