"""Random bits that follow from a seed alone, on every device, with any number of threads and any version of a library.

The C and the Triton kernels draw the same ones in parallel: every chunk of `CHUNK` numbers has a generator of its own,
SFC64 (Doty-Humphrey's; the one in numpy, which promises never to change it).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CHUNK = 16_384  # numbers from one generator, as in kernels.c
# Words that are discarded, until every bit of the state depends on the seed and the chunk; as in kernels.c.
WARM_UP = 18


def random_bits(size: int, seed: int) -> npt.NDArray[np.uint16]:
    """Random numbers of 16 bits [size].

    Args:
        seed: below 2**64.
    """
    generator = np.random.SFC64()
    chunks = []
    for chunk in range(-(-size // CHUNK)):
        state = generator.state
        state["state"]["state"] = np.array([seed, chunk, 0, 1], np.uint64)
        generator.state = state
        generator.random_raw(WARM_UP)
        words = -(-min(size - chunk * CHUNK, CHUNK) // 4)
        chunks.append(generator.random_raw(words).view(np.uint16))
    return np.concatenate([np.zeros(0, np.uint16), *chunks])[:size]
