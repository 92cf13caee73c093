"""What an image's metadata says of the slice, on both backends. Bare dicts end here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from acq_isl.errors import AcquisitionFailed
from acq_isl.stack import StackKey

_OWN_AXES = ("time", "position", "channel", "z")


@dataclass(frozen=True, slots=True)
class SliceMetadata:
    """What is known of an image.

    ``z_index`` is the value of the z axis, 0 without one. Places are those that were asked for: x and y 0, z
    None if the event did not move that stage. The pixel size is 0 without a calibration. ``camera_index`` is
    None where the core does not number the images that its cameras take at once, ``snapped`` whether it has
    given one after the other of a single exposure.
    """

    key: StackKey
    z_index: int
    z_um: float | None
    x_um: float
    y_um: float
    exposure_ms: float
    pixel_size_um: float
    camera: str = ""
    camera_index: int | None = None
    snapped: bool = False


def read_metadata(metadata: Mapping[str, Any]) -> SliceMetadata:
    """Read what an image's metadata says; frames of a camera sequence carry strings for numbers.

    Axes other than time, position, channel and z (``well``, ``fov``, ``row``...) become part of the
    position's name, so that two stacks never share a key. AcquisitionFailed if a field cannot be read.
    """
    axes = metadata.get("Axes")
    if not isinstance(axes, Mapping):
        raise AcquisitionFailed(
            "an image came without axes", wanted="'Axes' in its metadata", got=f"{axes!r}"
        )
    try:
        z_um = metadata.get("ZPosition_um_Intended")
        camera, camera_index = _camera(metadata)
        return SliceMetadata(
            key=StackKey(
                time=int(axes.get("time", 0)),
                position=_position(axes, metadata),
                channel=str(axes.get("channel", metadata.get("Channel") or "Default")),
            ),
            z_index=int(axes.get("z", 0)),
            z_um=None if z_um is None else float(z_um),
            x_um=float(metadata.get("XPosition_um_Intended") or 0.0),
            y_um=float(metadata.get("YPosition_um_Intended") or 0.0),
            exposure_ms=float(metadata.get("Exposure") or 0.0),
            pixel_size_um=float(metadata.get("PixelSize_um") or 0.0),
            camera=camera,
            camera_index=camera_index,
            snapped="CameraChannelIndex" in metadata,
        )
    except (TypeError, ValueError) as error:
        raise AcquisitionFailed(
            f"the metadata of the image at {dict(axes)} cannot be read", got=str(error)
        ) from error


def _position(axes: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    place = axes.get("position", metadata.get("PositionName"))
    names = [] if place is None else [str(place)]
    names += [f"{name}{axes[name]}" for name in sorted(axes) if name not in _OWN_AXES]
    return "_".join(names) or "Default"


def _camera(metadata: Mapping[str, Any]) -> tuple[str, int | None]:
    """Which camera. In a sequence these names follow the label of the device that combines the cameras."""
    tags = {name.rpartition("-")[2]: tag for name, tag in metadata.items() if "CameraChannel" in str(name)}
    index = int(tags["CameraChannelIndex"]) if "CameraChannelIndex" in tags else None
    camera = str(metadata.get("Camera") or "")
    return str(
        tags.get("CameraChannelName")
        or (f"{camera} {index + 1}" if index and "CameraChannelIndex" in metadata else camera)
    ), index
