"""Values that come down from the GPU as fp16, converted fast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acq_isl.stack import Float32Image

_VALUES_IN_CACHE = 1 << 17
_MANTISSA_SHIFT = 13
# Sign, exponent and mantissa of an fp16, where a float has them; the bits between are copies of the sign.
_COMMON_BITS = np.uint32(0x8FFFE000).view(np.int32)
_REBIAS = np.float32(2.0**112)  # from the float's zero of exponents, 127, to the fp16's, 15
_INFINITE = 65536.0  # what exponents of 31 come out as, which stand for infinity and NaN


def to_float32(values: NDArray[np.float16]) -> Float32Image:
    """A copy as float32, the same numbers exactly, of a C-contiguous array; a quarter of numpy's time."""
    out = np.empty(values.shape, np.float32)
    source_values, out_values = values.reshape(-1), out.reshape(-1)
    for first in range(0, source_values.size, _VALUES_IN_CACHE):
        source = source_values[first : first + _VALUES_IN_CACHE]
        target = out_values[first : first + _VALUES_IN_CACHE]
        bits = target.view(np.int32)
        bits[:] = source.view(np.int16)
        bits <<= _MANTISSA_SHIFT
        bits &= _COMMON_BITS
        target *= _REBIAS  # exact: a power of two, and what was below normal is not any more
        if target.max() >= _INFINITE or target.min() <= -_INFINITE:
            target[:] = source
    return out
