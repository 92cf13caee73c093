"""Ask a running server to replace a model: the other end of `acq_isl.stream.swap`."""

from __future__ import annotations

import time

import zmq

from acq_isl.errors import EngineError, ModelError, WireError
from acq_isl.stream.codec import decode, encode
from acq_isl.stream.endpoint import is_ipv6
from acq_isl.stream.messages import MAX_HEADER_BYTES, Bye, Loading, Message, NotSwapped, Swap, Swapped
from acq_isl.stream.sockets import ClientKeys


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
