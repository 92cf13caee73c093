"""Model files: one ONNX file with its manifest inside, looked through before anything runs it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from acq_isl.engines.gate import COST
from acq_isl.engines.model_safety import STANDARD_DOMAINS, check_bounded, check_self_contained
from acq_isl.errors import ModelError
from acq_isl.files import read_regular
from acq_isl.manifest import MANIFEST_KEY, Evaluation, Gate, Instrument, Looks, Manifest, Training

Row = tuple[str, str]
_SHOWN = 6  # names; the manifest holds all of them
_METRICS = {
    "pearson": "correlation r with the truth {:.3g}",
    "mae": "mean error {:.2g} of full scale",
    "coverage of 1 SD": "one stated SD holds for {:.0%} of the pixels",
    "where truly bright": "for {:.0%} of the bright ones (68 % would be right)",
}


def provenance(manifest: Manifest) -> tuple[Row, ...]:
    """Rows of name and value: instrument, training set, gate, evaluations and looks, if known."""
    return (*_instrument(manifest.instrument), *_training(manifest.training), *_gate(manifest.gate),
            *_evaluations(manifest.evaluations), *_looks(manifest.looks))  # fmt: skip


def _instrument(instrument: Instrument | None) -> Iterator[Row]:
    if instrument is None:
        return
    parts = (
        f"{instrument.magnification:g}x" if instrument.magnification else "",
        f"NA {instrument.numerical_aperture:g}" if instrument.numerical_aperture else "",
        instrument.illumination,
        f"{instrument.bit_depth} bit" if instrument.bit_depth else "",
        f"in focus in the middle: {instrument.focus_reference}" if instrument.focus_reference else "",
        f"z rises {instrument.z_sign}" if instrument.z_sign != "unknown" else "",
    )
    yield "instrument", ", ".join(part for part in parts if part) or "not known"


def _training(training: Training | None) -> Iterator[Row]:
    if training is None:
        return
    if training.cell_type:
        yield "cells", training.cell_type
    for name, values in (("plates", training.plates), ("wells", training.wells), ("fields", training.fields)):
        if values:
            yield f"{name} seen", _some(values)
    yield "held out by", "nothing was held out" if training.split_unit == "none" else training.split_unit
    if training.data_licence:
        yield "data licence", training.data_licence


def _gate(gate: Gate | None) -> Iterator[Row]:
    if gate is None:
        yield "gate", "none: it cannot tell from a stack's looks whether it was trained for the like"
        return
    limits = ", ".join(
        f"an estimated cost of {limit / 100:.3f} r" if name == COST else f"{name} {limit:.3g}"
        for name, limit in zip(gate.names, gate.limits, strict=True)
    )
    words = "refuses stacks that look unlike its training set, and says in what and what to do"
    if gate.judged is not None:
        words = "refuses stacks on which predictions are estimated to be worse, and says by how much"
    yield "gate", f"{words}; of stacks like it, {100 * gate.false_alarms:.2g} % were refused, too"
    if gate.judged is not None:
        judged = gate.judged
        yield (
            "gate judged",
            f"refused {judged.caught:.0%} of {judged.harmful} stacks that cost more than .07 of the "
            f"correlation r, {judged.refused:.0%} of {judged.harmless} that cost less than .02 "
            f"({judged.judged_on})",
        )
    yield "gate's limits", limits


def _evaluations(evaluations: Sequence[Evaluation]) -> Iterator[Row]:
    for evaluation in evaluations:
        metrics = evaluation.metrics.items()
        values = ", ".join(_METRICS.get(name, name + " {:.3g}").format(value) for name, value in metrics)
        about = f"{evaluation.dataset}; n = {evaluation.n}, split by {evaluation.split_unit}"
        yield f"evaluated {evaluation.label}", f"{values} ({about})"


def _looks(looks: Sequence[Looks]) -> Iterator[Row]:
    for look in looks:
        when = f", last {look.last[:10]}" if look.last else ""
        yield "looked at", f"{look.dataset}: scored {look.times} times while choosing{when} ({look.why})"


def _describe_planes(manifest: Manifest) -> str:
    if manifest.any_planes is not None:
        most = manifest.any_planes.most_step_um
        return f"one or more, at most {most:g} um apart, evenly or not, spread over {manifest.planes}"
    low, high = manifest.z_offsets_um[0], manifest.z_offsets_um[-1]
    return f"{manifest.planes}, {manifest.z_step_um:.3g} um apart, {low:+g} to {high:+g} um around the middle"


def _some(values: Sequence[str]) -> str:
    more = len(values) - _SHOWN
    return ", ".join(values[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


SHIPPED = ("demo", "cells")
_MOST_NOTE_BYTES = 4096
_Ports = dict[str, tuple[str, tuple[str | int, ...]]]  # element type and axes by name


def _contract(manifest: Manifest) -> tuple[_Ports, _Ports]:
    """Inputs and outputs of every model; axes that are named may be of any length."""
    image: tuple[str | int, ...] = ("n", len(manifest.labels), "h", "w")
    inputs: _Ports = {"stack": ("UINT8", ("n", manifest.planes, "h", "w", 2)), "inv_sd": ("FLOAT", ("n",))}
    outputs: _Ports = {"mean": ("FLOAT", image), "spread": ("FLOAT", image)}
    if manifest.gate is not None:  # on a coarser grid
        outputs["distance"] = "FLOAT", ("n", len(manifest.gate.names), "rows", "columns")
    return inputs, outputs


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model file is, as ``acq-isl info MODEL`` shows it."""

    where: str
    """Path of the file, or the name of a model that ships, such as ``"demo"``."""
    sha256: str
    size_bytes: int
    manifest: Manifest
    opset: int
    """Version of the ONNX operators it needs."""
    inputs: tuple[str, ...]
    """Such as ``"stack uint8 (n, 13, 16*h, 16*w, 2)"``."""
    outputs: tuple[str, ...]

    @property
    def output_names(self) -> tuple[str, ...]:
        """Outputs that back ends fetch, in this order; the file may hold others, which are ignored."""
        return output_names(self.manifest)

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Rows of name and value for people, units included."""
        m = self.manifest
        most = "" if m.max_tile_px is None else f" to {m.max_tile_px} px"
        tiles = f"from {m.min_tile_px} px{most} in steps of {m.size_step_px} px, {m.halo_px} px around each"
        told = {value for evaluation in m.evaluations for value in evaluation.metrics.values()}
        return (
            ("model", f"{m.name} {m.version}"),
            ("description", m.description),
            ("labels", ", ".join(f"{label.name} (predicted; {label.marker})" for label in m.labels)),
            ("optics", f"{m.modality}, dense matter {m.polarity}"),
            ("pixel size", f"{m.pixel_size_um:g} um"),
            ("planes", _describe_planes(m)),
            ("background removed", f"what varies over more than {m.high_pass_um:g} um (Gaussian, one sigma)"),
            ("tiles", tiles),
            ("shown", f"the {m.statistic} of what each pixel's brightness may be; its SD is the doubt"),
            ("trained on", m.trained_on),
            *provenance(m),
            *((f"metric {name}", f"{x:.3g}") for name, x in m.metrics.items() if x not in told),
            ("licence", m.licence),
            ("file", f"{self.where}, {self.size_bytes / 2**20:.1f} MiB, ONNX opset {self.opset}"),
            ("sha256", self.sha256),
            ("inputs", "; ".join(self.inputs)),
            ("outputs", "; ".join(self.outputs)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class ModelFile:
    """A model that was read and checked. ``content`` is what was hashed, checked and will be run."""

    content: bytes
    info: ModelInfo


def output_names(manifest: Manifest) -> tuple[str, ...]:
    """Names of the outputs a back end fetches: mean, spread, and with a gate the distance it looks at."""
    return tuple(_contract(manifest)[1])


def read_model(model: Path | str, *, sha256: str | None = None) -> ModelFile:
    """Read a model file and make sure that it is one, whole and self-contained; ModelError if not."""
    where, content, noted = _read(model)
    found = hashlib.sha256(content).hexdigest()
    wanted = (sha256 or noted or found).lower()
    if found != wanted:
        raise ModelError(
            f"model {where} is not the file it should be",
            wanted=f"sha256 {wanted}",
            got=found,
            fix="copy or download the file again; if it was changed on purpose, remove the .sha256 file",
        )
    proto = _parse(where, content)
    manifest = _manifest(where, proto)
    wanted_inputs, wanted_outputs = _contract(manifest)
    inputs = _check_ports(where, proto.graph.input, wanted_inputs)
    outputs = _check_ports(where, proto.graph.output, wanted_outputs, others=True)
    check_bounded(where, proto, manifest.least_side_px)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS), 0)
    return ModelFile(content, ModelInfo(where, found, len(content), manifest, opset, inputs, outputs))


def _read(model: Path | str) -> tuple[str, bytes, str | None]:
    """Name for people, bytes, and the hash noted beside the file, if any."""
    if isinstance(model, str) and model in SHIPPED:
        folder = resources.files("acq_isl.models")
        file, beside = folder / f"{model}.onnx", folder / f"{model}.onnx.sha256"
        if not file.is_file():
            raise ModelError(
                f"the {model} model is not part of this installation",
                wanted=file.name,
                fix="install acq-isl again, or give the path of a model trained with `acq-isl train`",
            )
        return model, file.read_bytes(), _noted(beside.read_text("utf-8")) if beside.is_file() else None
    path = Path(model)
    try:
        content, side = read_regular(path), path.with_name(path.name + ".sha256")
        noted = read_regular(side, _MOST_NOTE_BYTES).decode() if side.is_file() else None
        return str(path), content, None if noted is None else _noted(noted)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"model {path} cannot be read: {error}",
            wanted="an .onnx file written by acq-isl",
            fix='check the path, or use "demo" or "cells" for a model that comes with acq-isl',
        ) from error


def _noted(text: str) -> str:
    """The hash in a file as sha256sum writes it: hash, blanks, file name."""
    return (text.split() or ["nothing"])[0]


def _parse(where: str, content: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
        check_self_contained(where, proto)  # first, so that the checker follows no path to other files
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"model {where} is damaged or not an ONNX file: {str(error).partition(chr(10))[0]}",
            wanted="an .onnx file written by acq-isl",
            got=f"{len(content)} bytes",
            fix="copy or download the file again",
        ) from error
    return proto


def _manifest(where: str, proto: onnx.ModelProto) -> Manifest:
    texts = [entry.value for entry in proto.metadata_props if entry.key == MANIFEST_KEY]
    if len(texts) != 1:
        raise ModelError(
            f"model {where} does not say what it expects and gives",
            wanted=f"one manifest under {MANIFEST_KEY!r} in the file's metadata",
            got=f"{len(texts)}",
            fix="copy an acq-isl model again, it was cut short; export any other with acq-isl",
        )
    return Manifest.from_json(texts[0])


def _check_ports(
    where: str, ports: Iterable[onnx.ValueInfoProto], wanted: _Ports, *, others: bool = False
) -> tuple[str, ...]:
    """Hold inputs or outputs against the contract; returns those it names, in words."""
    found = {port.name: _port(port) for port in ports}
    named = found.keys() >= wanted.keys() if others else found.keys() == wanted.keys()
    fits = named and all(
        found[name][0] == dtype
        and len(found[name][1]) == len(axes)
        and all(isinstance(f, str) or f == w for f, w in zip(found[name][1], axes, strict=True))
        for name, (dtype, axes) in wanted.items()
    )
    if not fits:
        raise ModelError(
            f"model {where} does not take or give what its manifest says",
            wanted="; ".join(_words(name, *port) for name, port in wanted.items()),
            got="; ".join(_words(name, *port) for name, port in found.items()) or "nothing",
            fix="export the model again with this version of acq-isl",
        )
    return tuple(_words(name, *found[name]) for name in wanted)


def _port(value: onnx.ValueInfoProto) -> tuple[str, tuple[str | int, ...]]:
    tensor = value.type.tensor_type
    axes = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    kinds, kind = onnx.TensorProto.DataType, tensor.elem_type
    return kinds.Name(kind) if kind in kinds.values() else f"TYPE {kind}", tuple(axes)


def _words(name: str, dtype: str, axes: tuple[str | int, ...]) -> str:
    kind = "float32" if dtype == "FLOAT" else dtype.lower()
    return f"{name} {kind} ({', '.join(str(axis) for axis in axes)})"
