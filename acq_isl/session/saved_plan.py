"""What a run set out to do, kept beside its data, so that a run that was cut off can be finished."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from acq_isl.base import StrictModel
from acq_isl.errors import StorageError
from acq_isl.experiment.planning import Cycle
from acq_isl.files import write_whole

FILE = "plan.json"


class SavedPlan(StrictModel):
    """The overview stacks of a run, where they really were, when it started (ISO 8601), and on what."""

    started: str
    scope: str
    cycles: tuple[Cycle, ...]

    def write(self, folder: Path) -> None:
        write_whole(folder / FILE, self.model_dump_json(indent=1), durable=True)

    @classmethod
    def read(cls, folder: Path) -> SavedPlan:
        """The plan of the run in a folder; StorageError without one."""
        try:
            return cls.model_validate_json((folder / FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise StorageError(
                f"it is not known what the run in {folder} set out to do",
                wanted=f"{FILE}, which runs of version 0.1 did not keep",
                got=str(error),
                fix="its waiting stacks can be predicted all the same: acq-isl recover FOLDER/spool",
            ) from error
