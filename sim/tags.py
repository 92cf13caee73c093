"""What an image was simulated with goes into its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

from acq_isl.sim.optics.illumination import Transmitted

OPTICS_TAG = "SimulatedOptics"
_MAKERS = ("get_tagged_image", "pop_next_tagged_image")


@runtime_checkable
class BringsTags(Protocol):
    """A specimen with something to say in the metadata of each image."""

    @property
    def tags(self) -> Mapping[str, str]:
        """Text by key; JSON where it has parts."""


def optics_text(optics: Transmitted) -> str:
    """All parameters of an optics as JSON, its kind among them."""
    return json.dumps({"kind": type(optics).__name__, **asdict(optics)})


def add_tags(core: Any, tags: Mapping[str, str]) -> None:
    """Let all images that Pycro-Manager's engine takes from a core carry these tags.

    Parameters
    ----------
    core : CMMCore as mmpycorex makes it
        With its two methods that give tagged images.
    tags : mapping
    """
    for name in _MAKERS:
        setattr(core, name, _tagging(getattr(core, name), dict(tags)))


def _tagging(make: Any, tags: dict[str, str]) -> Any:
    def made(*args: Any, **settings: Any) -> Any:
        image = make(*args, **settings)
        image.tags.update(tags)
        return image

    return made
