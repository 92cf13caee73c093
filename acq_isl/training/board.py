"""Curves for TensorBoard, if wanted."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from acq_isl.errors import ExperimentError


class Board:
    """Writes scalars; does nothing if not wanted.

    Raises `ExperimentError` on creation if TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, wanted: bool) -> None:
        self._writer: Any = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ExperimentError(
                "TensorBoard is not installed",
                fix="pip install tensorboard, or set watching.tensorboard to false",
            ) from error
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)
