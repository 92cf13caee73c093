"""CURVE keys of both ends, for an engine on another host."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import zmq

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """CURVE keys in Z85, 40 characters each, as ``zmq.curve_keypair()`` makes them."""

    server_public: bytes
    public: bytes
    secret: bytes


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """CURVE keys in Z85, and the public keys of the clients that may connect."""

    public: bytes
    secret: bytes
    allowed: tuple[bytes, ...]


class _AllowList:
    """Which clients may connect; called by ZMQ's authenticator for every new connection."""

    def __init__(self, allowed: tuple[bytes, ...]) -> None:
        self._allowed = frozenset(allowed)

    def callback(self, domain: str, key: bytes) -> bool:
        allowed = key in self._allowed
        if not allowed:
            log.warning("a client with an unknown key was turned away")
        return allowed


def let_in(context: zmq.Context[zmq.Socket[bytes]], keys: ServerKeys | None) -> Callable[[], None] | None:
    """Let only known keys in; how to end that."""
    if keys is None:
        return None
    from zmq.auth.thread import ThreadAuthenticator

    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(credentials_provider=_AllowList(keys.allowed))
    return authenticator.stop
