"""Predict what an earlier run left in its spool, and add it to that run's predictions.

A stack leaves the spool when all its predictions are on disk, were read back, and are what was predicted;
until then nothing is deleted, so it may have been stopped and started again at any time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, assert_never

import numpy as np

from acq_isl.errors import EngineError, ModelError, StackRefused, StorageError
from acq_isl.manifest import Manifest
from acq_isl.session.evidence import LEDGERS, STORE, LazyLedger, vouch_stored
from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackKey, Unpredicted, ZStack
from acq_isl.storage.prediction_store import PredictionStore, find, load
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.messages import Wanted
from acq_isl.stream.model_registry import ModelRegistry
from acq_isl.stream.spool import Spool, SpooledStack

_DEFAULT = ("",)
_State = Literal["stored", "to predict", "failed"]


@dataclass(frozen=True, slots=True)
class PredictedStack:
    """What became of one waiting stack."""

    path: Path  # its file in the spool
    results: tuple[str, ...]  # for each model what happened, for people
    done: bool  # everything asked for is in the store, and the file is gone


class Models(Protocol):
    """Who predicts: engines in this process, or a server."""

    def manifests(self) -> dict[str, tuple[Manifest, str]]:
        """Manifest and hash by name; the first is the one that nobody needs to name."""

    def predict(self, stack: ZStack, models: tuple[str, ...]) -> list[Outcome]:
        """One outcome of each model."""


class LocalModels:
    """Engines in this process; who made the registry closes it."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    def manifests(self) -> dict[str, tuple[Manifest, str]]:
        found = {name: self._registry[name] for name in self._registry.names}
        return {name: (model.engine.manifest, model.sha256) for name, model in found.items()}

    def predict(self, stack: ZStack, models: tuple[str, ...]) -> list[Outcome]:
        return [self._predict(stack, model) for model in models]

    def _predict(self, stack: ZStack, model: str) -> Outcome:
        try:
            return replace(self._registry[model].engine.predict(stack), model=model)
        except StackRefused as refusal:
            return Refusal(stack.info, refusal.what, refusal.fix or "", model)
        except (EngineError, ModelError) as error:
            return Unpredicted(stack.info, str(error), "", model)


class ServedModels:
    """A running server; EngineError on entry if nobody answers. It and each stack get ``timeout_s``."""

    def __init__(
        self, endpoint: str, link: ConnectionSettings | None = None, timeout_s: float = 300.0
    ) -> None:
        self._endpoint, self._link, self._timeout_s = endpoint, link or ConnectionSettings(), timeout_s
        self._wanted = Wanted()
        self._sent: set[StackKey] = set()
        self._open = ExitStack()

    def __enter__(self) -> ServedModels:
        # What the client cannot get predicted it keeps there; the stack is in its own spool anyway.
        self._folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="acq-isl-recover-"))
        self._connected = self._open.enter_context(ExitStack())
        try:
            self._connect()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def manifests(self) -> dict[str, tuple[Manifest, str]]:
        welcome = self._client.engine
        offers = welcome.models if welcome is not None else ()
        return {offer.name: (Manifest.from_json(offer.manifest), offer.model_sha256) for offer in offers}

    def predict(self, stack: ZStack, models: tuple[str, ...]) -> list[Outcome]:
        if stack.info.key in self._sent:  # a stack of another run: a client takes each key once
            self._connect()
        self._sent.add(stack.info.key)
        self._wanted = Wanted(models=() if models == _DEFAULT else models)
        for z, pixels in enumerate(stack.pixels):
            self._client.put(Slice(stack.info, z, pixels, stack.captured_s[z]))
        return self._client.drain(self._timeout_s)

    def _connect(self) -> None:
        self._connected.close()
        self._sent.clear()
        settings = ClientSettings(link=self._link, wanted=lambda info: self._wanted)
        client = EngineClient(self._endpoint, spool=Spool(self._folder), settings=settings)
        self._client = self._connected.enter_context(client)
        if not client.wait_connected(min(self._timeout_s, 10.0)):
            raise EngineError(
                f"no engine answers at {self._endpoint}: {client.transport}",
                fix="start it with 'acq-isl serve', or name a model file to predict with here",
            )


def waiting(folder: Path) -> tuple[tuple[Path, ...], Path]:
    """Files that wait in a run's folder or in a spool, oldest first, and where their predictions belong."""
    if not folder.is_dir():
        raise StorageError(f"there is no folder {folder}", wanted="a run folder, or a spool")
    if (folder / "spool").is_dir():
        return Spool(folder / "spool").list(), folder / STORE
    if paths := Spool(folder).list():
        of_run = folder.resolve().parent
        return paths, (of_run if _is_run(of_run) else folder) / STORE
    if any(folder.iterdir()) and not _is_run(folder):
        raise StorageError(
            f"{folder} holds files, but neither a run nor stacks that wait for an engine",
            fix="give the folder of a run, or its spool",
        )
    return (), folder / STORE


def _is_run(folder: Path) -> bool:
    return (folder / "experiment.yaml").exists() or (folder / STORE).exists()


def predict_spool(
    folder: Path,
    models: Models,
    *,
    keep: bool = False,
    report: Callable[[PredictedStack], None] | None = None,
) -> list[PredictedStack]:
    """Predict the stacks that wait in the folder of a run, or in a spool; ``keep`` leaves them there.

    ``report`` gets what became of each stack as it is done. StorageError if there is no such folder, a run
    still writes there, or the predictions cannot be written.
    """
    paths, store_path = waiting(folder)
    if not paths:
        return []
    colors = {label.name: label.color for model, _ in models.manifests().values() for label in model.labels}
    results = []
    with ExitStack() as opened:
        of_run = (store_path.parent / "experiment.yaml").exists()
        book = opened.enter_context(LazyLedger(store_path.parent / LEDGERS[1]))
        note = vouch_stored(book.write) if of_run else None
        store = opened.enter_context(PredictionStore(store_path, colors, extend=True, on_stored=note))
        for path in paths:
            result = _WaitingStack(path, store_path, store, models, keep).run()
            results.append(result)
            if report is not None:
                report(result)
    return results


@dataclass(frozen=True, slots=True, eq=False)
class _WaitingStack:
    """One waiting stack."""

    path: Path
    store_path: Path
    store: PredictionStore
    models: Models
    keep: bool

    def run(self) -> PredictedStack:
        spool = Spool(self.path.parent)
        try:
            spooled = spool.read(self.path)
        except StorageError as error:
            return PredictedStack(self.path, (str(error),), False)
        if not spooled.complete:
            got = f"only {len(spooled.present)} of {spooled.info.planes} slices are there"
            return PredictedStack(self.path, (f"not predicted: {got}",), False)
        results = {model: self._check(spooled, model) for model in spooled.models or _DEFAULT}
        missing = tuple(model for model, (_, state) in results.items() if state == "to predict")
        stack = ZStack(spooled.info, spooled.pixels, spooled.captured_s)
        for outcome in self.models.predict(stack, missing) if missing else ():
            results[outcome.model] = self._store(outcome)
        done = not self.keep and all(state == "stored" for _, state in results.values())
        if done:
            spool.remove(self.path)
        return PredictedStack(self.path, tuple(words for words, _ in results.values()), done)

    def _check(self, spooled: SpooledStack, model: str) -> tuple[str, _State]:
        """What can be said of a model before anything is predicted: an earlier call may have been cut off."""
        there = self.models.manifests()
        name = model or next(iter(there), "")
        if name not in there:
            has = ", ".join(there) or "none"
            return f"not predicted: it waits for the model {model!r}, and there is {has}", "failed"
        sha256 = there[name][1]
        for earlier in find(self.store_path, spooled.info.key, model):
            found = load(self.store_path, earlier)
            if repr(found.info) == repr(spooled.info) and sha256 and found.model_sha256 == sha256:
                return f"was predicted before: {earlier}", "stored"
        return "not predicted: no answer", "to predict"

    def _store(self, outcome: Outcome) -> tuple[str, _State]:
        """Put a prediction into the store, look that it is there, and say so."""
        match outcome:
            case Refusal(reason=reason, fix=fix):
                return f"refused: {reason}; to fix: {fix}", "failed"
            case Unpredicted(reason=reason):
                return f"not predicted: {reason}", "failed"
            case Prediction():
                name = store_checked(self.store, self.store_path, outcome)
                return f"predicted by {outcome.model_name} ({outcome.model_sha256[:12]}): {name}", "stored"
            case _:
                assert_never(outcome)


def store_checked(store: PredictionStore, path: Path, prediction: Prediction) -> str:
    """Write a prediction and look that it is there; its name in the store. StorageError if it is not."""
    name = store.write(prediction)
    back = load(path, name)
    if not (np.array_equal(back.mean, prediction.mean) and np.array_equal(back.spread, prediction.spread)):
        raise StorageError(
            f"the disk gives back another prediction than was written: {name}",
            fix="check the disk; nothing was removed from the spool",
        )
    return name
