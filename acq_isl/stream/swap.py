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

import numpy as np
import zmq

from acq_isl.errors import AcqIslError, EngineError, ModelError, StackRefused, WireError
from acq_isl.stack import StackInfo, StackKey, ZStack
from acq_isl.stream.codec import decode, encode
from acq_isl.stream.messages import MAX_HEADER_BYTES, Bye, Loading, Message, NotSwapped, Offer, Swap, Swapped
from acq_isl.stream.model_registry import ModelRegistry, ServedModel, changes, close
from acq_isl.stream.sockets import ClientKeys, is_ipv6

log = logging.getLogger(__name__)

_JOIN_S = 10.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What the socket's thread has to tell: to the asker, and the models' new offers to all clients."""

    asker: bytes | None = None
    message: Swapped | NotSwapped | None = None
    offers: tuple[Offer, ...] | None = None


@dataclass(slots=True, eq=False)
class _Attempt:
    """A swap that goes on. ``loser`` is what its thread has to close: None stands for the new model."""

    asker: bytes
    swap: Swap
    loser: queue.Queue[ServedModel | None]
    thread: threading.Thread | None = None
    old: Offer | None = None
    new: Offer | None = None
    changes: tuple[str, ...] = ()


class Swapper:
    """Carries out one swap at a time. All methods belong to the socket's thread, `stop` to its owner.

    Parameters
    ----------
    registry : ModelRegistry
    load : callable or None
        Makes a model ready, given its file; None refuses every swap.
    between_stacks : callable
        Has something done by the engines' thread; False if it cannot.
    wake : callable
        Makes the socket's thread call `step`.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        load: Callable[[str], ServedModel] | None,
        between_stacks: Callable[[Callable[[], None]], bool],
        wake: Callable[[], None],
    ) -> None:
        self._registry, self._load = registry, load
        self._between_stacks, self._wake = between_stacks, wake
        self._attempt: _Attempt | None = None
        self._loaded: queue.SimpleQueue[ServedModel | AcqIslError] = queue.SimpleQueue()
        self._replaced: queue.SimpleQueue[ServedModel] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self.latest: StackInfo | None = None
        """A stack as they come, to warm up with."""

    def begin(self, asker: bytes, swap: Swap) -> Loading | NotSwapped:
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
        attempt = _Attempt(asker, swap, queue.Queue(1))
        work = (attempt, self._load, self.latest)
        attempt.thread = threading.Thread(target=self._run, args=work, name="acq-isl swap", daemon=True)
        self._attempt = attempt
        attempt.thread.start()
        return Loading()

    def step(self, particular: int) -> list[Told]:
        """Go on with a swap; ``particular`` is how many clients want the models as they are."""
        attempt, told = self._attempt, []
        if attempt is not None and not self._loaded.empty():
            loaded = self._loaded.get()
            if isinstance(loaded, ServedModel):
                told.append(self._decide(attempt, loaded, particular))
            else:
                told.append(self._refuse(attempt, loaded))
        if attempt is not None and attempt.old and attempt.new and not self._replaced.empty():
            attempt.loser.put(self._replaced.get())
            done = Swapped(old=attempt.old, new=attempt.new, changes=attempt.changes)
            self._attempt = None
            told.append(Told(attempt.asker, done))
        return told

    def stop(self) -> None:
        """Give up a swap that goes on. Call it when the engines' thread has ended."""
        attempt = self._attempt
        if attempt is None or attempt.thread is None:
            return
        if not self._replaced.empty():
            attempt.loser.put(self._replaced.get())
        self._stopping.set()
        attempt.thread.join(_JOIN_S)
        if attempt.thread.is_alive():
            log.warning("%s is still being loaded; that ends with the process", attempt.swap.model)

    def _decide(self, attempt: _Attempt, new: ServedModel, particular: int) -> Told:
        try:
            name = self._registry.named(attempt.swap.name, new)
            old = self._registry[name]
            attempt.changes = changes(old.engine.manifest, new.engine.manifest)
            if attempt.changes and particular:
                raise _unwanted(attempt.changes, particular)
            new = replace(new, name=name)
            if not self._between_stacks(lambda: self._put_in_place(name, new)):
                raise EngineError("the engine is too busy to change its model", fix="try again")
        except (ModelError, EngineError) as error:
            attempt.loser.put(None)
            return self._refuse(attempt, error)
        attempt.old, attempt.new = old.offer, new.offer
        offers = tuple(attempt.new if one.name == name else one for one in self._registry.offers)
        return Told(offers=offers)

    def _refuse(self, attempt: _Attempt, error: AcqIslError) -> Told:
        self._attempt = None
        return Told(attempt.asker, _refusal(error))

    # ---- on the engines' thread

    def _put_in_place(self, name: str, new: ServedModel) -> None:
        self._replaced.put(self._registry.replace(name, new))
        self._wake()

    # ---- on the thread of an attempt

    def _run(self, attempt: _Attempt, load: Callable[[str], ServedModel], latest: StackInfo | None) -> None:
        new = self._ready(attempt.swap.model, load, latest)
        self._loaded.put(new)
        self._wake()
        if not isinstance(new, ServedModel):
            return
        loser: ServedModel | None = None
        while True:
            stopping = self._stopping.is_set()  # whatever there is to get was put before
            try:
                loser = attempt.loser.get(timeout=_LOOK_S)
            except queue.Empty:
                if not stopping:
                    continue
            break
        close(loser or new)

    def _ready(
        self, model: str, load: Callable[[str], ServedModel], latest: StackInfo | None
    ) -> ServedModel | AcqIslError:
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
    """Predict noise once, in the shape of the stacks that come: the first real one shall not wait.

    Raises
    ------
    EngineError
        The engine does not work.
    """
    manifest = model.engine.manifest
    if like is None:
        side = manifest.min_tile_px
        like = StackInfo(
            StackKey(0, "warm-up", "noise"), manifest.z_offsets_um, (side, side), manifest.pixel_size_um
        )
    shape = (like.planes, *like.shape)
    noise = np.random.default_rng(0).integers(900, 1100, shape, np.uint16)
    try:
        model.engine.predict(ZStack(like, noise, (0.0,) * like.planes))
    except StackRefused as refusal:
        log.info("warmed up as far as noise goes: %s", refusal)


def _unwanted(changed: tuple[str, ...], clients: int) -> ModelError:
    return ModelError(
        f"the new model would change what {clients} of the connected clients rely on",
        wanted="the same labels, planes, pixel size and optics",
        got="; ".join(changed),
        fix="wait until they have finished, or start them with any_model=True",
    )


def _refusal(error: AcqIslError) -> NotSwapped:
    return NotSwapped(
        error="model" if isinstance(error, ModelError) else "engine",
        reason=error.what[:8000],
        wanted=(error.wanted or "")[:8000],
        got=(error.got or "")[:8000],
        fix=(error.fix or "")[:8000],
    )


def swap(
    endpoint: str,
    model: str,
    name: str = "",
    *,
    keys: ClientKeys | None = None,
    answer_s: float = 10.0,
    timeout_s: float = 900.0,
) -> Swapped:
    """Have a server replace one of its models, and wait until it has.

    Parameters
    ----------
    endpoint : str
        Of the server, such as ``tcp://127.0.0.1:5599``.
    model : str
        Model file, as the server's computer knows it.
    name : str
        Of the model to replace; by default the one of the new one's name, or the only one.
    keys : ClientKeys, optional
        For a server that wants them.
    answer_s, timeout_s : float
        Longest time until the server answers at all, and for loading.

    Returns
    -------
    Swapped
        What was and is served, and what changed for clients.

    Raises
    ------
    ModelError, EngineError
        Nobody answers, or the server refused; its old model stays.
    """
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, int(is_ipv6(endpoint)))
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER_BYTES)
        if keys is not None:
            socket.curve_serverkey = keys.server_public
            socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise EngineError(f"the engine's address {endpoint} cannot be used: {error}") from error
        socket.send_multipart(encode(Swap(model=model, name=name)))
        answer = _hear(socket, endpoint, answer_s)
        if isinstance(answer, Loading):
            answer = _hear(socket, endpoint, timeout_s)
    if isinstance(answer, Swapped):
        return answer
    if isinstance(answer, NotSwapped):
        kind = ModelError if answer.error == "model" else EngineError
        more = {key: getattr(answer, key) or None for key in ("wanted", "got", "fix")}
        raise kind(f"the model was not replaced: {answer.reason}", **more)
    told = answer.reason if isinstance(answer, Bye) else f"a {answer.type} message"
    raise EngineError(f"the engine at {endpoint} answered a swap with something else: {told}")


def _hear(socket: zmq.Socket[bytes], endpoint: str, timeout_s: float) -> Message:
    deadline_s = time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        if socket.poll(int(min(left_s, 1.0) * 1000)):
            try:
                return decode(socket.recv_multipart())[0]
            except WireError as error:
                raise EngineError(f"the engine at {endpoint} cannot be understood: {error}") from error
    raise EngineError(
        f"no answer from {endpoint} within {timeout_s:g} s",
        fix="is 'acq-isl serve' running there, and are the keys those it knows? What it loads may go on",
    )
