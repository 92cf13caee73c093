"""What other package managers are told is what pyproject.toml says."""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text(encoding="utf-8"))


def test_the_conda_recipe_asks_for_what_pip_asks_for() -> None:
    wanted = {re.sub(r"\[.*\]", "", line.replace(">=", " >=")) for line in PROJECT["dependencies"]}
    run = set(RECIPE["requirements"]["run"]) - {"python >=${{ python_min }}", "zarr"}  # yaozarrs[write-zarr]
    assert run == wanted
    assert RECIPE["context"]["version"] == PROJECT["version"]


def test_the_image_serves_with_an_extra_that_there_is() -> None:
    text = (ROOT / "packaging" / "Dockerfile").read_text(encoding="utf-8")
    for extra in re.findall(r"EXTRA=(\w+)", text):
        assert extra in PROJECT["optional-dependencies"]


def test_pictures_and_links_work_where_no_folder_is_beside_the_readme(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, Any] = {}
    setuptools = ModuleType("setuptools")
    setuptools.setup = told.update  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    runpy.run_path(str(ROOT / "setup.py"))
    links = re.findall(r"\]\(([^)]*)\)", told["long_description"])
    assert len(links) > 10 and [link for link in links if not re.match(r"https?://|#", link)] == []
    here = (
        "https://github.com/acq-isl/acq-isl/blob/main/",
        "https://raw.githubusercontent.com/acq-isl/acq-isl/main/",
    )
    ours = [link.removeprefix(root) for link in links for root in here if link.startswith(root)]
    assert "docs/images/demo.png" in ours and all((ROOT / link.partition("#")[0]).exists() for link in ours)
