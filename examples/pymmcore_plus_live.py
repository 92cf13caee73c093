"""Predictions inside an acquisition of pymmcore-plus, on the demo devices of Micro-Manager.

    pip install "acq-isl[sim]" pymmcore-plus
    python examples/pymmcore_plus_live.py

The demo camera shows a pattern, not cells, so the model refuses it and says why; on a microscope of your own
load its configuration instead, and delete the engine if one is running already (`acq-isl serve`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import useq
from mm_test_adapters import device_adapter_path
from pymmcore_plus import CMMCorePlus

import acq_isl
from acq_isl.stack import Prediction
from acq_isl.stream.process import EngineProcess


def main(folder: Path) -> None:
    core = CMMCorePlus(mm_path=str(device_adapter_path()))
    core.loadSystemConfiguration(str(Path(device_adapter_path()) / "MMConfig_demo.cfg"))
    sequence = useq.MDASequence(
        stage_positions=[(0, 0, 0), (600, 0, 0)],
        channels=[useq.Channel(config="DAPI", exposure=10)],
        z_plan=useq.ZRangeAround(range=18, step=1.5),
    )
    with (
        EngineProcess("demo") as engine,
        acq_isl.live(engine.endpoint, planes=13, pixel_size_um=0.3, spool=folder / "spool") as live,
    ):
        core.run_mda(sequence, output=[str(folder / "measured.ome.zarr"), live.mda]).join()
        for outcome in live.drain(timeout_s=60):
            said = outcome.display_names if isinstance(outcome, Prediction) else outcome.reason
            sys.stdout.write(f"{outcome.info.key}: {said}\n")
        sys.stdout.write(f"{live.counts.slices}\n")


if __name__ == "__main__":  # the engine is a process of its own, which imports this file
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "pymmcore-plus-run"))
