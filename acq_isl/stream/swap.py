"""Replace a model while it serves: load and warm up the new one beside it, change between two stacks.

::

    idle ─SWAP─► loading ─► loaded ─► to be put in place ─engine's thread, between two stacks─► SWAPPED
                    │          └─ other labels or planes, and a client that did not agree ─► NOT_SWAPPED
                    └─ cannot be loaded ─► NOT_SWAPPED

Whatever happens, one of the two models serves all the time, and the other one is closed.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import zmq

from acq_isl.errors import AcqIslError, EngineError, ModelError, StackRefused, WireError
from acq_isl.stack import StackInfo, StackKey, ZStack
from acq_isl.stream import messages as wire
from acq_isl.stream.codec import decode, encode
from acq_isl.stream.model_registry import ModelRegistry, ServedModel, changes, close
from acq_isl.stream.sockets import ClientKeys, open_dealer

log = logging.getLogger(__name__)

_JOIN_S = 10.0
Load = Callable[[str], ServedModel]


@dataclass(frozen=True, slots=True, eq=False)
class SwapNotice:
    """What the socket's thread has to tell: to the asker, and the models' new offers to all clients."""

    asker: bytes | None = None
    message: wire.Swapped | wire.NotSwapped | None = None
    offers: tuple[wire.Offer, ...] | None = None


@dataclass(slots=True, eq=False)
class _Attempt:
    """A swap that goes on; ``result`` is what to answer once the model ``new`` is in its place."""

    asker: bytes
    swap: wire.Swap
    thread: threading.Thread
    new: ServedModel | None = None
    result: wire.Swapped | None = None


class Swapper:
    """Carries out one swap at a time. All methods belong to the socket's thread, `stop` to its owner.

    ``load`` makes a model ready, given its file; without it every swap is refused. ``between_stacks`` has
    something done by the engines' thread, or gives False. ``wake`` makes the socket's thread call `step`.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        load: Load | None,
        between_stacks: Callable[[Callable[[], None]], bool],
        wake: Callable[[], None],
    ) -> None:
        self._registry, self._load = registry, load
        self._between_stacks, self._wake = between_stacks, wake
        self._attempt: _Attempt | None = None
        self._loaded: queue.SimpleQueue[ServedModel | AcqIslError] = queue.SimpleQueue()
        self._replaced: queue.SimpleQueue[ServedModel] = queue.SimpleQueue()
        self._stopped = False
        self._closing: threading.Thread | None = None
        self.latest: StackInfo | None = None
        """A stack as they come, to warm up with."""

    def begin(self, asker: bytes, swap: wire.Swap) -> wire.Loading | wire.NotSwapped:
        """Start to load a model; what to answer."""
        if self._load is None:
            return _refusal(EngineError("this server does not change its models", fix="start it again"))
        if self._attempt is not None:
            return _refusal(EngineError("another model is being loaded", fix="try again when it is there"))
        try:
            if swap.name:
                _ = self._registry[swap.name]  # before seconds are spent on loading
        except ModelError as error:
            return _refusal(error)
        work = (swap.model, self._load, self.latest)
        thread = threading.Thread(target=self._run, args=work, name="acq-isl swap", daemon=True)
        self._attempt = _Attempt(asker, swap, thread)
        thread.start()
        return wire.Loading()

    def step(self, clients_of_fixed_models: int) -> list[SwapNotice]:
        """Go on with a swap."""
        attempt, notices = self._attempt, list[SwapNotice]()
        if attempt is not None and not self._loaded.empty():
            loaded = self._loaded.get()
            if isinstance(loaded, ServedModel):
                notices.append(self._decide(attempt, loaded, clients_of_fixed_models))
            else:
                notices.append(self._refuse(attempt, loaded))
        if attempt is not None and attempt.result is not None and not self._replaced.empty():
            self._close(self._replaced.get())
            self._attempt = None
            notices.append(SwapNotice(attempt.asker, attempt.result))
        return notices

    def stop(self) -> None:
        """Give up a swap that goes on. Call it when the engines' thread has ended."""
        self._stopped = True
        attempt = self._attempt
        if attempt is not None:
            attempt.thread.join(_JOIN_S)
            if attempt.thread.is_alive():
                log.warning("%s is still being loaded; that ends with the process", attempt.swap.model)
            loaded = None if self._loaded.empty() else self._loaded.get()
            if attempt.new is not None:
                loaded = attempt.new if self._replaced.empty() else self._replaced.get()
            if isinstance(loaded, ServedModel):
                self._close(loaded)
        if self._closing is not None:
            self._closing.join(_JOIN_S)

    def _decide(self, attempt: _Attempt, new: ServedModel, clients: int) -> SwapNotice:
        try:
            name = self._registry.named(attempt.swap.name, new)
            old = self._registry[name]
            changed = changes(old.engine.manifest, new.engine.manifest)
            if changed and clients:
                raise ModelError(
                    f"the new model would change what {clients} of the connected clients rely on",
                    wanted="the same labels, planes, pixel size and optics",
                    got="; ".join(changed),
                    fix="wait until they have finished, or start them with any_model=True",
                )
            new = replace(new, name=name)
            if not self._between_stacks(lambda: self._put_in_place(name, new)):
                raise EngineError("the engine is too busy to change its model", fix="try again")
        except (ModelError, EngineError) as error:
            self._close(new)
            return self._refuse(attempt, error)
        attempt.new, attempt.result = new, wire.Swapped(old=old.offer, new=new.offer, changes=changed)
        offers = (new.offer if offer.name == name else offer for offer in self._registry.offers)
        return SwapNotice(offers=tuple(offers))

    def _refuse(self, attempt: _Attempt, error: AcqIslError) -> SwapNotice:
        self._attempt = None
        return SwapNotice(attempt.asker, _refusal(error))

    def _close(self, model: ServedModel) -> None:
        """Close an engine, which may take seconds, beside the socket's thread."""
        self._closing = threading.Thread(target=close, args=(model,), name="acq-isl swap", daemon=True)
        self._closing.start()

    def _put_in_place(self, name: str, new: ServedModel) -> None:
        """On the engines' thread."""
        self._replaced.put(self._registry.replace(name, new))
        self._wake()

    def _run(self, model: str, load: Load, latest: StackInfo | None) -> None:
        """On the thread of an attempt."""
        loaded = _load_and_warm_up(model, load, latest)
        if self._stopped and isinstance(loaded, ServedModel):
            close(loaded)
            return
        self._loaded.put(loaded)
        self._wake()


def _load_and_warm_up(model: str, load: Load, latest: StackInfo | None) -> ServedModel | AcqIslError:
    try:
        new = load(model)
        try:
            warm_up(new, latest)
        except BaseException:
            close(new)
            raise
    except AcqIslError as error:
        return error
    except Exception as error:
        log.exception("a model could not be loaded")
        return EngineError(f"{model} cannot be loaded: {type(error).__name__}: {error}")
    return new


def warm_up(model: ServedModel, like: StackInfo | None) -> None:
    """Predict noise once, in the shape of the stacks that come; EngineError if the engine does not work."""
    manifest = model.engine.manifest
    if like is None:
        side, key = manifest.min_tile_px, StackKey(0, "warm-up", "noise")
        like = StackInfo(key, manifest.z_offsets_um, (side, side), manifest.pixel_size_um)
    noise = np.random.default_rng(0).integers(900, 1100, (like.planes, *like.shape), np.uint16)
    try:
        model.engine.predict(ZStack(like, noise, (0.0,) * like.planes))
    except StackRefused as refusal:
        log.info("warmed up as far as noise goes: %s", refusal)


def _refusal(error: AcqIslError) -> wire.NotSwapped:
    wanted, got, fix = (wire.cut(text or "") for text in (error.wanted, error.got, error.fix))
    kind: Literal["model", "engine"] = "model" if isinstance(error, ModelError) else "engine"
    return wire.NotSwapped(error=kind, reason=wire.cut(error.what), wanted=wanted, got=got, fix=fix)


def swap(
    endpoint: str,
    model: str,
    name: str = "",
    *,
    keys: ClientKeys | None = None,
    answer_s: float = 10.0,
    timeout_s: float = 900.0,
) -> wire.Swapped:
    """Have a server replace one of its models by a file on its computer, and wait until it has.

    The model replaced is that of ``name``, by default that of the new one's name, or the only one. The server
    has ``answer_s`` to answer at all and ``timeout_s`` to load. Returns what was and is served, and what
    changed for clients. ModelError or EngineError if nobody answers or the server refused: the old one stays.
    """
    with zmq.Context() as context, open_dealer(context, endpoint, keys, wire.MAX_HEADER_BYTES) as dealer:
        try:
            dealer.connect(endpoint)
        except zmq.ZMQError as error:
            raise EngineError(f"the engine's address {endpoint} cannot be used: {error}") from error
        dealer.send_multipart(encode(wire.Swap(model=model, name=name)))
        answer = _receive(dealer, endpoint, answer_s)
        if isinstance(answer, wire.Loading):
            answer = _receive(dealer, endpoint, timeout_s)
    match answer:
        case wire.Swapped():
            return answer
        case wire.NotSwapped(error=kind, reason=reason, wanted=wanted, got=got, fix=fix):
            raised = ModelError if kind == "model" else EngineError
            what = f"the model was not replaced: {reason}"
            raise raised(what, wanted=wanted or None, got=got or None, fix=fix or None)
        case wire.Bye(reason=reason):
            got = reason
        case _:
            got = f"a {answer.type} message"
    raise EngineError(f"the engine at {endpoint} answered a swap with something else: {got}")


def _receive(dealer: zmq.Socket[bytes], endpoint: str, timeout_s: float) -> wire.Message:
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        if dealer.poll(int(min(left_s, 1.0) * 1000)):
            try:
                return decode(dealer.recv_multipart())[0]
            except WireError as error:
                raise EngineError(f"the engine at {endpoint} cannot be understood: {error}") from error
    raise EngineError(
        f"no answer from {endpoint} within {timeout_s:g} s",
        fix="is 'acq-isl serve' running there, and are the keys those it knows? What it loads may go on",
    )
