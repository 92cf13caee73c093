"""What other package managers are told is what pyproject.toml says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

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
