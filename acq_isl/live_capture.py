"""Predictions inside somebody's own Pycro-Manager acquisition: two lines in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from acq_isl.errors import AcqIslError
from acq_isl.experiment.planning import Optics
from acq_isl.hooks import CaptureHook
from acq_isl.hooks.pymmcore_plus import MdaFrames
from acq_isl.stack import Outcome, StackInfo, StackKey
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.messages import Wanted
from acq_isl.stream.pending_stack import ClientCounts
from acq_isl.stream.sockets import client_keys
from acq_isl.stream.spool import Spool


class live:
    """A capture hook that is connected to an engine.

        with acq_isl.live("tcp://127.0.0.1:5599", planes=13) as live:
            with Acquisition(directory, name, image_process_fn=live.hook) as acq:
                acq.acquire(events)
            outcomes = live.drain(timeout_s=60)

    With pymmcore-plus, beside whatever its runner writes:

        core.run_mda(sequence, output=["run.ome.zarr", live.mda], block=True)

    Parameters
    ----------
    address : str
        Of a running ``acq-isl serve``. It need not be there: stacks then wait in ``spool``.
    planes : int, optional
        Slices of a stack; or give ``z_um``.
    z_um : sequence of float, optional
        Stage z of every slice in micrometres.
    pixel_size_um : float, optional
        Taken from the images' metadata where not given.
    optics : Optics
        How the light is transmitted, checked against the model where stated.
    spool : path
        Where stacks wait that no engine predicted; predict them later with ``acq-isl replay``.
    wanted : Wanted or callable, optional
        Models, class of work and deadline, of all stacks or given the `StackInfo` of each. By default the
        engine's first model, latest stack first.
    keys : path, optional
        Folder of keys, for an engine on another computer.

    Raises
    ------
    ExperimentError
        Neither ``planes`` nor ``z_um`` is given.
    SliceLost
        On leaving: a captured slice is neither predicted nor in the spool.
    """

    def __init__(  # noqa: PLR0913  all but the address have defaults
        self,
        address: str,
        *,
        planes: int | None = None,
        z_um: Sequence[float] | None = None,
        pixel_size_um: float | None = None,
        optics: Optics | None = None,
        spool: Path | str = "acq-isl-spool",
        wanted: Wanted | Callable[[StackInfo], Wanted] | None = None,
        keys: Path | str | None = None,
    ) -> None:
        settings = ClientSettings(
            link=ConnectionSettings(keys=None if keys is None else client_keys(Path(keys))),
            wanted=Wanted(work="live") if wanted is None else wanted,
        )
        self._client = EngineClient(address, spool=Spool(Path(spool)), settings=settings)
        optics = optics or Optics()
        self._hook = CaptureHook(
            self._client,
            planes=planes,
            z_um=z_um,
            pixel_size_um=pixel_size_um,
            modality=optics.modality,
            polarity=optics.polarity,
        )
        self._mda = MdaFrames(self._hook)
        self._open = ExitStack()

    def __enter__(self) -> live:
        self._open.enter_context(self._client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.flush()
        self._open.__exit__(kind, error, trace)

    @property
    def hook(self) -> CaptureHook:
        """For ``Acquisition(..., image_process_fn=live.hook)``."""
        return self._hook

    @property
    def mda(self) -> MdaFrames:
        """For ``CMMCorePlus.run_mda(sequence, output=[..., live.mda])`` of pymmcore-plus."""
        return self._mda

    @property
    def counts(self) -> ClientCounts:
        """What became of every slice so far: ``counts.slices``, also in words as ``str(counts.slices)``."""
        return self._client.counts

    @property
    def problems(self) -> tuple[AcqIslError, ...]:
        """Slices that were saved but could not be handed on, each with its reason."""
        return self._hook.problems

    def poll(self) -> list[Outcome]:
        """Outcomes that have arrived since the last call; returns at once."""
        return self._client.poll()

    def cancel(self, key: StackKey) -> bool:
        """No prediction of a stack is wanted any more; it is kept in the spool. False if it is not there."""
        return self._client.cancel(key)

    def drain(self, timeout_s: float = 60.0) -> list[Outcome]:
        """Wait for the outcomes of all stacks; call it when the acquisition is closed.

        Raises
        ------
        SliceLost
            A captured slice is neither predicted nor in the spool.
        """
        self._hook.flush()
        return self._client.drain(timeout_s)
