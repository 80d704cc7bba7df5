"""Seeded choices that are the same in every Python version, and the checksum that assigns word combinations to
splits."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A stream of random choices, made from `Random.random` alone: Python promises never to change its numbers."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices, all equally likely."""
        return choices[int(self._random.random() * len(choices))]

    def happens(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability


def split_of(*words: str) -> str:
    """The only split that may use this combination of content words: 80% train, 10% dev, 10% test."""
    slot = zlib.crc32(" ".join(words).encode()) % 10
    return "dev" if slot == 0 else "test" if slot == 1 else "train"
