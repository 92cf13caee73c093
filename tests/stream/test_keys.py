"""Keys for an engine beyond this host."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from acq_isl.errors import EngineError
from acq_isl.stream.sockets import client_keys, make_keys, server_keys


def test_both_ends_fit_together(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    server, client = server_keys(tmp_path / "keys"), client_keys(tmp_path / "keys")
    assert client.server_public == server.public
    assert server.allowed == (client.public,)
    assert len({server.public, server.secret, client.public, client.secret}) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no owner bits")
def test_secrets_are_for_their_owner(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    for path in (tmp_path / "keys").glob("*.key_secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no owner bits")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    make_keys(tmp_path / "keys")
    (tmp_path / "keys" / "client.key_secret").chmod(mode)
    (tmp_path / "keys" / "server.key_secret").chmod(mode)
    for read in (client_keys, server_keys):
        with pytest.raises(EngineError, match=r"read by others.*chmod 600"):
            read(tmp_path / "keys")


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    make_keys(tmp_path)
    with pytest.raises(EngineError, match="already"):
        make_keys(tmp_path)


def test_missing_and_wrong_keys_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="acq-isl keys"):
        client_keys(tmp_path)
    make_keys(tmp_path / "keys")
    public = (tmp_path / "keys" / "server.key").read_bytes()
    (tmp_path / "keys" / "server.key_secret").write_bytes(public)  # its mode stays
    with pytest.raises(EngineError, match="no secret"):
        server_keys(tmp_path / "keys")
