"""What torch computes for each ONNX operator that our models hold.

Whole numbers stay on the processor: they say shapes, which a captured graph must know without asking the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

Attributes = Mapping[str, Any]
Inputs = Sequence[Tensor | None]
Operator = Callable[[Inputs, Attributes], Tensor | tuple[Tensor, ...]]


class NoSuchForm(Exception):
    """An operator is used in a way that is not written here: which."""


_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.BOOL: torch.bool,
}


def _ints(value: Tensor | None) -> list[int]:
    if value is None or value.is_floating_point():
        raise NoSuchForm("a shape that is computed with floats")
    return [int(number) for number in value.reshape(-1).tolist()]


def _there(value: Tensor | None) -> Tensor:
    if value is None:
        raise NoSuchForm("an input that is left out")
    return value


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise NoSuchForm(what)


def _padded(x: Tensor, attributes: Attributes) -> tuple[Tensor, list[int]]:
    """The input, padded with 0 where the padding differs by side, and the padding that is left to do."""
    _require(attributes.get("auto_pad", b"NOTSET") == b"NOTSET", "auto_pad")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom)), [0, 0]


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, padding = _padded(_there(inputs[0]), attributes)
    bias = inputs[2] if len(inputs) > 2 else None
    strides, dilations = attributes.get("strides", (1, 1)), attributes.get("dilations", (1, 1))
    return F.conv2d(
        x, _there(inputs[1]), bias, tuple(strides), padding, tuple(dilations), attributes.get("group", 1)
    )


def _conv_transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    plain = (top, left) == (bottom, right) and "output_shape" not in attributes
    _require(plain and attributes.get("auto_pad", b"NOTSET") == b"NOTSET", "padding by output shape")
    return F.conv_transpose2d(
        _there(inputs[0]),
        _there(inputs[1]),
        inputs[2] if len(inputs) > 2 else None,
        tuple(attributes.get("strides", (1, 1))),
        (top, left),
        tuple(attributes.get("output_padding", (0, 0))),
        attributes.get("group", 1),
        tuple(attributes.get("dilations", (1, 1))),
    )


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    _require((top, left) == (bottom, right) and not attributes.get("ceil_mode", 0), "padding of one side")
    return F.avg_pool2d(
        _there(inputs[0]),
        tuple(attributes["kernel_shape"]),
        tuple(attributes.get("strides", (1, 1))),
        (top, left),
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    _require((top, left) == (bottom, right) and not attributes.get("ceil_mode", 0), "padding of one side")
    return F.max_pool2d(
        _there(inputs[0]),
        tuple(attributes["kernel_shape"]),
        tuple(attributes.get("strides", (1, 1))),
        (top, left),
        tuple(attributes.get("dilations", (1, 1))),
    )


def _batch_normalization(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, bias, mean, variance = (_there(value) for value in inputs[:5])
    factor = scale.float() / torch.sqrt(variance.float() + attributes.get("epsilon", 1e-5))
    offset = bias.float() - mean.float() * factor
    factor, offset = (v.to(x.dtype).reshape(1, -1, *(1,) * (x.ndim - 2)) for v in (factor, offset))
    return x * factor + offset


def _resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _there(inputs[0])
    scales, sizes = (inputs[place] if len(inputs) > place else None for place in (2, 3))
    if sizes is not None:
        wanted = _ints(sizes)
    else:
        wanted = [int(n * scale) for n, scale in zip(x.shape, _there(scales).tolist(), strict=True)]
    _require(
        tuple(wanted[:2]) == tuple(x.shape[:2]) and not attributes.get("antialias", 0), "resized channels"
    )
    mode = attributes.get("mode", b"nearest").decode()
    places = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    if (mode, places) == ("linear", "half_pixel"):
        return F.interpolate(x, size=wanted[2:], mode="bilinear", align_corners=False)
    floor = attributes.get("nearest_mode", b"") == b"floor"
    _require((mode, places, floor) == ("nearest", "asymmetric", True), f"{mode} of {places}")
    return F.interpolate(x, size=wanted[2:], mode="nearest")


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, starts, ends = _there(inputs[0]), _ints(inputs[1]), _ints(inputs[2])
    axes = _ints(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    steps = _ints(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    _require(min(steps) > 0, "a slice that runs backwards")
    places = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places[axis] = slice(start, end, step)
    return x[tuple(places)]


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    x, axis = _there(inputs[0]), attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        return torch.split(x, _ints(inputs[1]), axis)
    return torch.split(x, -(-x.shape[axis] // attributes["num_outputs"]), axis)


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, shape = _there(inputs[0]), _ints(inputs[1])
    _require(not attributes.get("allowzero", 0), "sides of length 0")
    return x.reshape([x.shape[axis] if n == 0 else n for axis, n in enumerate(shape)])


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, places, axis = _there(inputs[0]), _there(inputs[1]), attributes.get("axis", 0)
    if places.ndim == 0:
        return x.select(axis, int(places))
    _require(places.ndim == 1, "places in more than one axis")
    return torch.stack([x.select(axis, place) for place in _ints(places)], axis)


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, pads = _there(inputs[0]), _ints(inputs[1])
    if len(inputs) > 3 and inputs[3] is not None:
        axes = [axis % x.ndim for axis in _ints(inputs[3])]
    else:
        axes = list(range(x.ndim))
    sides = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    mode = attributes.get("mode", b"constant").decode()
    last = 2 if mode != "constant" else x.ndim  # torch repeats edges of the last two axes only
    _require(all(sides.get(axis, (0, 0)) == (0, 0) for axis in range(x.ndim - last)), f"padding by {mode}")
    flat = [n for axis in reversed(range(x.ndim - last, x.ndim)) for n in sides.get(axis, (0, 0))]
    if mode == "constant":
        value = inputs[2] if len(inputs) > 2 else None
        return F.pad(x, flat, value=0.0 if value is None else float(value))
    return F.pad(x, flat, mode={"edge": "replicate", "reflect": "reflect"}[mode])


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    _require(attributes["to"] in _TYPES, f"type {attributes['to']}")
    return _there(inputs[0]).to(_TYPES[attributes["to"]])


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    least, most = (inputs[place] if len(inputs) > place else None for place in (1, 2))
    x = _there(inputs[0])
    return x if least is None and most is None else torch.clamp(x, least, most)


def _depth_to_space(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, block = _there(inputs[0]), attributes["blocksize"]
    if attributes.get("mode", b"DCR") == b"DCR":
        n, c, h, w = x.shape
        x = x.reshape(n, block * block, c // block**2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return F.pixel_shuffle(x, block)


def _space_to_depth(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, block = _there(inputs[0]), attributes["blocksize"]
    n, c, h, w = x.shape
    folded = F.pixel_unshuffle(x, block).reshape(n, c, block * block, h // block, w // block)
    return folded.transpose(1, 2).reshape(n, c * block * block, h // block, w // block)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def operator(inputs: Inputs, attributes: Attributes) -> Tensor:
        x, keep = _there(inputs[0]), bool(attributes.get("keepdims", 1))
        given = inputs[1] if len(inputs) > 1 else None
        axes = _ints(given) if given is not None else list(attributes.get("axes", ()))
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, axes or list(range(x.ndim)), keep)

    return operator


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    sides = list(_there(inputs[0]).shape)
    return torch.tensor(sides[attributes.get("start", 0) : attributes.get("end", len(sides))])


def _axes(inputs: Inputs, attributes: Attributes) -> list[int]:
    return _ints(inputs[1]) if len(inputs) > 1 else list(attributes["axes"])


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axes = _there(inputs[0]), _axes(inputs, attributes)
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    return _there(inputs[0]).squeeze(tuple(_axes(inputs, attributes)))


def _div(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, y = _there(inputs[0]), _there(inputs[1])
    whole = not (x.is_floating_point() or y.is_floating_point())
    return torch.div(x, y, rounding_mode="trunc") if whole else x / y


def _cumsum(inputs: Inputs, attributes: Attributes) -> Tensor:
    _require(not attributes.get("exclusive", 0) and not attributes.get("reverse", 0), "a reversed sum")
    return _there(inputs[0]).cumsum(_ints(inputs[1])[0])


def _along(function: Callable[[Tensor, int], Tensor]) -> Operator:
    return lambda inputs, attributes: function(_there(inputs[0]), attributes.get("axis", -1))


def _each(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda inputs, attributes: function(_there(inputs[0]))


def _both(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda inputs, attributes: reduce(function, map(_there, inputs))


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.gelu(_there(inputs[0]), approximate=attributes.get("approximate", b"none").decode())


OPERATORS: Mapping[str, Operator] = {
    "Abs": _each(torch.abs),
    "Add": _both(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat([_there(x) for x in inputs], attributes["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "CumSum": _cumsum,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Equal": _both(torch.eq),
    "Exp": _each(torch.exp),
    "Floor": _each(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Greater": _both(torch.gt),
    "Identity": _each(lambda x: x),
    "Less": _both(torch.lt),
    "Log": _each(torch.log),
    "LogSoftmax": _along(F.log_softmax),
    "MatMul": _both(torch.matmul),
    "Max": _both(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _both(torch.minimum),
    "Mul": _both(torch.mul),
    "Neg": _each(torch.neg),
    "Pad": _pad,
    "Pow": _both(torch.pow),
    "Reciprocal": _each(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _each(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _each(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _along(F.softmax),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _each(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _both(torch.sub),
    "Tanh": _each(torch.tanh),
    "Transpose": lambda inputs, attributes: _there(inputs[0]).permute(*attributes["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda inputs, attributes: torch.where(*(_there(x) for x in inputs)),
}
