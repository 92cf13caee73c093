"""Where the feed of a run is: one small file in the run folder, which only its owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from acq_isl.base import WireModel
from acq_isl.errors import ExperimentError, StorageError

FILE = "live.json"


class FeedAddress(WireModel):
    """How a viewer reaches a run.

    ``feed`` and ``desk`` are ZMQ addresses: PUB of the feed, ROUTER that answers questions and takes
    commands. The tokens are what a visitor of the page must know to look, and to give commands.
    """

    run: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    feed: str
    desk: str
    read_token: Annotated[str, Field(min_length=16)]
    operator_token: Annotated[str, Field(min_length=16)]


def new_token() -> str:
    """192 random bits, safe in an address line."""
    return secrets.token_urlsafe(24)


def write_address(folder: Path, address: FeedAddress) -> Path:
    """Write ``live.json`` into a run folder, readable by its owner only; StorageError if not possible."""
    path = folder / FILE
    try:
        path.unlink(missing_ok=True)
        # Created with its rights, not given them afterwards; Windows keeps those of the folder.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(address.model_dump_json(indent=1).encode())
    except OSError as error:
        raise StorageError(
            f"viewers cannot be told where the run is: {path}",
            got=error.strerror or str(error),
            fix="free some disk space; the run goes on without viewers",
        ) from error
    return path


def read_address(folder: Path) -> FeedAddress:
    """The address of the run in a folder; ExperimentError without one of this version."""
    path = folder / FILE
    try:
        return FeedAddress.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ExperimentError(
            f"no run is going on in {folder}",
            wanted=f"a run folder with {FILE}, which is there while the run goes on",
            fix="give the folder of a running experiment; of a run that has ended, open report.html",
        ) from error
    except (OSError, ValidationError) as error:
        raise ExperimentError(
            f"{path} cannot be read", got=str(error), fix="run the same version of acq-isl on both sides"
        ) from error


def running_folder(output: Path) -> Path:
    """The newest run folder in ``output`` whose run is going on, or itself; ExperimentError without any."""
    if (output / FILE).is_file():
        return output
    found = sorted(output.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ExperimentError(
            f"no run is going on in {output}",
            fix="start one with 'acq-isl run', or give its --output or run folder",
        )
    return found[-1].parent
