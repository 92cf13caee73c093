"""What flows through the program: requests, slices, stacks, predictions. All frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import StackRefused

Uint16Image = NDArray[np.uint16]
Float32Image = NDArray[np.float32]

Modality = Literal["phase contrast", "brightfield", "DIC", "fluorescence", "unknown"]
Polarity = Literal["dark", "bright", "unknown"]


@dataclass(frozen=True, slots=True, order=True)
class StackKey:
    """Which stack: Pycro-Manager's axes without z.

    Parameters
    ----------
    time : int
        Time point, from 0.
    position : str
        Name of the stage position, such as ``"A1_003"``.
    channel : str
        Optical channel (preset), such as ``"Phase"``.
    """

    time: int
    position: str
    channel: str

    def __str__(self) -> str:
        return f"{self.position} t{self.time} {self.channel}"


@dataclass(frozen=True, slots=True)
class StackInfo:
    """What is known of a stack before its first slice is exposed.

    Parameters
    ----------
    key : StackKey
    z_um : tuple of float
        Stage z of each slice, in the order of acquisition, in micrometres.
    shape : (int, int)
        Rows and columns of each slice, in pixels.
    pixel_size_um : float
        Edge of a pixel in the specimen, in micrometres.
    x_um, y_um : float
        Stage position of the middle of the field of view, in micrometres.
    exposure_ms : float
    modality, polarity :
        How the light was transmitted; polarity is whether dense matter looks dark or bright.
    """

    key: StackKey
    z_um: tuple[float, ...]
    shape: tuple[int, int]
    pixel_size_um: float
    x_um: float = 0.0
    y_um: float = 0.0
    exposure_ms: float = 0.0
    modality: Modality = "unknown"
    polarity: Polarity = "unknown"

    @property
    def planes(self) -> int:
        return len(self.z_um)

    @property
    def middle(self) -> int:
        """Number of the plane in the middle by z, whatever the order of the planes."""
        return sorted(range(self.planes), key=self.z_um.__getitem__)[self.planes // 2]


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One image at one z.

    Parameters
    ----------
    info : StackInfo
        The stack this slice belongs to.
    z_index : int
        Place in ``info.z_um``.
    pixels : (y, x) uint16
        Camera counts. Nobody may write to it any more.
    captured_s : float
        Unix time in seconds at which the camera delivered it.
    acquisition : int
        Tells stacks of one key apart that are of different acquisitions; not sent to the engine.
    """

    info: StackInfo
    z_index: int
    pixels: Uint16Image
    captured_s: float
    acquisition: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ZStack:
    """All slices of one channel, position and time.

    Parameters
    ----------
    info : StackInfo
    pixels : (z, y, x) uint16
        Camera counts, planes in the order of ``info.z_um``.
    captured_s : tuple of float
        Unix time in seconds of each slice.

    Raises
    ------
    StackRefused
        The array does not have the announced shape or is not uint16.
    """

    info: StackInfo
    pixels: Uint16Image
    captured_s: tuple[float, ...]

    def __post_init__(self) -> None:
        wanted = (self.info.planes, *self.info.shape)
        if self.pixels.shape != wanted or self.pixels.dtype != np.uint16:
            raise StackRefused(
                f"stack {self.info.key} is not what was announced",
                wanted=f"{wanted} uint16",
                got=f"{self.pixels.shape} {self.pixels.dtype}",
                fix="check camera ROI, binning and bit depth; they must not change within a run",
            )


@dataclass(frozen=True, slots=True)
class StageTimes:
    """How long each stage of one prediction took, in milliseconds.

    ``expose`` first to last slice of the stack, ``transfer`` last slice until the stack is complete
    at the engine, ``wait`` until the engine takes it up, ``infer`` and ``decode`` in the engine, ``turn``
    until the run looks at the prediction, which it does between two stacks.
    """

    expose_ms: float = 0.0
    transfer_ms: float = 0.0
    wait_ms: float = 0.0
    infer_ms: float = 0.0
    decode_ms: float = 0.0
    turn_ms: float = 0.0

    @property
    def engine_ms(self) -> float:
        """From the last slice until the prediction is there."""
        return self.transfer_ms + self.wait_ms + self.infer_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class Distance:
    """How unlike the training set a stack looks in one respect; see `acq_isl.manifest.Gate`.

    Parameters
    ----------
    name : str
        What is compared, such as ``features``.
    value : float
        Median over the windows of the field.
    limit : float
        A stack above it is refused, unless an expert wants the prediction all the same.
    """

    name: str
    value: float
    limit: float

    @property
    def beyond(self) -> bool:
        return self.value > self.limit


@dataclass(frozen=True, slots=True)
class ObjectCounting:
    """How objects of a predicted label are counted, fitted to fields whose objects were known.

    ``per_mm2`` * area in mm2 + ``per_maximum`` * maxima + ``per_intensity_um2`` * sum of mean * pixel area,
    at least 0. Maxima are local ones of the mean, smoothed with a Gaussian of ``smooth_um``, that are higher
    than ``above`` and the highest within ``apart_um``. The variance of a count n is
    ``variance_per_object`` * max(n, 1) + ``variance_per_mm2`` * area in mm2.
    """

    label: str
    smooth_um: float
    above: float
    apart_um: float
    per_mm2: float
    per_maximum: float
    per_intensity_um2: float
    variance_per_object: float
    variance_per_mm2: float
    fields: int
    """It was fitted to. All that follows was found on fields that were left out of a fit, unit by unit."""
    bias: float
    """Mean of count less truth, as a share of the mean truth."""
    correlation: float
    within_1_sd: float
    within_2_sd: float
    judged_on: str
    """Which fields, and what counted as true, for people."""
    kind: Literal["objects"] = "objects"


@dataclass(frozen=True, slots=True)
class NetworkLabel:
    """A predicted label without objects, such as axons: a network, which has length and area."""

    label: str
    kind: Literal["network"] = "network"


Counting = ObjectCounting | NetworkLabel


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Labels an engine predicts for a stack. Never measured, always to be shown as predicted.

    Parameters
    ----------
    info : StackInfo
        The stack it was predicted from.
    labels : tuple of str
        Bare label names, such as ``("nuclei", "dendrites")``; show them with `display_names`.
    mean : (label, y, x) float32
        Predicted intensity, 0 is background and 1 the bright end of the training truth.
    spread : (label, y, x) float32
        One standard deviation of the doubt the network states. Display only, never a gate.
    model_sha256 : str
    model_name : str
    engine : str
        Back end that computed it, such as ``"onnxruntime cpu fp32"``.
    warnings : tuple of str
        What the stack had to be resampled for, and other reasons for less trust.
    border_px : int
        Width of the margin whose receptive field reaches outside the image: less certain.
    times : StageTimes
    model : str
        Name by which the client asked for the model, also in other outcomes; empty if it named none.
    distances : tuple of Distance
        How unlike the training set the stack looks; empty if the model cannot tell.
    counting : tuple of Counting
        How objects of its labels are counted, and which labels have none, as far as the model knows.
    focus_offset_um : float, optional
        By how much the focus lies above the middle of the stack. Default: that is not known.
    """

    info: StackInfo
    labels: tuple[str, ...]
    mean: Float32Image
    spread: Float32Image
    model_sha256: str
    model_name: str
    engine: str
    warnings: tuple[str, ...] = ()
    border_px: int = 0
    times: StageTimes = field(default_factory=StageTimes)
    model: str = ""
    distances: tuple[Distance, ...] = ()
    counting: tuple[Counting, ...] = ()
    focus_offset_um: float | None = None

    @property
    def display_names(self) -> tuple[str, ...]:
        """Names for people: a prediction is never called by a stain's name alone."""
        return tuple(f"{label} (predicted)" for label in self.labels)

    def label(self, name: str) -> Float32Image:
        """Predicted intensity of one label, (y, x) float32; KeyError names the labels there are."""
        if name not in self.labels:
            raise KeyError(f"no label {name!r}; this prediction has {', '.join(self.labels)}")
        plane: Float32Image = self.mean[self.labels.index(name)]
        return plane


@dataclass(frozen=True, slots=True)
class Refusal:
    """The engine looked at a stack and declined to predict it, with the reason and the fix."""

    info: StackInfo
    reason: str
    fix: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Unpredicted:
    """A stack that was captured but not predicted: it waits in the spool (``where``) for an engine."""

    info: StackInfo
    reason: str
    where: str
    model: str = ""


Outcome = Prediction | Refusal | Unpredicted


@dataclass(frozen=True, slots=True)
class Autofocus:
    """The focus of a stack, which the microscope's autofocus device finds before it is imaged.

    Parameters
    ----------
    site : str
        Whose focus it is: all stacks of a site are imaged about the focus that was found last.
    z_um : float
        Where the focus is thought to be, on the stage.
    due : bool
        Whether it is looked for before this stack.
    device : str
        Micro-Manager's autofocus device, or the motor of its offset; empty for the one it has selected.
    offset : float, optional
        What that device adds to the focus, in its own unit. Default: as it is.
    tries : int
        How often it is looked for, at most.
    """

    site: str
    z_um: float
    due: bool = True
    device: str = ""
    offset: float | None = None
    tries: int = 1


@dataclass(frozen=True, slots=True)
class StackRequest:
    """One stack to acquire: a stage place, a channel, and the z of every slice.

    Parameters
    ----------
    key : StackKey
    x_um, y_um : float
        Stage position in micrometres.
    z_um : tuple of float
        Stage z of each slice in micrometres, in the order of acquisition.
    group, preset : str
        Micro-Manager configuration group and the preset to select.
    exposure_ms : float
    modality, polarity :
        Handed on to `StackInfo`.
    predict : bool
        Whether the slices are wanted by an engine.
    camera : str
        Micro-Manager's camera device; empty for the one it has selected.
    keep_shutter_open : bool
        Whether the shutter stays open from the first slice to the last.
    autofocus : Autofocus, optional
        How its focus is found.
    attempt : int
        How often it was begun before and interrupted; what came of those is kept under axes of their own.
    """

    key: StackKey
    x_um: float
    y_um: float
    z_um: tuple[float, ...]
    group: str
    preset: str
    exposure_ms: float
    modality: Modality = "unknown"
    polarity: Polarity = "unknown"
    predict: bool = True
    camera: str = ""
    keep_shutter_open: bool = False
    autofocus: Autofocus | None = None
    attempt: int = 0
