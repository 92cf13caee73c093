"""Where pixels lie on the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acq_isl.cli.console import out

commands = typer.Typer()


@commands.command()
def affine(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (.yaml), for microscope and limits.")],
    sim: Annotated[bool, typer.Option(help="On the simulated microscope, whatever the file names.")] = False,
) -> None:
    """Measure where pixels lie on the stage, for actions that centre an object; prints the key for the file.

    The stage goes a sixth of a field to and fro around the first field, within the limits; one plane in
    transmitted light is taken at each of nine places.
    """
    import yaml

    from acq_isl.experiment.experiment import Experiment
    from acq_isl.hooks import open_microscope
    from acq_isl.session.affine import measure_affine
    from acq_isl.session.preflight import simulated

    loaded = Experiment.from_yaml(experiment)
    loaded = simulated(loaded) if sim else loaded
    with open_microscope(loaded.microscope) as scope:
        found = measure_affine(loaded, scope)
    text = yaml.safe_dump({"pixel_to_stage": found.model_dump(mode="json")}, default_flow_style=None)
    out.print(text.rstrip(), highlight=False)
    out.print(
        f"pixels of {found.pixel_size_um:.4g} um; the moves missed it by {found.residual_um:.3g} um (RMS)"
    )
