"""What a ZMQ address tells. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


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
