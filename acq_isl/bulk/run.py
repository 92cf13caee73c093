"""Everything that some paths hold is predicted into a folder; a call that was killed is simply made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from acq_isl.bulk.executors import Here, Place, do_all
from acq_isl.bulk.find import Found, find_chunks
from acq_isl.bulk.output import Output
from acq_isl.bulk.tables import Results, write_tables
from acq_isl.bulk.work import Chunk, Done, Failed, Job, Outcome, Predicted, Refused
from acq_isl.errors import StorageError

Watch = Callable[[Chunk, Done], None]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a call did and what there is now, in numbers of fields at a time."""

    predicted: int
    """All that is in the folder of this data, done now or before."""
    before: int
    """Of all, how many were predicted or refused by an earlier call."""
    refused: tuple[str, ...]
    failed: tuple[str, ...]
    """Each with its place, reason and fix."""
    pixel_sizes_um: tuple[float, ...]
    """Those of what was predicted, if they differ."""
    files: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        return not (self.refused or self.failed)


@dataclass(slots=True)
class _Tally:
    """Outcomes as they come."""

    before: int = 0
    predicted: dict[Chunk, Predicted] = field(default_factory=dict)
    refused: dict[Chunk, Refused] = field(default_factory=dict)
    failed: dict[Chunk, Failed] = field(default_factory=dict)

    def take(self, chunk: Chunk, outcome: Outcome) -> None:
        match outcome:
            case Predicted():
                self.predicted[chunk] = outcome
            case Refused():
                self.refused[chunk] = outcome
            case Failed():
                self.failed[chunk] = outcome
            case _:
                assert_never(outcome)


def predict_stored(
    paths: Sequence[Path],
    job: Job,
    place: Place | None = None,
    *,
    begin: Callable[[int, int], None] = lambda done, total: None,
    watch: Watch = lambda chunk, done: None,
) -> Summary:
    """Predict all fields at all times of some data sets that are not in the folder yet.

    ``begin`` is told how many are done already and how many there are, ``watch`` each that is done now.
    StorageError: there is nothing to predict, the folder is another job's or cannot be written; ModelError
    or EngineError: no engine can be had.
    """
    out = Output(job.out, job.settings)
    with out.opened(paths):
        found = find_chunks(paths, job.settings.transmitted)
        tally = _Tally()
        left = _left(found, out, tally)
        _require_something(found)
        begin(tally.before, len(found.chunks))
        if left:
            with closing(do_all(place or Here(), job, left)) as results:
                for chunk, done in results:
                    tally.take(chunk, done.outcome)
                    watch(chunk, done)
        told = Results(found.chunks, tally.failed, found.unreadable)
        try:
            out.list_plates(chunk for chunk in found.chunks if chunk in tally.predicted)
            files = write_tables(out, told, measure=job.settings.measure)
        except OSError as error:
            raise out.unwritable(error) from error
    return _sum_up(found, tally, files)


def _left(found: Found, out: Output, tally: _Tally) -> list[Chunk]:
    """Chunks that have no record; those that have are counted."""
    left = []
    for chunk in found.chunks:
        try:
            record = out.record(chunk)
        except StorageError as error:
            tally.take(chunk, Failed(error.what, error.fix or ""))
            continue
        if record is None:
            left.append(chunk)
        else:
            tally.before += 1
            tally.take(chunk, record)
    return left


def _require_something(found: Found) -> None:
    if not found.chunks:
        first = found.unreadable[0] if found.unreadable else None
        raise StorageError(
            "there is nothing to predict" if first is None else f"nothing can be read: {first.reason}",
            fix=(first.fix if first else "") or "check the paths",
        )


def _sum_up(found: Found, tally: _Tally, files: tuple[Path, ...]) -> Summary:
    order = {chunk: number for number, chunk in enumerate(found.chunks)}
    refused = sorted(tally.refused.items(), key=lambda item: order[item[0]])
    failed = sorted(tally.failed.items(), key=lambda item: order[item[0]])
    sizes = {done.pixel_size_um for done in tally.predicted.values()}
    return Summary(
        len(tally.predicted),
        tally.before,
        tuple(_sentence(_title(chunk), why.reason, why.fix) for chunk, why in refused),
        (
            *(_sentence(_title(chunk), why.reason, why.fix) for chunk, why in failed),
            *(
                _sentence(" ".join(filter(None, (each.group, each.well, each.field))), each.reason, each.fix)
                for each in found.unreadable
            ),
        ),
        tuple(sorted(sizes)) if len(sizes) > 1 else (),
        files,
    )


def _title(chunk: Chunk) -> str:
    return f"{chunk.group} {chunk.position} t{chunk.time}"


def _sentence(title: str, reason: str, fix: str) -> str:
    return f"{title}: {reason}{f'; to fix: {fix}' if fix else ''}"
