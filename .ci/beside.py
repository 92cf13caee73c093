"""Does acq-isl install beside what else people have: a table, by ``pip install --dry-run`` of both together.

Run it in a venv with a current pip: ``python .ci/beside.py [PACKAGE ...]``. Nothing is installed. Ends with
1 if something does not resolve. A row says which version of the other package pip picks with acq-isl, alone,
and what else acq-isl moved.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BESIDE = (
    "napari[all]",
    "pymmcore-plus",
    "napari-micromanager",
    "cellpose",
    "stardist",
    "bioimageio.core",
    "micro_sam",
    "ome-zarr",
    "viscy",
)
ROOT = Path(__file__).resolve().parents[1]
TOGETHER = f"acq-isl[sim,web,napari] @ {ROOT.as_uri()}"


def pick(*wanted: str) -> dict[str, str] | str:
    """Versions by name that pip would install, or its reason why it cannot."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    done = subprocess.run([*command, "--report", "-", *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return (lines or done.stderr.splitlines() or ["no reason given"])[-1]
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    return {_plain(package["name"]): package["version"] for package in found}


def _plain(name: str) -> str:
    return name.partition("[")[0].replace("_", "-").replace(".", "-").lower()


def main() -> int:
    failed = 0
    say = sys.stdout.write
    say("| beside acq-isl | resolves | version with | version alone | moved by acq-isl |\n")
    say("|---|---|---|---|---|\n")
    for package in sys.argv[1:] or BESIDE:
        alone, both = pick(package), pick(TOGETHER, package)
        failed += isinstance(both, str)
        if isinstance(alone, str):
            row = "alone it does not", "", alone
        elif isinstance(both, str):
            row = "", alone[_plain(package)], both
        else:
            changed = [name for name in alone if both[name] != alone[name]]
            moved = [f"{name} {alone[name]} -> {both[name]}" for name in changed]
            row = both[_plain(package)], alone[_plain(package)], ", ".join(sorted(moved)) or "nothing"
        say(f"| {package} | {'no' if isinstance(both, str) else 'yes'} | {' | '.join(row)} |\n")
        sys.stdout.flush()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
