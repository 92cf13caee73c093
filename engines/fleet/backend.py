"""The back end ``fleet``: servers that the environment variable ``ACQ_ISL_FLEET`` names, with commas."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from acq_isl.engines.backend import Candidate, LoadOptions, Unavailable
from acq_isl.engines.fleet.network import BULK, LIVE, FleetNetwork
from acq_isl.engines.fleet.protocol import Server, is_installed
from acq_isl.engines.fleet.repository import served_name
from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError

VARIABLE = "ACQ_ISL_FLEET"


def addresses() -> tuple[str, ...]:
    """HOST:PORT of each server."""
    return tuple(filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))))


class FleetBackend:
    """Used when it is named only: a network is between the microscope and its answer."""

    name = "fleet"

    def unavailable(self) -> Unavailable | None:
        named = addresses()
        if not named:
            fix = f"set {VARIABLE}=HOST:PORT,HOST:PORT"
            return Unavailable(self.name, "no server is named", fix, quiet=True)
        if not is_installed():
            return Unavailable(
                self.name, "tritonclient is not installed", 'pip install "acq-isl[fleet]"', broken=True
            )
        return None

    def candidates(self, model: ModelFile, options: LoadOptions) -> Iterator[Candidate]:
        yield Candidate(
            "fleet fp16", partial(_open, model, options), automatic=False, back=partial(_is_back, model)
        )


def _servers(model: ModelFile) -> list[Server]:
    return [Server(address, served_name(model.info)) for address in addresses()]


def _open(model: ModelFile, options: LoadOptions) -> Predictor:
    """EngineError if no server has the model."""
    servers = _servers(model)
    if not any(server.is_ready() for server in servers):
        name = served_name(model.info)
        for server in servers:
            server.close()
        raise EngineError(
            f"no server of the fleet serves {name}",
            got=", ".join(addresses()),
            fix=f"start one, or give it the model: acq-isl export {model.info.where} --triton FOLDER",
        )
    network = FleetNetwork(servers, model.info.output_names, LIVE if options.work == "live" else BULK)
    return Predictor(model.info, network, gate=options.gate)


def _is_back(model: ModelFile) -> bool:
    """Whether some server has the model."""
    servers = _servers(model)
    try:
        return any(server.is_ready() for server in servers)
    finally:
        for server in servers:
            server.close()
