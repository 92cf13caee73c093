"""The few ways in which acq-isl fails, each saying what, wanted, got, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AcqIslError(Exception):
    """Base of every error this package raises on purpose.

    Parameters
    ----------
    what : str
        What went wrong, in one sentence.
    wanted, got : str, optional
        What was needed and what was found instead.
    fix : str, optional
        What the person at the microscope can do.
    """

    def __init__(
        self, what: str, *, wanted: str | None = None, got: str | None = None, fix: str | None = None
    ) -> None:
        self.what, self.wanted, self.got, self.fix = what, wanted, got, fix
        parts = [what]
        if wanted is not None:
            parts.append(f"wanted: {wanted}")
        if got is not None:
            parts.append(f"got: {got}")
        if fix is not None:
            parts.append(f"to fix: {fix}")
        super().__init__("; ".join(parts))


class ExperimentError(AcqIslError):
    """The experiment file asks for something that does not exist or cannot be done."""


class ModelError(AcqIslError):
    """A model file is missing, damaged, or not an acq-isl model."""


class StackRefused(AcqIslError):
    """A stack does not match what the model was trained for; no prediction is made."""


class EngineError(AcqIslError):
    """The engine failed, cannot be reached, or answered with nonsense."""


class WireError(AcqIslError):
    """A message does not follow the wire protocol."""


class ScopeError(AcqIslError):
    """The microscope core could not be started or is not set up as needed."""


class AcquisitionFailed(AcqIslError):
    """The acquisition stopped early: hardware error, hook error, time-out, or abort."""


class StackSkipped(AcqIslError):
    """A stack could not be imaged and is left out; the run goes on."""


class FocusFailed(AcqIslError):
    """The autofocus device found no focus; the acquisition can go on elsewhere."""


class SliceLost(AcqIslError):
    """A slice that was asked for or captured is neither on disk nor on its way."""


class StorageError(AcqIslError):
    """Measured data or predictions could not be written or read."""


class ActionRefused(AcqIslError):
    """An action would leave the limits of the experiment and was not carried out."""


class PairRefused(AcqIslError):
    """A training pair is damaged, misregistered, or on both sides of a split."""


class TrainingFailed(AcqIslError):
    """Training stopped; the last good checkpoint is kept."""


def suggest(wrong: str, valid: Iterable[str], what: str = "there are") -> str:
    """The valid name that is nearest to a wrong one, as a question; all of them if none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{what} {', '.join(names)}"
