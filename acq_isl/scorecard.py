"""What a run on a simulated specimen was worth, held against the truth; and the same in sentences. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One predicted label against the truth, over the fields that were predicted.

    Parameters
    ----------
    label : str
    pearson : float
        Mean over fields of the correlation of all pixels; NaN without a field in which both vary.
    f1 : float
        Objects at an intersection over union of half, of all fields together; NaN without any.
    found, true : int
        Objects predicted and really there.
    fields : int
    model : str
        Which predicts it, if there are several and the label does not say.
    """

    label: str
    pearson: float
    f1: float
    found: int
    true: int
    fields: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """The fields a rule chose, against those it would have chosen had it known the truth.

    Parameters
    ----------
    what : str
        What fields were ranked by, for people.
    chosen, right, ranked : int
        Fields chosen, how many of them belong to the truly best as many, and fields there were.
    wrong : tuple of (str, int)
        Chosen fields that do not, with the rank each truly has.
    missed : tuple of str
        Truly best fields that were not chosen.
    rounds : int
        Time points, each with a choice and a best of its own.
    """

    what: str
    chosen: int
    right: int
    ranked: int
    wrong: tuple[tuple[str, int], ...]
    missed: tuple[str, ...]
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class CellScore:
    """Cells in the fields imaged in fluorescence.

    Parameters
    ----------
    label : str
        Wanted cells are those that it truly marks.
    wanted, there : int
        Wanted cells in all overview fields, and cells of any kind in those imaged in fluorescence.
    imaged, at_random, at_best : float
        Wanted cells imaged in fluorescence; how many as many fields drawn at random would hold on
        average, and how many the best as many.
    fields, of_fields : int
        Imaged in fluorescence, and of the overview.
    """

    label: str
    wanted: int
    there: int
    imaged: int
    at_random: float
    at_best: int
    fields: int
    of_fields: int

    @property
    def recall(self) -> float:
        """Share of the wanted cells that were imaged in fluorescence; NaN if there are none."""
        return self.imaged / self.wanted if self.wanted else math.nan

    @property
    def precision(self) -> float:
        """Share of the cells imaged in fluorescence that were wanted; NaN if there are none."""
        return self.imaged / self.there if self.there else math.nan


@dataclass(frozen=True, slots=True)
class TriggerScore:
    """What a trigger did about the fields it saw, and what it would have done on the truth."""

    name: str
    right: int
    false_alarms: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LightScore:
    """Light and time a run took.

    Parameters
    ----------
    overview_ms, fluorescence_ms : mapping of channel to float
        Milliseconds of light the specimen got, all slices together.
    all_fields_ms : float
        Fluorescence had all overview fields been imaged like those that were.
    duration_s : float
        First slice to last.
    """

    overview_ms: Mapping[str, float]
    fluorescence_ms: Mapping[str, float]
    all_fields_ms: float
    duration_s: float

    @property
    def stain_s(self) -> float:
        """Seconds of light in fluorescence channels."""
        return sum(self.fluorescence_ms.values()) / 1000


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and largest of several values; both NaN without any."""

    median: float
    worst: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of values that are finite."""
        finite = [value for value in values if math.isfinite(value)]
        return cls(statistics.median(finite), max(finite)) if finite else cls(math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Scorecard:
    """A run on a simulated specimen, graded.

    Parameters
    ----------
    labels : tuple of LabelScore
    choice : ChoiceScore or None
    triggers : tuple of TriggerScore
    cells : CellScore or None
    light : LightScore
    aside_um : Spread
        Fluorescence images: how far from where the overview had them the wanted cells truly were; the middle
        of the image, where cells are not known.
    out_of_focus_um : Spread
        Distance in z of the nearest plane imaged from the middle height of the wanted cells.
    decision_s, action_s : Spread
        From the last overview slice of a field to the prediction measured, and to its first light in
        fluorescence.
    ungraded : tuple of str
        What could not be graded, and why.
    """

    labels: tuple[LabelScore, ...]
    choice: ChoiceScore | None
    triggers: tuple[TriggerScore, ...]
    cells: CellScore | None
    light: LightScore
    aside_um: Spread
    out_of_focus_um: Spread
    decision_s: Spread
    action_s: Spread
    ungraded: tuple[str, ...] = ()


def sentences(card: Scorecard) -> tuple[tuple[str, str], ...]:
    """The scorecard for a microscopist: what, and one or two sentences about it."""
    lines = []
    if card.choice is not None:
        lines.append(("choice", _choice(card.choice)))
    if card.cells is not None:
        lines.append(("cells", _cells(card.cells)))
    lines += [("triggers", _trigger(one)) for one in card.triggers]
    lines.append(("light", _light(card)))
    if math.isfinite(card.aside_um.median):
        lines.append(("targeting", _targeting(card)))
    if math.isfinite(card.decision_s.median):
        lines.append(("speed", _speed(card)))
    if card.labels:
        lines.append(("labels", _labels(card.labels)))
    lines += [("not graded", one) for one in card.ungraded]
    return tuple(lines)


def _choice(score: ChoiceScore) -> str:
    if score.chosen == 1:
        text = f"The chosen field is {'' if score.right else 'not '}truly the best of {score.ranked}"
    else:
        best = f"{score.chosen} of {score.ranked}" if score.rounds == 1 else "of their time points"
        text = f"{score.right} of the {score.chosen} chosen fields are truly among the best {best}"
    text += f" ({score.what})."
    if score.wrong:
        named = ", ".join(f"{name} (truly rank {rank})" for name, rank in score.wrong)
        text += f" Wrong: {named}; better would have been {', '.join(score.missed)}."
    return text


def _cells(score: CellScore) -> str:
    if not score.wanted:
        return f"No field holds a cell that {score.label} truly mark."
    random, best = (f"{100 * some / score.wanted:.0f} %" for some in (score.at_random, score.at_best))
    text = (
        f"{score.imaged} of {score.wanted} cells with {score.label} ({100 * score.recall:.0f} %) lie in the "
    )
    text += f"{score.fields} of {score.of_fields} fields imaged in fluorescence; "
    text += f"as many fields drawn at random would hold {random}, the best {best}."
    if score.there:
        text += f" Of the {score.there} cells imaged there, {100 * score.precision:.0f} % were wanted."
    return text


def _trigger(score: TriggerScore) -> str:
    text = f"'{score.name}' was right about {score.right} fields"
    for what, names in (
        ("acted without cause at", score.false_alarms),
        ("should have acted at", score.missed),
    ):
        if names:
            text += f", {what} {', '.join(names)}"
    return text + "."


def _light(card: Scorecard) -> str:
    light = card.light
    overview_s = sum(light.overview_ms.values()) / 1000
    text = f"{overview_s:.2f} s of transmitted light and {light.stain_s:.2f} s of fluorescence light"
    if light.stain_s and light.all_fields_ms / 1000 > light.stain_s * 1.005:
        text += f", where all fields would have taken {light.all_fields_ms / 1000:.2f} s"
    if card.cells is not None and card.cells.imaged and light.stain_s and light.duration_s:
        text += (
            f": {card.cells.imaged / light.stain_s:.0f} wanted cells per second of fluorescence light, "
            f"{60 * card.cells.imaged / light.duration_s:.0f} per minute of the run"
        )
    return text + "."


def _targeting(card: Scorecard) -> str:
    aside, height = (
        f"{one.median:.1f} µm (at most {one.worst:.1f} µm)" for one in (card.aside_um, card.out_of_focus_um)
    )
    if not math.isfinite(card.out_of_focus_um.median):
        return f"Fluorescence was taken {aside} beside the field."
    text = f"In fluorescence the wanted cells lay {aside} from where the overview had them"
    return f"{text}, and {height} in z from the focus."


def _speed(card: Scorecard) -> str:
    text = f"{_seconds(card.decision_s)} from the last slice of a field to the decision"
    if math.isfinite(card.action_s.median):
        text += f", {_seconds(card.action_s)} to its first fluorescence light"
    return text + "."


def _seconds(spread: Spread) -> str:
    return f"{_short(spread.median)} (at most {_short(spread.worst)})"


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"


def _labels(scores: Sequence[LabelScore]) -> str:
    return f"Predicted against true labels: {'; '.join(map(_label, scores))}."


def _label(one: LabelScore) -> str:
    by = f" ({one.model})" if one.model else ""
    scores = f"r = {one.pearson:.2f}, objects F1 {one.f1:.2f} ({one.found} found, {one.true} true)"
    return f"{one.label}{by} {scores}"
