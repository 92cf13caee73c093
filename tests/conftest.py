"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# How long an example takes says more about what else the machine does than about the law.
hypothesis.settings.register_profile("whatever the load", deadline=None)
hypothesis.settings.load_profile("whatever the load")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recorded microscope images and golden outputs; not part of the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: recorded images are not part of the project")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plans, compiled networks and choices of the tests are no business of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACQ_ISL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield
