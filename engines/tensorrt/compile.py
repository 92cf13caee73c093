"""ONNX becomes a plan: parsed, held against the manifest, and built by TensorRT."""

from __future__ import annotations

import logging
from typing import Any

from acq_isl.engines.model_file import output_names
from acq_isl.engines.sealed_file import SealedFile
from acq_isl.engines.tensorrt.api import Flavour, Messages, Progress, ProgressForwarder
from acq_isl.engines.tensorrt.plan_cache import PlanKey
from acq_isl.errors import EngineError, ModelError
from acq_isl.manifest import Manifest

_log = logging.getLogger(__name__)


def compile_plan(
    flavour: Flavour,
    content: bytes,
    key: PlanKey,
    manifest: Manifest,
    progress: Progress | None = None,
    timings: SealedFile | None = None,
) -> bytes:
    """Parse and build ONNX in the types the plan is to have; times of kernels are kept in ``timings``, if
    given.
    """
    messages = Messages(flavour)
    builder, network = parse(flavour, content, messages)
    check_network(network, flavour, manifest)
    config = _configure(flavour, builder, key)
    timed = timings if flavour.has_timing_cache else None
    if timed is not None:
        _lend_timings(config, timed)
    forwarder = ProgressForwarder(flavour, progress) if progress else None
    if forwarder is not None:
        config.progress_monitor = forwarder.monitor
    serialized = builder.build_serialized_network(network, config)
    if forwarder is not None and forwarder.failure is not None:
        raise forwarder.failure
    if serialized is None:
        raise EngineError(
            f"{flavour.name} {flavour.version} could not build the plan",
            got=messages.take() or "no reason given",
            fix="close programs that use the GPU and try again; if it stays, predict with onnxruntime "
            "and report the model with this message",
        )
    if timed is not None:
        cache = config.get_timing_cache()
        timed.save(bytes(cache.serialize()))
    return bytes(serialized)


def _lend_timings(config: Any, timings: SealedFile) -> None:
    """Kernels that were timed for another plan on this GPU need not be timed again."""
    kept = timings.load()
    cache = config.create_timing_cache(kept or b"")
    if cache is None or not config.set_timing_cache(cache, False):
        _log.warning("kept timings in %s do not fit any more, kernels are timed again", timings.path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def parse(flavour: Flavour, content: bytes, messages: Messages) -> tuple[Any, Any]:
    """Builder and network definition of an ONNX model, strongly typed.

    EngineError if TensorRT cannot start here, ModelError if it lacks an operator or this is no ONNX model.
    """
    trt = flavour.trt
    try:
        builder = trt.Builder(messages.logger)
    except TypeError as error:  # how pybind11 says that the C++ side made no object
        raise EngineError(
            f"{flavour.name} {flavour.version} cannot start: {messages.take() or error}",
            wanted="an NVIDIA GPU with a driver for its CUDA version",
            fix="update the NVIDIA driver, or build with --flavour rtx, which needs no GPU",
        ) from error
    # TensorRT 11 and RTX are always strongly typed and ignore the flag; TensorRT 10 needs it.
    strongly = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly)
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(content):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise ModelError(
            f"{flavour.name} {flavour.version} cannot use this model",
            wanted="operators that TensorRT has",
            got="; ".join(_parser_words(error) for error in errors[:3]) or messages.take(),
            fix="export the model again with this version of acq-isl, or predict with onnxruntime",
        )
    return builder, network


def _parser_words(error: Any) -> str:
    where = f"{error.node_operator()} {error.node_name()}".strip()
    return f"{where}: {error.desc()}" if where else str(error.desc())


def check_network(network: Any, flavour: Flavour, manifest: Manifest) -> None:
    """Hold what was parsed against the contract of acq-isl models; ModelError names the first difference."""
    trt = flavour.trt
    kinds = trt.DataType
    labels = (-1, len(manifest.labels), -1, -1)
    outputs = {
        "mean": ((kinds.HALF, kinds.FLOAT), labels),
        "spread": ((kinds.HALF, kinds.FLOAT), labels),
        "distance": ((kinds.FLOAT,), (-1, len(manifest.gate.names) if manifest.gate else 0, -1, -1)),
    }
    wanted = {
        "stack": ((kinds.UINT8,), (-1, manifest.planes, -1, -1, 2)),
        "inv_sd": ((kinds.FLOAT,), (-1,)),
    } | {name: outputs[name] for name in output_names(manifest)}
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in tensors}
    for name in sorted(wanted.keys() | found.keys()):
        dtype, shape = found.get(name, (None, ()))
        kinds_wanted, shape_wanted = wanted.get(name, ((), ()))
        # TensorRT cannot always tell a side before it knows those of the input; it says -1 then.
        fits = len(shape) == len(shape_wanted) and all(
            a in (b, -1) for a, b in zip(shape, shape_wanted, strict=True)
        )
        if dtype not in kinds_wanted or not fits:
            raise ModelError(
                f"{flavour.name} understands the model's {name!r} in another way than its manifest says",
                wanted=f"{shape_wanted} of {kinds_wanted}" if kinds_wanted else "nothing of that name",
                got=f"{shape} of {dtype}" if shape else "nothing of that name",
                fix="export the model again with this version of acq-isl",
            )


def _configure(flavour: Flavour, builder: Any, key: PlanKey) -> Any:
    trt = flavour.trt
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if key.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it keeps 10 bits of what fp32 says it is
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in key.shapes.items():
        profile.set_shape(name, least, usual, most)
    if config.add_optimization_profile(profile) < 0:
        raise ModelError(
            f"{flavour.name} refuses the shapes of profile {key.profile!r}",
            got=f"stack from {key.shapes['stack'][0]} to {key.shapes['stack'][2]}",
            fix="check the tile rule in the model's manifest; export the model again",
        )
    if flavour.portable and key.targets:
        config.num_compute_capabilities = len(key.targets)
        for index, target in enumerate(key.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    return config
