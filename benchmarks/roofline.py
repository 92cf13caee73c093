"""Print how fast a model could be on a GPU, an estimate, beside what `acq-isl bench --json` measured on one.

    acq-isl bench MODEL --side 1024 --json > bench.json
    python benchmarks/roofline.py MODEL --side 1024 --measured bench.json

The formula is explained in `acq_isl.engines.roofline`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from acq_isl.engines.model_file import read_model
from acq_isl.engines.roofline import PUBLISHED, error_of_published, from_bench, table


def main() -> None:
    """Print the table of one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="model file, or demo")
    parser.add_argument("--side", type=int, nargs="+", default=[1024, 2048], help="field sizes in pixels")
    parser.add_argument("--measured", type=Path, help="what `acq-isl bench --json` printed")
    chosen = parser.parse_args()
    rows = json.loads(chosen.measured.read_text("utf-8"))["rows"] if chosen.measured else []
    measured = from_bench(rows, chosen.model)
    sys.stdout.write("\n".join(table(read_model(chosen.model), chosen.side, measured)) + "\n\n")
    sys.stdout.write(
        "| published | TFLOP/s of fp16 peak | shortest, longest estimate / measured |\n|---|---|---|\n"
    )
    for one in PUBLISHED:
        short, long = error_of_published(one)
        reached = f"{one.reached:g} of {one.peak:.0f} ({one.efficiency:.0%})"
        sys.stdout.write(f"| {one.what} | {reached} | {short:.2f}, {long:.2f} |\n")


if __name__ == "__main__":
    main()
