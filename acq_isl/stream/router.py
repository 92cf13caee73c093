"""The server's socket."""

from __future__ import annotations

import zmq

from acq_isl.stream.endpoint import is_ipv6
from acq_isl.stream.messages import MAX_FRAME_BYTES
from acq_isl.stream.sockets import ServerKeys

_MESSAGES_QUEUED = 64


def open_router(
    context: zmq.Context[zmq.Socket[bytes]], bind: str, keys: ServerKeys | None
) -> zmq.Socket[bytes]:
    """A ROUTER bound to an address; ZMQError if that is not possible. Close it after use."""
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.IPV6, int(is_ipv6(bind)))
    # Without it an answer to a client that left would vanish silently.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.SNDHWM, _MESSAGES_QUEUED)
    router.setsockopt(zmq.RCVHWM, _MESSAGES_QUEUED)
    router.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    if keys is not None:
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = keys.public, keys.secret
    router.bind(bind)
    return router
