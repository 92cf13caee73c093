"""What the kit found as one HTML file without scripts, with the same as JSON inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import get_args

from pydantic_core import to_json

from acq_isl.cli.gpu_kit.steps import Row, Verdict
from acq_isl.errors import StorageError
from acq_isl.files import write_whole

FORMAT = "acq-isl-gpu-kit/1"
_MARK = '<script type="application/json" id="gpu-kit">'


def write_page(path: Path, rows: Sequence[Row]) -> None:
    """Write the report; StorageError if it cannot be written."""
    try:
        write_whole(path, render(rows))
    except OSError as error:
        what = f"the report {path} cannot be written"
        raise StorageError(what, got=str(error), fix="choose another place: --report FILE") from error


def render(rows: Sequence[Row]) -> str:
    """The page as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("acq_isl"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    content = {"format": FORMAT, "written_at": now, "rows": [asdict(row) for row in rows]}
    page = pages.get_template("gpu_kit.html").render(
        groups=_grouped(rows),
        counts=count_verdicts(rows),
        title=_title(rows),
        written_at=now,
        labels=(),  # whose hues the style of reports defines
    )
    # No "<" in it: nothing that a driver says can end the element.
    text = to_json(content, inf_nan_mode="null").decode().replace("<", "\\u003c")
    return page.replace("</body>", f"{_MARK}{text}</script>\n</body>")


def read_page(text: str) -> list[dict[str, object]]:
    """The rows of a report, as its JSON has them."""
    content = json.loads(text.partition(_MARK)[2].partition("</script>")[0])
    rows: list[dict[str, object]] = content["rows"]
    return rows


def count_verdicts(rows: Sequence[Row]) -> dict[str, int]:
    """How many steps have each verdict; those that none has are left out."""
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in get_args(Verdict)}
    return {verdict: count for verdict, count in counts.items() if count}


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def _title(rows: Sequence[Row]) -> str:
    card = next((row for row in rows if row.title == "card"), None)
    if card is None:
        return "no card was looked for"
    return card.found if card.verdict == "passed" else f"no card: {card.found}"
