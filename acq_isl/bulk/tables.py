"""The tables of a folder of predictions, written when all is done: fields, measurements, objects."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from acq_isl.bulk.output import Output
from acq_isl.bulk.work import Chunk, Failed, Outcome, Predicted, Refused, Unreadable
from acq_isl.files import whole_file

_PLACE = ("plate", "well", "field", "time")
_FIELDS = (*_PLACE, "status", "image", "pixel_size_um", "engine", "reason", "fix", "warnings")
_MEASURED = (*_PLACE, "label", "measurement", "value", "sd", "unit")
_OBJECTS = (*_PLACE, "label", "object", "x_um", "y_um", "area_um2", "mean")
_NUMBERS = frozenset({"value", "sd", "x_um", "y_um", "area_um2", "mean", "pixel_size_um"})
_COUNTS = frozenset({"time", "object"})

Row = Sequence[object]


@dataclass(frozen=True, slots=True)
class Results:
    """What became of all that was found; chunks without a failure have a record."""

    chunks: tuple[Chunk, ...]
    failed: Mapping[Chunk, Failed]
    unreadable: tuple[Unreadable, ...]


def write_tables(out: Output, results: Results, *, measure: bool) -> tuple[Path, ...]:
    """Write the tables anew from the records, in the order of plates, wells, fields and times; OSError."""
    written = [_write(out.folder / "fields.csv", _FIELDS, _field_rows(out, results))]
    if measure:
        for name, columns in (("measurements", _MEASURED), ("objects", _OBJECTS)):
            path = _write(out.folder / f"{name}.csv", columns, _number_rows(out, results.chunks, name))
            written += [path, *_as_parquet(path, columns)]
    return tuple(written)


def _write(path: Path, columns: Row, rows: Iterable[Row]) -> Path:
    with whole_file(path, durable=True) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)
    return path


def _field_rows(out: Output, results: Results) -> Iterator[Row]:
    for chunk in results.chunks:
        found = _outcome(out, results, chunk)
        yield (*_place(chunk), *_told(out, chunk, found))
    for each in results.unreadable:
        yield each.group, each.well, each.field, "", "failed", "", "", "", each.reason, each.fix, ""


def _outcome(out: Output, results: Results, chunk: Chunk) -> Outcome:
    failed = results.failed.get(chunk)
    return failed or out.record(chunk) or Failed("it was not predicted", "run the command again")


def _told(out: Output, chunk: Chunk, found: Outcome) -> Row:
    match found:
        case Predicted():
            image = out.image(chunk).relative_to(out.folder).as_posix()
            return "predicted", image, found.pixel_size_um, found.engine, "", "", "; ".join(found.warnings)
        case Refused():
            return "refused", "", "", "", found.reason, found.fix, ""
        case Failed():
            return "failed", "", "", "", found.reason, found.fix, ""
        case _:
            assert_never(found)


def _number_rows(out: Output, chunks: Iterable[Chunk], name: str) -> Iterator[Row]:
    for chunk in chunks:
        found = out.record(chunk)
        if isinstance(found, Predicted):
            for row in found.measurements if name == "measurements" else found.objects:
                yield (*_place(chunk), *row.model_dump().values())


def _place(chunk: Chunk) -> Row:
    return chunk.group, chunk.well, chunk.field, chunk.time


def _as_parquet(path: Path, columns: Sequence[str]) -> tuple[Path, ...]:
    """The same table as Parquet, where pyarrow is installed."""
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ModuleNotFoundError:
        return ()
    kinds = {
        name: pa.float64() if name in _NUMBERS else pa.int64() if name in _COUNTS else pa.string()
        for name in columns
    }
    options = arrow_csv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
    target = path.with_suffix(".parquet")
    with (
        whole_file(target) as partial,
        arrow_csv.open_csv(path, convert_options=options) as batches,
        parquet.ParquetWriter(partial, batches.schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
    return (target,)
