"""One field of a recorded data set, whatever the format: channels, and the lengths the file knows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from acq_isl.errors import StorageError

# How channels of transmitted light are usually called; "PC", "TL" and "BF" only as whole words.
_TRANSMITTED = re.compile(r"phase|bright|transmi|dic\b|\b(pc|ph\d?|tl|bf)\b", re.IGNORECASE)
# Labels of the model by the usual names of their stains; other channels keep their own name.
_LABELS = MappingProxyType(
    {"nuclei": r"dapi|hoechst|nucle", "dendrites": r"map-?2|dendrit", "axons": r"nfh|nf-h|neurofil|axon"}
)


@dataclass(frozen=True, slots=True, eq=False)
class RecordedField:
    """Images of one field at one time.

    Parameters
    ----------
    source : str
        Where it comes from, for messages.
    channels : mapping
        (z, y, x) counts by channel name, in the order of the file.
    pixel_size_um, z_step_um : float or None
        What the metadata say, in micrometres.
    """

    source: str
    channels: Mapping[str, Any]
    pixel_size_um: float | None
    z_step_um: float | None

    def transmitted(self, wanted: str | None) -> str:
        """Name of the channel of transmitted light: as told, by its name, or the only stack.

        Raises
        ------
        StorageError
            There is no such channel, or it cannot be told which it is.
        """
        names = list(self.channels)
        if wanted is not None:
            if wanted in names:
                return wanted
            near = difflib.get_close_matches(wanted, names, n=1)
            raise StorageError(
                f"{self.source} has no channel {wanted!r}",
                wanted=f"one of {', '.join(names)}",
                fix=f"did you mean {near[0]!r}?" if near else "give one of these as transmitted",
            )
        found = [name for name in names if _TRANSMITTED.search(name.replace("_", " "))]
        if len(found) != 1:
            found = [name for name in found or names if len(self.channels[name]) > 1] or names
        if len(found) == 1:
            return found[0]
        raise StorageError(
            f"which channel of {self.source} is transmitted light cannot be told from the names",
            got=", ".join(names),
            fix="give transmitted, the name of one of them",
        )

    def length(self, what: str, known: float | None, given: float | None) -> float:
        """A length as given, else as the file knows it.

        Raises
        ------
        StorageError
            Neither; says what to pass.
        """
        if given is not None:
            return given
        if known is not None:
            return known
        name = {"pixel size": "pixel_size_um", "z step": "z_step_um"}[what]
        raise StorageError(
            f"the {what} of {self.source} is not known",
            wanted="it in the metadata of the file",
            fix=f"give {name} (in an experiment file: microscope.specimen.{name}; "
            f"on the command line: --{name.removesuffix('_um').replace('_', '-')})",
        )


def label_of(channel: str, taken: Iterable[str]) -> str:
    """Name of the label that a fluorescence channel shows: that of the model, or its own."""
    for label, stain in _LABELS.items():
        if re.search(stain, channel, re.IGNORECASE) and label not in taken:
            return label
    return channel


def named_channels(source: str, pixels: Any, names: Sequence[str | None], only: str) -> dict[str, Any]:
    """Stacks by channel name, of (c, z, y, x) pixels; unnamed ones are numbered, one alone is ``only``.

    Raises
    ------
    StorageError
        Two channels have the same name.
    """
    if len(pixels) == 1 and not any(names):
        return {only: pixels[0]}
    given = [names[at] if at < len(names) else None for at in range(len(pixels))]
    channels = {name or f"channel {at}": pixels[at] for at, name in enumerate(given)}
    if len(channels) < len(pixels):
        raise StorageError(f"two channels of {source} have the same name", got=", ".join(map(str, names)))
    return channels
