"""Seeds derived from a run's seed. They are the same in every process, whatever was drawn before."""

from __future__ import annotations

import hashlib


def named_seed(seed: int, name: str) -> int:
    """A 63-bit seed for one matrix. It depends on `seed` and the matrix's name, not on the order of matrices."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_of(*parts: int) -> int:
    """A 56-bit seed for torch from numbers such as (seed, step, share). Similar numbers give unrelated seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
