"""Sockets: their addresses, the CURVE keys of both ends, and how a thread that waits for them is woken.

A folder of keys holds the certificates that ``zmq.auth`` writes: ``server.key_secret`` stays with the
engine; ``server.key`` and ``client.key_secret`` go to the microscope; ``client.key`` stays with the engine.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import zmq
import zmq.auth

from acq_isl.errors import EngineError
from acq_isl.stream.messages import MAX_FRAME_BYTES
from acq_isl.stream.repeats import LimitRepeats

log = logging.getLogger(__name__)
log.addFilter(LimitRepeats())


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


@dataclass(frozen=True)
class _AllowList:
    """Which clients may connect; called by ZMQ's authenticator for every new connection."""

    allowed: tuple[bytes, ...]

    def callback(self, domain: str, key: bytes) -> bool:
        if key not in self.allowed:
            log.warning("a client with an unknown key was turned away")
        return key in self.allowed


def let_in(context: zmq.Context[zmq.Socket[bytes]], keys: ServerKeys) -> Callable[[], None]:
    """Let only known keys in; how to end that."""
    from zmq.auth.thread import ThreadAuthenticator

    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(credentials_provider=_AllowList(keys.allowed))
    return authenticator.stop


def make_keys(folder: Path) -> None:
    """Write a fresh pair of key pairs; EngineError if keys are there already or cannot be written.

    Secret files can be read by their owner only, where the system knows owners.
    """
    if any(folder.glob("*.key*")):
        raise EngineError(f"{folder} holds keys already", fix="name another folder, or delete them by hand")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("server", "client"):
            _, secret = zmq.auth.create_certificates(folder, name)
            Path(secret).chmod(0o600)
    except OSError as error:
        raise EngineError(f"keys cannot be written to {folder}", got=str(error)) from error


def server_keys(folder: Path) -> ServerKeys:
    """The engine's keys, and every ``client*.key`` in the folder as a client that may connect."""
    public, secret = _read(folder / "server.key_secret")
    allowed = tuple(_read(path, secret=False)[0] for path in sorted(folder.glob("client*.key")))
    return ServerKeys(public, secret, allowed)


def client_keys(folder: Path) -> ClientKeys:
    """The microscope's keys, and the engine's public one."""
    public, secret = _read(folder / "client.key_secret")
    return ClientKeys(_read(folder / "server.key", secret=False)[0], public, secret)


def _read(path: Path, *, secret: bool = True) -> tuple[bytes, bytes]:
    if secret and os.name == "posix" and path.is_file() and path.stat().st_mode & 0o077:
        raise EngineError(
            f"the secret key {path} can be read by others", fix=f"make it yours alone: chmod 600 {path}"
        )
    try:
        public, private = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no key can be read from {path}",
            got=str(error),
            fix="make a folder of keys: acq-isl keys FOLDER",
        ) from error
    if secret and private is None:
        raise EngineError(f"{path} holds no secret key", fix="copy the .key_secret file of this side here")
    return public, private or b""


def is_local(endpoint: str) -> bool:
    """Whether an address can only be reached from this host."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return True
    try:
        # A port of "*" is no number, but it does not concern us.
        host = urlsplit(endpoint).hostname or ""
        if host == "localhost":
            return True
        address = ipaddress.ip_address(host)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback
    except ValueError:
        return False


def is_ipv6(endpoint: str) -> bool:
    """Whether an address is written as IPv6; ZMQ must be told."""
    return "[" in endpoint


class Waker:
    """Ends the wait of a thread that polls sockets; that thread polls `socket`, too."""

    def __init__(self) -> None:
        self._sender, self.socket = socket.socketpair()
        self._sender.setblocking(False)
        self.socket.setblocking(False)

    def wake(self) -> None:
        """Any thread may call it, also when the other one has ended."""
        with suppress(OSError):  # woken more than often enough, or closed
            self._sender.send(b"\0")

    def clear(self) -> bool:
        """Forget the calls of `wake` so far; whether there were any."""
        try:
            return bool(self.socket.recv(4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._sender.close()
        self.socket.close()


_MESSAGES_QUEUED = 64
_Context = zmq.Context[zmq.Socket[bytes]]


def open_router(context: _Context, bind: str, keys: ServerKeys | None) -> zmq.Socket[bytes]:
    """A ROUTER bound to an address; ZMQError if that is not possible. Close it after use."""
    router = _open(context, zmq.ROUTER, bind, MAX_FRAME_BYTES)
    # Without it an answer to a client that left would vanish silently.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if keys is not None:
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = keys.public, keys.secret
    router.bind(bind)
    return router


def open_dealer(
    context: _Context, endpoint: str, keys: ClientKeys | None, largest_bytes: int = MAX_FRAME_BYTES
) -> zmq.Socket[bytes]:
    """A DEALER that may be connected to an address. Close it after use."""
    dealer = _open(context, zmq.DEALER, endpoint, largest_bytes)
    if keys is not None:
        dealer.curve_serverkey = keys.server_public
        dealer.curve_publickey, dealer.curve_secretkey = keys.public, keys.secret
    return dealer


def _open(context: _Context, kind: int, endpoint: str, largest_bytes: int) -> zmq.Socket[bytes]:
    opened = context.socket(kind)
    opened.setsockopt(zmq.LINGER, 0)
    opened.setsockopt(zmq.IPV6, int(is_ipv6(endpoint)))
    opened.setsockopt(zmq.SNDHWM, _MESSAGES_QUEUED)
    opened.setsockopt(zmq.RCVHWM, _MESSAGES_QUEUED)
    opened.setsockopt(zmq.MAXMSGSIZE, largest_bytes)
    return opened
