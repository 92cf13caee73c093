"""The unit of work: one field at one time is read, predicted, measured and stored, whole or not at all.

Whoever does it, how often, in which order and on which machine makes no difference to what is in the folder.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from acq_isl.bulk.measure import measure_labels, measure_objects
from acq_isl.bulk.output import Output
from acq_isl.bulk.work import Chunk, Done, Failed, Job, Outcome, Predicted, Refused
from acq_isl.compatibility import Refuse, check
from acq_isl.engines import LoadOptions
from acq_isl.engines.backends import find_engines
from acq_isl.engines.fallback import FallbackEngine
from acq_isl.engines.model_file import read_model
from acq_isl.errors import AcqIslError, StackRefused, StorageError
from acq_isl.protocols import Engine
from acq_isl.readers.read import survey_data_set
from acq_isl.readers.recording import DataSet, RecordedChannel, as_counts, light_of
from acq_isl.stack import Prediction, StackInfo, StackKey, StageTimes, ZStack

_DATA_SETS = 4
_SPARE_BYTES = 64 << 20
_LOADING = threading.Lock()
log = logging.getLogger(__name__)

Free = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder."""
    return shutil.disk_usage(folder).free


def do_chunk(job: Job, chunk: Chunk) -> Done:
    """Do a chunk with this process's engine, which is loaded for the first one; for workers."""
    with _LOADING:
        unit = _unit(job)
    return unit.do(chunk)


@lru_cache(maxsize=1)
def _unit(job: Job) -> Unit:
    return Unit(job, open_engine(job))


def open_engine(job: Job) -> Engine:
    """The very engine of a job's settings, without another in its place; ModelError or EngineError."""
    wanted = job.settings
    file = read_model(job.model, sha256=wanted.model_sha256)
    options = LoadOptions(job.threads, gate=wanted.gate, work="bulk")
    engine = FallbackEngine([find_engines(file, options).named(wanted.engine)])
    engine.use_views(wanted.views)
    return engine


class Unit:
    """Does chunks with an engine, which threads may share; it raises nothing but what ends the process."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        free: Free = free_bytes,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._job, self._engine, self._free, self._clock = job, engine, free, clock
        self._out = Output(job.out, job.settings)
        self._data_set = lru_cache(maxsize=_DATA_SETS)(survey_data_set)

    def do(self, chunk: Chunk) -> Done:
        """What is stored already is not done again; whatever goes wrong is in the answer."""
        try:
            there = self._out.record(chunk)
            return Done(there) if there is not None else self._do(chunk)
        except AcqIslError as error:
            return Done(Failed(f"{error.what}{f' ({error.got})' if error.got else ''}", error.fix or ""))
        except Exception as error:  # of one field; the others go on
            log.warning("%s of %s failed", chunk.field, chunk.data, exc_info=True)
            return Done(Failed(f"{type(error).__name__}: {error}", "is the drive there, and is it writable?"))

    def _do(self, chunk: Chunk) -> Done:
        began = self._clock()
        try:
            stack = self._read(chunk)
            read = self._clock()
            prediction = self._engine.predict(stack)
        except StackRefused as error:
            reason = f"{error.what}{f' ({error.got})' if error.got else ''}"
            refused = Refused(input=chunk.input, reason=reason, fix=error.fix or "")
            self._out.keep(chunk, refused)
            return Done(refused)
        predicted = self._clock()
        outcome = self._store(chunk, stack, replace(prediction, times=StageTimes()))  # times never repeat
        return Done(outcome, read - began, predicted - read, self._clock() - predicted)

    def _read(self, chunk: Chunk) -> ZStack:
        """The stack, with the metadata that a live one would have; refused before its pixels are read."""
        wanted = self._job.settings
        channel = self._channel(self._data_set(chunk.data), chunk)
        pixel_um, z_um = channel.lengths_um(wanted.pixel_size_um, wanted.z_step_um)
        self._check_room(channel)
        key = StackKey(chunk.time, chunk.position, chunk.channel)
        info = StackInfo(
            key, z_um, channel.shape[1:], pixel_um, modality=wanted.light or light_of(chunk.channel)
        )
        verdict = check(self._engine.manifest, info)
        if isinstance(verdict, Refuse):
            raise StackRefused(f"stack {key}: {verdict.reason}", fix=verdict.fix)
        pixels = as_counts(channel.read(), channel.source)
        return ZStack(info, pixels, (0.0,) * len(pixels))

    def _channel(self, data: DataSet, chunk: Chunk) -> RecordedChannel:
        fields = data.fields
        found = fields[chunk.number] if chunk.number < len(fields) else None
        if found is None or (found.name, found.time) != (chunk.field, chunk.time):
            raise StorageError(f"{chunk.data} changed while it was predicted", fix="run the command again")
        return found.channel(chunk.channel)

    def _check_room(self, channel: RecordedChannel) -> None:
        """StorageError, before anything is computed, if the prediction cannot be written."""
        _, rows, columns = channel.shape
        needed = 8 * len(self._engine.manifest.labels) * rows * columns + _SPARE_BYTES
        free = self._free(self._job.out)
        if free < needed:
            raise StorageError(
                f"there is no space left in {self._job.out}",
                wanted=f"{needed / 2**20:.0f} MiB",
                got=f"{free / 2**20:.0f} MiB free",
                fix="make room, and run the command again: what is done is not done again",
            )

    def _store(self, chunk: Chunk, stack: ZStack, prediction: Prediction) -> Outcome:
        measure = self._job.settings.measure
        colors = {label.name: label.color for label in self._engine.manifest.labels}
        outcome = Predicted(
            input=chunk.input,
            pixels_sha256=hashlib.sha256(stack.pixels.tobytes()).hexdigest(),
            engine=prediction.engine,
            pixel_size_um=stack.info.pixel_size_um,
            warnings=prediction.warnings,
            measurements=measure_labels(prediction) if measure else (),
            objects=measure_objects(prediction) if measure else (),
        )
        self._out.put(chunk, prediction, colors)
        self._out.keep(chunk, outcome)
        return outcome
