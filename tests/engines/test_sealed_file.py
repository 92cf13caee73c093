"""What is executed from the cache was written by this user's acq-isl, under this very name."""

import os
import shutil

import pytest

from acq_isl.engines.sealed_file import SealedFile


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    for name in ("XDG_CONFIG_HOME", "APPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "settings"))
    return tmp_path / "settings"


def key_of(settings):
    (key,) = settings.rglob("cache.key")
    return key


def renamed(file, settings):
    shutil.copy(file.path, file.path.with_name("other"))
    return SealedFile(file.path.with_name("other"))


def edited(file, settings):
    file.path.write_bytes(file.path.read_bytes()[:-1] + b"!")
    return file


def made_with_another_key(file, settings):
    key_of(settings).unlink()
    return file


def under_a_key_that_others_can_read(file, settings):
    key_of(settings).chmod(0o644)
    return file


def under_half_a_key(file, settings):
    key_of(settings).write_bytes(b"short")
    return file


def test_what_was_kept_is_found(tmp_path, settings):
    assert SealedFile(tmp_path / "a").load() is None
    assert SealedFile(tmp_path / "a").save(b"kernels")
    assert SealedFile(tmp_path / "a").load() == b"kernels"
    assert os.name != "posix" or key_of(settings).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "change",
    [renamed, edited, made_with_another_key, under_half_a_key]
    + [under_a_key_that_others_can_read] * (os.name == "posix"),
)
def test_what_is_not_ours_is_made_again_and_said(tmp_path, settings, caplog, change):
    file = SealedFile(tmp_path / "a")
    file.save(b"kernels")
    assert change(file, settings).load() is None
    assert "made again" in caplog.text


def test_without_a_readable_key_nothing_is_kept(tmp_path, settings, caplog):
    settings.write_text("no folder")
    assert not SealedFile(tmp_path / "a").save(b"kernels")
    assert "cannot be kept" in caplog.text and not (tmp_path / "a").exists()
