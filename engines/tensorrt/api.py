"""TensorRT 10, TensorRT 11 and TensorRT for RTX as one. What differs is asked for, never guessed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from acq_isl.errors import EngineError

_log = logging.getLogger(__name__)

FlavourName = Literal["auto", "tensorrt", "rtx"]
PACKAGES: dict[FlavourName, str] = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""In the order in which ``auto`` tries them."""
# What the youngest part we use came with; older releases lack one or the other.
_NEEDED = (
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
    ("ICudaEngine", "create_runtime_config"),
    ("ICudaEngine", "device_memory_size_v2"),
    ("IExecutionContext", "update_device_memory_size_for_shapes"),
)
_MOST_MESSAGES = 20


@dataclass(frozen=True, slots=True, eq=False)
class Flavour:
    """An installed TensorRT: the module ``tensorrt`` or ``tensorrt_rtx``, and what it can do.

    Typed Any: no stubs fit all versions; a test holds every attribute we use against their API surfaces.
    """

    trt: Any
    graphs: bool = True
    """Whether CUDA graphs are captured; without them only to measure what they bring."""

    @property
    def name(self) -> str:
        """Name of the package, such as ``"tensorrt_rtx"``."""
        return str(self.trt.__name__).partition(".")[0]

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def portable(self) -> bool:
        """Plans fit every GPU of the named targets and are built without one."""
        return hasattr(self.trt, "ComputeCapability")

    @property
    def native_graphs(self) -> bool:
        """The runtime captures CUDA graphs by itself."""
        return hasattr(self.trt, "CudaGraphStrategy")

    @property
    def has_runtime_cache(self) -> bool:
        """Kernels are compiled on the user's machine, and can be kept for the next start."""
        return hasattr(self.trt, "IRuntimeCache")

    @property
    def checks_plans(self) -> bool:
        """The runtime tells whether a plan fits before it loads it."""
        return hasattr(self.trt.Runtime, "get_engine_validity")

    @property
    def has_timing_cache(self) -> bool:
        """Kernels are chosen by timing them on this GPU, and the times can be kept for the next build.

        TensorRT for RTX has the calls, but they do nothing there except ask for a GPU.
        """
        return not self.portable and hasattr(self.trt.IBuilderConfig, "create_timing_cache")

    @property
    def targets(self) -> tuple[str, ...]:
        """GPUs plans can be built for, such as ``"sm89"``; empty if only for the one in the machine."""
        if not self.portable:
            return ()
        names = self.trt.ComputeCapability.__members__
        return tuple(name.lower() for name in names if name.startswith("SM"))


def load_flavour(name: FlavourName = "auto", *, capability: str | None = None) -> Flavour:
    """Import TensorRT; ``auto`` takes TensorRT for RTX where it knows the GPU, such as ``"sm90"``, if any.

    EngineError if it is not installed, not loadable, or too old.
    """
    if name != "auto":
        return _import(name)
    reasons = []
    for candidate in PACKAGES:
        try:
            flavour = _import(candidate)
            if capability is not None:
                check_gpu(flavour, capability)
        except EngineError as error:
            reasons.append(error)
        else:
            return flavour
    raise reasons[0]


def default_targets(flavour: Flavour, capability: str) -> tuple[str, ...]:
    """What a plan is built for where nobody named targets: portable ones leave out GPUs before Ampere."""
    return (capability,) if flavour.portable and is_before_ampere(capability) else ()


def is_before_ampere(capability: str) -> bool:
    """Whether a GPU, such as ``"sm75"``, needs plans of its own: others run on sm80 and up."""
    return int(capability.removeprefix("sm")) < 80


def check_gpu(flavour: Flavour, capability: str) -> None:
    """EngineError if plans of this flavour do not run on a GPU, such as ``"sm90"``."""
    if flavour.portable and capability not in flavour.targets:
        raise EngineError(
            "TensorRT for RTX does not run on this GPU",
            wanted=", ".join(flavour.targets),
            got=capability,
            fix='pip install "acq-isl[tensorrt]", which knows data-centre GPUs',
        )


def _import(name: FlavourName) -> Flavour:
    try:
        if name == "rtx":
            import tensorrt_rtx as trt
        else:
            import tensorrt as trt
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"{PACKAGES[name]} cannot be loaded: {error}",
            wanted=f"the package {PACKAGES[name]}",
            fix=f'pip install "acq-isl[{name}]", or predict on the processor with onnxruntime',
        ) from error
    flavour = Flavour(trt)
    missing = [f"{c}.{a}" for c, a in _NEEDED if not hasattr(getattr(flavour.trt, c, None), a)]
    if missing:
        raise EngineError(
            f"this version of {flavour.name} cannot be used: it has no {missing[0]}",
            wanted="TensorRT 10.13 or newer, or TensorRT for RTX 1.7 or newer",
            got=flavour.version,
            fix=f"pip install --upgrade {flavour.name}",
        )
    return flavour


class Messages:
    """TensorRT's messages: logged, and errors kept, since its calls only say that they failed."""

    def __init__(self, flavour: Flavour) -> None:
        errors = self._errors = deque[str](maxlen=_MOST_MESSAGES)
        trt = flavour.trt
        levels = {
            trt.ILogger.INTERNAL_ERROR: logging.ERROR,
            trt.ILogger.ERROR: logging.ERROR,
            trt.ILogger.WARNING: logging.WARNING,
            trt.ILogger.INFO: logging.DEBUG,
            trt.ILogger.VERBOSE: logging.NOTSET,
        }

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def log(self, severity: Any, message: str) -> None:
                level = levels.get(severity, logging.DEBUG)
                if level >= logging.ERROR:
                    errors.append(message)
                # Errors become exceptions, which say more; logged as well only for those who look closely.
                if level:
                    _log.log(min(level, logging.INFO), "%s", message)

        self.logger = Logger()

    def take(self) -> str:
        """The errors since the last call, oldest first, shortened; empty if there were none."""
        texts = list(dict.fromkeys(self._errors))
        self._errors.clear()
        return "; ".join(text[:300] for text in texts[:3])


@dataclass(frozen=True, slots=True)
class BuildStep:
    """How far a build is: steps of a phase, named in TensorRT's words."""

    phase: str
    done: int
    total: int


Progress = Callable[[BuildStep], None]


class ProgressForwarder:
    """Hands TensorRT's progress on; an exception from the receiver cancels the build and is kept."""

    def __init__(self, flavour: Flavour, progress: Progress) -> None:
        self._progress = progress
        self._totals: dict[str, int] = {}
        self.failure: BaseException | None = None
        tell, trt = self.tell, flavour.trt

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                tell(phase_name, 0, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return tell(phase_name, step + 1)

            def phase_finish(self, phase_name: str) -> None:
                return None

        self.monitor = Monitor()

    def tell(self, phase: str, done: int, total: int | None = None) -> bool:
        """Called by TensorRT, on any of its threads; False asks it to stop."""
        if self.failure is not None:
            return False
        if total is not None:
            self._totals[phase] = total
        try:
            self._progress(BuildStep(phase, done, self._totals.get(phase, done)))
        except BaseException as error:  # noqa: BLE001  not even Ctrl-C may unwind through TensorRT's own frames
            self.failure = error
            return False
        return True
