"""OpenVINO among the installed back ends; importable without it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from functools import partial

from acq_isl.engines.backend import Candidate, LoadOptions, Unavailable
from acq_isl.engines.model_file import ModelFile


class OpenVinoBackend:
    """int8 where it was accepted on the user's stacks, bf16 where processor and file allow it, and fp32."""

    name = "openvino"

    def unavailable(self) -> Unavailable | None:
        if importlib.util.find_spec("openvino") is None:
            return Unavailable("openvino", "not installed", 'pip install "acq-isl[openvino]"')
        return None

    def candidates(self, model: ModelFile, options: LoadOptions) -> Iterator[Candidate]:
        from acq_isl.engines.openvino.engine import OpenVinoEngine, default_precision
        from acq_isl.engines.openvino.int8 import stored_int8

        load = partial(OpenVinoEngine, model, threads=options.threads, gate=options.gate)
        runs_on = f"openvino {importlib.metadata.version('openvino')}"
        if (stored := stored_int8(model)) is not None:
            int8 = partial(load, precision="int8", trunk=stored[1])
            yield Candidate("openvino int8", int8, stored[0].accepted, stored[0].reason, runs_on)
        bf16 = default_precision(model) == "bf16"
        if bf16:
            yield Candidate("openvino bf16", partial(load, precision="bf16"), runs_on=runs_on)
        yield Candidate("openvino fp32", partial(load, precision="fp32"), automatic=not bf16, runs_on=runs_on)
