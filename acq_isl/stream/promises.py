"""What an engine said of its models when it greeted, held against what it says and does later. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from acq_isl.errors import ModelError, WireError
from acq_isl.manifest import Manifest
from acq_isl.stream.messages import MAX_MODELS, Offer, Result
from acq_isl.stream.model_registry import changes


def other_models(before: Sequence[Offer], now: Sequence[Offer]) -> str:
    """What would change for a client that began with other offers, in words; empty if nothing does."""
    found = list[str]()
    for number, offer in enumerate(before):
        new = now[0] if number == 0 else _find(now, offer.name)
        if new is None:
            continue  # the engine will refuse what is asked of it
        old_model, new_model = _manifest(offer.manifest), _manifest(new.manifest)
        if old_model is not None and new_model is not None:
            found += changes(old_model, new_model)
        elif not new.model_sha256 or new.model_sha256 != offer.model_sha256:
            found.append(f"{new.name}: another model, and nobody here can read what it predicts")
    return "; ".join(dict.fromkeys(found))


def require_promised(offers: Sequence[Offer], result: Result) -> None:
    """WireError unless a prediction has the labels that its model has."""
    offer = _find(offers, result.model) if result.model else offers[0]
    model = offer and _manifest(offer.manifest)
    if model and model.label_names != result.labels:
        raise WireError(
            "a prediction has other labels than its model",
            wanted=", ".join(model.label_names),
            got=", ".join(result.labels),
        )


def _find(offers: Sequence[Offer], name: str) -> Offer | None:
    return next((offer for offer in offers if offer.name == name), None)


@lru_cache(maxsize=4 * MAX_MODELS)
def _manifest(text: str) -> Manifest | None:
    """None if it cannot be read."""
    try:
        return Manifest.from_json(text)
    except ModelError:
        return None
