"""What a run on a simulated specimen was worth, held against the truth; and the same in sentences. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from acq_isl.processing.statistics import Amplitude

_MOST_COUNTS = 12
_SURE = (0.60, 0.76)  # shares within one SD that are as good as .68
_NARROW, _TELLING = 0.1, 0.02  # differences of r that say nothing
_ALIKE = (0.75, 4 / 3)  # slopes and ratios of bright ends that are as good as 1
_UNKNOWN = Amplitude()


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One predicted label against the truth, over the fields that were predicted."""

    label: str
    pearson: float
    """Mean over fields of the correlation of all pixels; NaN without a field in which both vary."""
    f1: float  # objects at an intersection over union of half, of all fields together; NaN without any
    found: int  # objects predicted
    true: int  # objects really there
    fields: int
    model: str = ""  # which predicts it, if there are several and the label does not say
    amplitude: Amplitude = _UNKNOWN  # means over fields


@dataclass(frozen=True, slots=True)
class CountScore:
    """Objects of one label counted on the prediction, against those that are truly there."""

    label: str
    fields: tuple[tuple[str, float, float, float], ...]
    """Name, count, one SD of it (NaN where the model does not know), true count."""


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """The fields a rule chose, against those it would have chosen had it known the truth."""

    what: str  # what fields were ranked by, for people
    chosen: int
    right: int  # chosen fields that belong to the truly best as many
    ranked: int
    wrong: tuple[tuple[str, int], ...]  # chosen fields that do not, with the rank each truly has
    missed: tuple[str, ...]  # truly best fields that were not chosen
    rounds: int = 1  # time points, each with a choice and a best of its own


@dataclass(frozen=True, slots=True)
class CellScore:
    """Cells in the fields imaged in fluorescence; wanted are those that the label truly marks."""

    label: str
    wanted: int  # in all overview fields
    there: int  # cells of any kind in the fields imaged in fluorescence
    imaged: int  # wanted cells imaged in fluorescence
    at_random: float  # how many as many fields drawn at random would hold on average
    at_best: int  # how many the best as many fields hold
    fields: int  # imaged in fluorescence
    of_fields: int
    rounds: int = 1  # time points in which fluorescence was imaged; only these count, and cells in each

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
    """What a trigger did about the fields on which it might act, held against what the truth asks for."""

    name: str
    right: int
    false_alarms: tuple[str, ...]
    missed: tuple[str, ...]
    acted: int = 0  # how often it acted
    hindered: tuple[str, ...] = ()  # fields on which its action was refused or failed
    spent: int = 0  # fields it saw after it had acted as often as it may
    fields: int = 0  # all it saw


@dataclass(frozen=True, slots=True)
class LightScore:
    """Light and time a run took: milliseconds of light by channel, all slices together."""

    overview_ms: Mapping[str, float]
    fluorescence_ms: Mapping[str, float]
    all_fields_ms: float  # fluorescence had all overview fields been imaged like those that were
    duration_s: float  # first slice to last

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
    """A run on a simulated specimen, graded."""

    labels: tuple[LabelScore, ...]
    choice: ChoiceScore | None
    triggers: tuple[TriggerScore, ...]
    cells: CellScore | None
    light: LightScore
    aside_um: Spread
    """Fluorescence images: how far from where the overview had them the wanted cells truly were; the middle
    of the image, where cells are not known."""
    out_of_focus_um: Spread
    """Distance in z of the nearest plane imaged from the middle height of the wanted cells."""
    decision_s: Spread  # from the last overview slice of a field to the prediction measured
    action_s: Spread  # from the last overview slice of a field to its first light in fluorescence
    ungraded: tuple[str, ...] = ()  # what could not be graded, and why
    counts: tuple[CountScore, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldAgainstStain:
    """Predicted labels against stains measured in the same run, over fields; NaN where it is not known."""

    label: str
    fields: int
    low: float  # correlations of the fields, least and largest
    high: float
    floor: float  # what the contrast of transmitted light alone scores, on average
    amplitude: Amplitude = _UNKNOWN  # means over fields


@dataclass(frozen=True, slots=True)
class TrustFacts:
    """What a run knows of how far its predictions can be trusted."""

    fields: int
    predicted: int
    refused: int
    chosen: int
    stained: tuple[HeldAgainstStain, ...]
    warned: int  # fields whose prediction came with a reason for less trust
    scorecard: Scorecard | None


def trust_sentences(facts: TrustFacts) -> tuple[str, ...]:
    """How far a run's predictions can be trusted, for somebody who reads nothing else."""
    if not facts.predicted:
        return ("Nothing was predicted, so there is nothing to trust.",)
    lines = [_checked(facts)]
    if facts.refused:
        refused = f"{facts.refused} of {facts.fields} fields"
        lines.append(f"{refused} were refused, because they look unlike what the model was trained on.")
    if facts.warned:
        lines.append(f"{facts.warned} predictions came with a reason for less trust; it stands there.")
    if facts.scorecard is not None:
        lines.append(_simulated(facts.scorecard))
    lines.append(
        "A number with ± is one standard deviation as the model states it. What is wrong in all fields, "
        "such as other cells or another focus than in training, is not in it."
    )
    return tuple(lines)


def _checked(facts: TrustFacts) -> str:
    if not facts.stained:
        return (
            "No prediction was held against a stain in this run: it is not known how right they are. "
            "Stain a few fields and name the channel under 'truth', or use 'acq-isl evaluate'."
        )
    each = []
    for held in facts.stained:
        span = f"{held.low:.2f}" if held.low == held.high else f"{held.low:.2f} to {held.high:.2f}"
        beside = f" (contrast alone {held.floor:.2f})" if math.isfinite(held.floor) else ""
        text = f"{held.label} r = {span} in {held.fields} field{'s' * (held.fields != 1)}{beside}"
        each.append(text + _in_short(held.amplitude))
    text = f"Held against the stain of this run: {'; '.join(each)}."
    if facts.chosen:
        text += " Fields that a rule chose are no fair sample of all."
    return text


def _simulated(card: Scorecard) -> str:
    text = "The specimen was simulated"
    counts = [field for score in card.counts for field in score.fields]
    known = [field for field in counts if math.isfinite(field[2])]
    if known:
        right = sum(abs(count - true) <= doubt for _, count, doubt, true in known)
        text += f"; {right} of {len(known)} counts were right within their ± (two thirds should be)"
    return f"{text}. On real cells it can be worse: nothing here shows that it is not."


def sentences(card: Scorecard) -> tuple[tuple[str, str], ...]:
    """The scorecard for a microscopist: what, and one or two sentences about it."""
    lines = []
    if card.choice is not None:
        lines.append(("choice", _choice(card.choice)))
    lines += [("counts", say_counts(score)) for score in card.counts if score.fields]
    if card.cells is not None:
        lines.append(("cells", _cells(card.cells)))
    lines += [("triggers", _trigger(score)) for score in card.triggers]
    lines.append(("light", _light(card)))
    if math.isfinite(card.aside_um.median):
        lines.append(("targeting", _targeting(card)))
    if math.isfinite(card.decision_s.median):
        lines.append(("speed", _speed(card)))
    if card.labels:
        lines.append(("labels", _labels(card.labels)))
    lines += [("not graded", reason) for reason in card.ungraded]
    return tuple(lines)


def weigh(r: float, floor: float, ceiling: float, amplitude: Amplitude = _UNKNOWN) -> str:
    """What a prediction's correlation with its stain says, beside floor, ceiling and how bright it is."""
    bright = describe_amplitude(amplitude) if math.isfinite(r) else ""
    return f"{_place(r, floor, ceiling)} As to brightness, {bright}." if bright else _place(r, floor, ceiling)


def describe_amplitude(amplitude: Amplitude) -> str:
    """Whether a prediction is as bright as its stain; empty where nothing is known."""
    numbers = []
    if math.isfinite(amplitude.top):
        numbers.append(f"its bright end (99th percentile) is {amplitude.top:.2f} of the stain's")
    if math.isfinite(amplitude.slope):
        numbers.append(f"where it rises by 1 the stain rises by {amplitude.slope:.2f}")
    return f"{', and '.join(numbers)}: {_brightness(amplitude)}" if numbers else ""


def brightness_is_right(amplitude: Amplitude) -> bool:
    """Whether neither bright end nor slope, as far as they are known, are far from 1."""
    known = [value for value in (amplitude.slope, amplitude.top) if math.isfinite(value)]
    return all(_ALIKE[0] <= value <= _ALIKE[1] for value in known)


def _brightness(amplitude: Amplitude) -> str:
    if brightness_is_right(amplitude):
        return "about right"
    top, slope = amplitude.top, amplitude.slope
    if top < _ALIKE[0] or (slope > _ALIKE[1] and not top > _ALIKE[1]):
        return "too pale for levels or thresholds of a stain"
    if top > _ALIKE[1]:
        return "too bright for levels or thresholds of a stain"
    return "its bright places are often not the stain's"


def _in_short(amplitude: Amplitude) -> str:
    """For a list of labels."""
    if not math.isfinite(amplitude.top):
        return ""
    return f", bright end {amplitude.top:.2f} of the stain's"


def _place(r: float, floor: float, ceiling: float) -> str:
    if not math.isfinite(r):
        return "No score: one of the two pictures is the same everywhere."
    if not (math.isfinite(floor) and math.isfinite(ceiling)):
        return "It was not weighed: there is nothing to compare it with (1: the same pattern, 0: unrelated)."
    scale = (
        f"The contrast of transmitted light alone (log z-variance) gives {floor:.2f}, "
        f"a second exposure of the stain would give {ceiling:.2f}"
    )
    if ceiling - floor < _NARROW:
        return f"{scale}: too close together to judge a prediction between them."
    if r < floor + _TELLING:
        return f"{scale}: the prediction shows no more than contrast does."
    share = min((r - floor) / (ceiling - floor), 1.0)
    return f"{scale}: the prediction goes {share:.0%} of the way between them."


def say_cover(label: str, covered: float, bright: float) -> str:
    """Whether one stated SD of a label holds, in all pixels and where the stain is bright."""
    text = f"One stated SD of {label} holds in {covered:.0%} of all pixels"
    if math.isfinite(bright):
        text += f" and {bright:.0%} of those where the stain is bright"
    worst = bright if math.isfinite(bright) else covered
    verdict = "too sure" if worst < _SURE[0] else "too cautious" if worst > _SURE[1] else "about right"
    return f"{text}, where 68 % would be right: {verdict}."


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


def say_counts(score: CountScore) -> str:
    _, found, doubts, true = zip(*score.fields, strict=True)
    each = ", ".join(
        f"{name} {count:.0f}{f' ± {doubt:.0f}' if math.isfinite(doubt) else ''} ({there:.0f})"
        for name, count, doubt, there in score.fields[:_MOST_COUNTS]
    )
    more = f" and {len(found) - _MOST_COUNTS} more fields" if len(found) > _MOST_COUNTS else ""
    bias = statistics.fmean(found) - statistics.fmean(true)
    text = f"{score.label} counted (and in the true label): {each}{more}. On average {bias:+.1f}"
    if len(found) > 2 and len(set(found)) > 1 and len(set(true)) > 1:
        text += f", r = {statistics.correlation(found, true):.2f}"
    if not all(map(math.isfinite, doubts)):
        return f"{text}; how sure a count is the model does not know."
    inside = sum(abs(a - b) <= sd for a, sd, b in zip(found, doubts, true, strict=True))
    return f"{text}, {inside} of {len(found)} within the stated doubt (about two thirds should be)."


def _cells(score: CellScore) -> str:
    if not score.wanted:
        return f"No field holds a cell that {score.label} truly mark."
    random, best = (f"{100 * some / score.wanted:.0f} %" for some in (score.at_random, score.at_best))
    each = " of the same time points" if score.rounds > 1 else ""
    text = (
        f"{score.imaged} of the {score.wanted} cells with {score.label} that the simulator knows "
        f"({100 * score.recall:.0f} %) lie in the "
        f"{score.fields} of {score.of_fields} fields{each} imaged in fluorescence; "
        f"as many fields drawn at random would hold {random}, the best {best}."
    )
    if score.there:
        text += f" Of the {score.there} cells imaged there, {100 * score.precision:.0f} % were wanted."
    return text


def _trigger(score: TriggerScore) -> str:
    times = "did not act" if not score.acted else f"acted {score.acted} time{'s' * (score.acted != 1)}"
    judged = score.fields - score.spent
    text = f"'{score.name}' {times} and was right about {score.right} of {judged} fields"
    for what, names in (
        ("acted without cause at", score.false_alarms),
        ("should have acted at", score.missed),
        ("was kept from acting at", score.hindered),
    ):
        text += f", {what} {', '.join(names)}" if names else ""
    if score.spent:
        text += f"; {score.spent} more came after it had acted as often as it may"
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
    distances = (card.aside_um, card.out_of_focus_um)
    aside, height = (f"{some.median:.1f} µm (at most {some.worst:.1f} µm)" for some in distances)
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
    texts = []
    for score in scores:
        by = f" ({score.model})" if score.model else ""
        shown = f", objects F1 {score.f1:.2f}" if score.found or score.true else ""
        texts.append(f"{score.label}{by} r = {score.pearson:.2f}{_in_short(score.amplitude)}{shown}")
    return f"Predicted against true labels: {'; '.join(texts)}."
