"""Random numbers without state: each is a function of its coordinates (seed, epoch, row, position).

So a token's random number does not depend on its batch, on the worker that draws it, or on earlier draws. Each
coordinate is mixed in with SplitMix64's finalizer (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"), which is a bijection of 64 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(*coordinates: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A uniform random number between 0 and 1 (both excluded) for each tuple of coordinates.

    Args:
        coordinates: integers from 0, or arrays of them; they are broadcast to one shape. Their order matters.

    Returns:
        float64, of that shape.
    """
    state = np.zeros(1, np.uint64)  # an array, whose products wrap around without a warning
    for coordinate in coordinates:
        state = _mixed((state + _GOLDEN) ^ np.asarray(coordinate).astype(np.uint64))
    shape = np.broadcast_shapes(*(np.shape(coordinate) for coordinate in coordinates))
    numbers: npt.NDArray[Any] = ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return numbers.reshape(shape)


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
