"""Which stack an image belongs to, where its axes alone do not say: acquisitions, and cameras at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from weakref import WeakKeyDictionary

from acq_isl.hooks.metadata import SliceMetadata
from acq_isl.stack import StackKey

_STACKS = 1 << 14


class Identities:
    """Gives stacks of one hook that carry the same axes different keys. Not thread-safe.

    Nothing in an image names its acquisition, but Pycro-Manager runs the hook of each on a thread of its own.
    The first acquisition, and the first camera, keep their names.
    """

    def __init__(self) -> None:
        self._numbers: WeakKeyDictionary[threading.Thread, int] = WeakKeyDictionary()
        self._latest = 0
        self._first_camera: OrderedDict[StackKey, str] = OrderedDict()

    def name(self, metadata: SliceMetadata) -> SliceMetadata:
        """The same with the key of its own stack."""
        thread = threading.current_thread()
        if thread not in self._numbers:
            # Threads side by side may feed one acquisition; `begin` is called if that turns out wrong.
            if not any(known.is_alive() for known in list(self._numbers)):
                self._latest += 1
            self._numbers[thread] = self._latest
        number, key = self._numbers[thread], metadata.key
        position = f"{key.position} acquisition {number}" if number > 1 else key.position
        key = replace(key, position=position)
        if self._is_another_camera(key, metadata):
            key = replace(key, channel=f"{key.channel} {metadata.camera}")
        return replace(metadata, key=key)

    def begin(self) -> None:
        """This thread's images are of an acquisition of their own from now on."""
        self._latest += 1
        self._numbers[threading.current_thread()] = self._latest

    def _is_another_camera(self, key: StackKey, metadata: SliceMetadata) -> bool:
        if metadata.camera_index is not None:
            return metadata.camera_index > 0
        first = self._first_camera.setdefault(key, metadata.camera)
        if len(self._first_camera) > _STACKS:
            self._first_camera.popitem(last=False)
        return metadata.camera != first
