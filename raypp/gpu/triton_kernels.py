"""Triton kernels for the passes over all weights that pruning makes at every step on a GPU.

This module is imported only if Triton is installed (see `kernels_for`). Each kernel reads its operands once and writes
its results once. Operands that are not contiguous are copied first: a transformer's weights and gradients are
contiguous, so strides are not worth a slower kernel.

Products are computed in float32, or in float64 if an operand is float64. A selection reads all matrices with one launch
for each pass, because a launch for each matrix would take longer than the GPU takes to read it.

Parameters of kernels are annotated with Triton's own types, because Triton reads the annotations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from raypp.noise import CHUNK, WARM_UP

BLOCK = 1024  # numbers at a time: eight for each of 128 threads, two 16-byte loads of float32
TILE = 32 * BLOCK  # scores of a program in a selection
DIGIT_BITS = 8  # of each score, which one pass of a selection looks at
MAX_LISTED = 4096  # scores equal to a threshold that a selection lists, in all its groups together
WARP = 32  # threads


def multiply(weight: Tensor, mask: Tensor, out: Tensor) -> None:
    """See `masked_product.multiply`."""
    assert out.is_contiguous()
    assert weight.shape == mask.shape == out.shape
    _launch(_multiply, out, weight.contiguous(), mask.contiguous(), out, wide=_wide(weight, mask))


def gradients(
    gradient: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    gate_slope: Tensor | None,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor | None, Tensor | None]:
    """See `masked_product.gradients`."""
    operands = [None if tensor is None else tensor.contiguous() for tensor in (gradient, weight, mask, gate_slope)]
    assert all(operand is None or operand.shape == gradient.shape for operand in operands)
    for_weight = None if mask is None else gradient.new_empty(gradient.shape, dtype=dtypes[0])
    for_scores = None if weight is None else gradient.new_empty(gradient.shape, dtype=dtypes[1])
    if for_weight is not None or for_scores is not None:
        _launch(_gradients, gradient, *operands, for_weight, for_scores, wide=_wide(gradient, weight, mask, gate_slope))
    return for_weight, for_scores


def select_largest(
    groups: Sequence[Sequence[Tensor]], counts: Sequence[int]
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Selects the largest scores of each group by radix selection: each of four passes over all scores counts how often
    every value of a digit occurs, from which one more digit of each threshold follows. The host waits for nothing.

    Args:
        groups: vectors of float32 scores, without NaN, on one GPU.
        counts: one n per group, from 1 to the number of its scores: its threshold is the n-th largest of them.

    Returns:
        The threshold of each group [groups]; the masks of the scores at or above it, one per vector; the number of
        those in each vector [vectors], int64; and the scores that equal it, int64 [1 + MAX_LISTED]: their number in all
        vectors and then, in any order, vector * 2**32 + index of each. If they are more than `MAX_LISTED`, some are
        missing.
    """
    vectors = [vector.contiguous() for group in groups for vector in group]
    device = vectors[0].device
    owners, ranks = _on_device([[group for group, members in enumerate(groups) for _ in members], counts], device)
    prefixes = torch.zeros(len(groups), dtype=torch.int64, device=device)
    histograms = torch.zeros(len(groups), 2**DIGIT_BITS, dtype=torch.int64, device=device)
    thresholds = torch.empty(len(groups), dtype=torch.float32, device=device)
    table = _Table([vectors])
    for shift in range(32 - DIGIT_BITS, -1, -DIGIT_BITS):
        table.launch(_count_digits, owners, prefixes, histograms, shift=shift, bits=DIGIT_BITS)
        with torch.cuda.device_of(thresholds):
            _choose_digits[(len(groups),)](histograms, ranks, prefixes, thresholds, shift=shift, bits=DIGIT_BITS)
    tied = torch.zeros(1 + MAX_LISTED, dtype=torch.int64, device=device)
    return thresholds, *_marked(vectors, owners, thresholds, tied), tied


def mark_above(vectors: Sequence[Tensor], threshold: float) -> tuple[list[Tensor], Tensor]:
    """Marks the scores above a threshold.

    Args:
        vectors: float32 scores, without NaN, on one GPU.
        threshold: may be infinite; it is rounded to float32.

    Returns:
        The masks of those scores, one per vector, and their number in each vector [vectors], int64.
    """
    device = vectors[0].device
    owners = torch.zeros(len(vectors), dtype=torch.int64, device=device)
    thresholds = torch.full((1,), ctypes.c_float(threshold).value, dtype=torch.float32, device=device)
    return _marked([vector.contiguous() for vector in vectors], owners, thresholds, None)


def _marked(
    vectors: list[Tensor], owners: Tensor, thresholds: Tensor, tied: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """The masks of the scores above the threshold of their vector's owner, and their numbers. Given `tied`, the masks
    include the scores that equal it, which are listed there (see `select_largest`)."""
    masks = [torch.empty_like(vector, dtype=torch.bool) for vector in vectors]
    counts = torch.zeros(len(vectors), dtype=torch.int64, device=thresholds.device)
    _Table([vectors, masks]).launch(_mark, owners, thresholds, counts, tied, max_listed=MAX_LISTED)
    return masks, counts


def clear(masks: Sequence[Tensor], entries: Sequence[tuple[int, int]]) -> None:
    """Sets entries of masks to False with one launch. The host waits for nothing.

    Args:
        masks: bool vectors on one GPU, contiguous.
        entries: at least one; for each, the number of its mask, and its index there.
    """
    assert all(mask.dtype == torch.bool and mask.is_contiguous() for mask in masks)
    addresses = [masks[number].data_ptr() + index for number, index in entries]  # a bool is a byte
    (sent,) = _on_device([addresses], masks[0].device)
    with torch.cuda.device_of(sent):
        _clear[(len(entries),)](sent, num_warps=1)


def sample_gates(
    matrices: Sequence[Tensor],
    seeds: Sequence[int],
    lift: Tensor | None,
    stretch: tuple[float, float],
    margin: float,
) -> list[tuple[Tensor, Tensor]]:
    """The hard concrete gates of each matrix + lift, and their derivatives (see `gates.sample_gates`), with the noise
    of `raypp/noise.py`.

    Args:
        matrices: float32, any shape, on one GPU.
        seeds: one per matrix, below 2**63.
        lift: scalar on the same GPU; None for 0.
        stretch: the interval to which gates are stretched before they are clamped to [0, 1].
        margin: the noise stays this far from 0 and 1.
    """
    matrices = [matrix.contiguous() for matrix in matrices]
    device = matrices[0].device
    (sent,) = _on_device([seeds], device)
    words = [torch.empty(triton.cdiv(matrix.numel(), 4), dtype=torch.int64, device=device) for matrix in matrices]
    # A thread draws all words of a chunk, so that a program of one warp has as many chunks as threads.
    chunk = {"tile": WARP * CHUNK // 4, "block": WARP, "chunk_words": CHUNK // 4, "warm_up": WARM_UP}
    _Table([words]).launch(_draw, sent, num_warps=1, **chunk)
    gates, slopes = ([torch.empty_like(matrix) for matrix in matrices] for _ in range(2))
    table = _Table([matrices, words, gates, slopes])
    table.launch(_sample_gates, lift, low=stretch[0], stretch=stretch[1] - stretch[0], margin=margin)
    return list(zip(gates, slopes, strict=True))


class _Table:
    """Where several vectors are, and what belongs to each of them, so that one launch serves them all."""

    def __init__(self, columns: Sequence[Sequence[Tensor]]) -> None:
        """
        Args:
            columns: contiguous vectors on one GPU, and other columns with as many contiguous tensors.
        """
        assert all(tensor.is_contiguous() for column in columns for tensor in column)
        addresses = [[tensor.data_ptr() for tensor in column] for column in columns]
        sizes = [vector.numel() for vector in columns[0]]
        self._columns = _on_device([*addresses, sizes], columns[0][0].device)
        self._largest = max(sizes)
        self._is_aligned = all(number % 16 == 0 for column in (*addresses, sizes) for number in column)

    def launch(
        self, kernel: Any, *arguments: Tensor | None, tile: int = TILE, block: int = BLOCK, **constants: Any
    ) -> None:
        """Runs a kernel with programs of `tile` elements for every vector. Its first arguments are the table's columns
        of addresses and that of sizes."""
        grid = triton.cdiv(self._largest, tile), self._columns[0].numel()
        with torch.cuda.device_of(self._columns[0]):  # Triton launches on the current device, not on the tensors'
            kernel[grid](*self._columns, *arguments, tile=tile, block=block, is_aligned=self._is_aligned, **constants)


def _on_device(columns: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """The integers of each column on a device, int64, copied there together. The host does not wait for the copy."""
    numbers = torch.tensor([number for column in columns for number in column], dtype=torch.int64)
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return list(numbers.to(device, non_blocking=True).split([len(column) for column in columns]))


def _launch(kernel: Any, like: Tensor, *arguments: Tensor | None, wide: Any) -> None:
    with torch.cuda.device_of(like):  # Triton launches on the current device, not on that of the tensors
        kernel[(triton.cdiv(like.numel(), BLOCK),)](*arguments, like.numel(), wide=wide, block=BLOCK)


def _wide(*operands: Tensor | None) -> Any:
    """The type to compute in."""
    is_double = any(operand is not None and operand.dtype == torch.float64 for operand in operands)
    return tl.float64 if is_double else tl.float32


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(
    weight: tl.tensor, mask: tl.tensor, out: tl.tensor, size: tl.tensor, wide: tl.constexpr, block: tl.constexpr
) -> None:
    """out = weight * mask, over `size` numbers."""
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < size
    product = tl.load(weight + index, mask=inside).to(wide) * tl.load(mask + index, mask=inside).to(wide)
    tl.store(out + index, product.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gradients(
    gradient: tl.tensor,
    weight: tl.tensor,
    mask: tl.tensor,
    gate_slope: tl.tensor,
    for_weight: tl.tensor,
    for_scores: tl.tensor,
    size: tl.tensor,
    wide: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """for_weight = gradient * mask, for_scores = gradient * weight * gate_slope; one that is None is not computed."""
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < size
    arriving = tl.load(gradient + index, mask=inside).to(wide)
    if for_weight is not None:
        product = arriving * tl.load(mask + index, mask=inside).to(wide)
        tl.store(for_weight + index, product.to(for_weight.dtype.element_ty), mask=inside)
    if for_scores is not None:
        product = arriving * tl.load(weight + index, mask=inside).to(wide)
        if gate_slope is not None:
            product *= tl.load(gate_slope + index, mask=inside).to(wide)
        tl.store(for_scores + index, product.to(for_scores.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _count_digits(
    scores: tl.tensor,
    sizes: tl.tensor,
    owners: tl.tensor,
    prefixes: tl.tensor,
    histograms: tl.tensor,
    shift: tl.constexpr,
    bits: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
    is_aligned: tl.constexpr,
) -> None:
    """histograms[group, digit] += how many keys of its vectors begin with the group's prefix and have this digit next.

    A key has the order of its score, as an unsigned integer. Its digit is the `bits` bits from bit `shift` on, and the
    prefix is all bits above them.
    """
    vector = tl.program_id(1)
    size = _size(sizes + vector, is_aligned)
    begin = tl.program_id(0).to(tl.int64) * tile
    if begin < size:
        group = tl.load(owners + vector)
        prefix = tl.load(prefixes + group)
        values = _pointer(scores + vector, tl.float32, is_aligned)
        digits = tl.arange(0, 1 << bits)
        counts = tl.zeros([1 << bits], tl.int32)
        unmatched = tl.zeros([block], tl.int32)
        for start in range(0, tl.minimum(tile, size - begin), block):
            index = begin + start + tl.arange(0, block)
            matches = index < size
            score = tl.load(values + index, mask=matches, other=0.0).to(tl.int32, bitcast=True)
            score = tl.where(score == -2147483648, 0, score)  # -0.0 equals 0.0
            key = (score ^ ((score >> 31) | -2147483648)).to(tl.uint32, bitcast=True).to(tl.int64)
            matches = matches & ((key >> (shift + bits)) == prefix)
            counts += tl.histogram(tl.where(matches, (key >> shift) & ((1 << bits) - 1), 0).to(tl.int32), 1 << bits)
            unmatched += tl.where(matches, 0, 1)
        # The other keys were counted as digit 0, because `tl.histogram` had no mask before Triton 3.3.
        counts -= tl.where(digits == 0, tl.sum(unmatched, axis=0), 0)
        tl.atomic_add(histograms + (group << bits) + digits, counts.to(tl.int64), mask=counts > 0, sem="relaxed")


@triton.jit  # type: ignore[untyped-decorator]
def _choose_digits(
    histograms: tl.tensor,
    ranks: tl.tensor,
    prefixes: tl.tensor,
    thresholds: tl.tensor,
    shift: tl.constexpr,
    bits: tl.constexpr,
) -> None:
    """Appends to a group's prefix the next digit of its threshold, the `ranks`-th largest of the keys with this prefix.

    The rank becomes that among the keys with the longer prefix, and the histogram is cleared. After the last digit, the
    key is turned into the threshold.
    """
    group = tl.program_id(0)
    digits = tl.arange(0, 1 << bits)
    counts = tl.load(histograms + (group << bits) + digits)
    rank = tl.load(ranks + group)
    with_higher = tl.cumsum(counts, axis=0, reverse=True)
    digit = tl.sum((with_higher >= rank).to(tl.int64), axis=0) - 1
    key = (tl.load(prefixes + group) << bits) | digit
    tl.store(ranks + group, rank - tl.sum(tl.where(digits > digit, counts, 0), axis=0))
    tl.store(prefixes + group, key)
    tl.store(histograms + (group << bits) + digits, tl.zeros_like(counts))
    if shift == 0:
        score = tl.where(key >= 2147483648, key - 2147483648, 4294967295 - key).to(tl.uint32)
        tl.store(thresholds + group, score.to(tl.float32, bitcast=True))


@triton.jit  # type: ignore[untyped-decorator]
def _mark(
    scores: tl.tensor,
    masks: tl.tensor,
    sizes: tl.tensor,
    owners: tl.tensor,
    thresholds: tl.tensor,
    counts: tl.tensor,
    tied: tl.tensor,
    max_listed: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
    is_aligned: tl.constexpr,
) -> None:
    """Marks the scores above their owner's threshold, and adds their number to their vector's count.

    If `tied` is not None, scores that equal the threshold are marked and counted, too, and listed there.
    """
    vector = tl.program_id(1)
    size = _size(sizes + vector, is_aligned)
    begin = tl.program_id(0).to(tl.int64) * tile
    if begin < size:
        threshold = tl.load(thresholds + tl.load(owners + vector))
        values, mask = _pointer(scores + vector, tl.float32, is_aligned), _pointer(masks + vector, tl.int8, is_aligned)
        marked = tl.zeros([block], tl.int32)
        equal = tl.zeros([block], tl.int32)
        for start in range(0, tl.minimum(tile, size - begin), block):
            index = begin + start + tl.arange(0, block)
            inside = index < size
            score = tl.load(values + index, mask=inside, other=0.0)
            is_marked = score > threshold if tied is None else score >= threshold
            tl.store(mask + index, is_marked.to(tl.int8), mask=inside)
            marked += tl.where(is_marked & inside, 1, 0)
            if tied is not None:
                equal += tl.where((score == threshold) & inside, 1, 0)
        tl.atomic_add(counts + vector, tl.sum(marked, axis=0).to(tl.int64), sem="relaxed")
        if tied is not None:
            number = tl.sum(equal, axis=0).to(tl.int64)
            if number > 0:  # in few programs, which read their scores again, to list those that are equal
                place = tl.atomic_add(tied, number, sem="relaxed")
                if place < max_listed:
                    for start in range(0, tl.minimum(tile, size - begin), block):
                        index = begin + start + tl.arange(0, block)
                        inside = index < size
                        is_equal = (tl.load(values + index, mask=inside, other=0.0) == threshold) & inside
                        ones = tl.where(is_equal, 1, 0)
                        places = place + tl.cumsum(ones, axis=0)  # from 1 on, because the number is at 0
                        entry = (vector.to(tl.int64) << 32) | index
                        tl.store(tied + places, entry, mask=is_equal & (places <= max_listed))
                        place += tl.sum(ones, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _clear(addresses: tl.tensor) -> None:
    """Sets the bool at each address to False; one program for each."""
    tl.store(_pointer(addresses + tl.program_id(0), tl.int8, False), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _draw(
    words: tl.tensor,
    sizes: tl.tensor,
    seeds: tl.tensor,
    chunk_words: tl.constexpr,
    warm_up: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
    is_aligned: tl.constexpr,
) -> None:
    """Fills a vector with the 64-bit words of its seed's noise; each thread draws a chunk of them with SFC64."""
    vector = tl.program_id(1)
    size = _size(sizes + vector, is_aligned)
    begin = tl.program_id(0).to(tl.int64) * tile
    if begin < size:
        out = _pointer(words + vector, tl.uint64, is_aligned)
        chunk = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        a = tl.zeros([block], tl.uint64) + tl.load(seeds + vector).to(tl.uint64)
        b = chunk.to(tl.uint64)
        c = tl.zeros([block], tl.uint64)
        counter = c + 1
        first = chunk * chunk_words - warm_up
        for drawn in range(0, warm_up + tl.minimum(size - begin, chunk_words)):
            raw = a + b + counter
            counter += 1
            a = b ^ (b >> 11)
            b = c + (c << 3)
            c = ((c << 24) | (c >> 40)) + raw
            tl.store(out + first + drawn, raw, mask=(drawn >= warm_up) & (first + drawn < size))


@triton.jit  # type: ignore[untyped-decorator]
def _sample_gates(
    scores: tl.tensor,
    words: tl.tensor,
    gates: tl.tensor,
    slopes: tl.tensor,
    sizes: tl.tensor,
    lift: tl.tensor,
    low: tl.constexpr,
    stretch: tl.constexpr,
    margin: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
    is_aligned: tl.constexpr,
) -> None:
    """The gates of scores + lift, and their derivatives.

    With a temperature of 2/3, sigmoid((logit(u) + score) / temperature) is 1 / (1 + r * sqrt(r)) of
    r = exp(-score) * (1 - u) / u: no logarithm.
    """
    vector = tl.program_id(1)
    size = _size(sizes + vector, is_aligned)
    begin = tl.program_id(0).to(tl.int64) * tile
    if begin < size:
        values, noise = (
            _pointer(scores + vector, tl.float32, is_aligned),
            _pointer(words + vector, tl.uint16, is_aligned),
        )
        gate, slope = (
            _pointer(gates + vector, tl.float32, is_aligned),
            _pointer(slopes + vector, tl.float32, is_aligned),
        )
        for start in range(0, tl.minimum(tile, size - begin), block):
            index = begin + start + tl.arange(0, block)
            inside = index < size
            score = tl.load(values + index, mask=inside, other=0.0)
            if lift is not None:
                score += tl.load(lift)
            uniform = (tl.load(noise + index, mask=inside, other=0).to(tl.float32) + 0.5) * (1 / 65536)
            uniform = tl.minimum(tl.maximum(uniform, margin), 1 - margin)
            odds = tl.exp(-tl.minimum(tl.maximum(score, -80.0), 80.0)) * ((1 - uniform) / uniform)
            sigmoid = 1 / (1 + odds * tl.sqrt_rn(odds))
            stretched = low + stretch * sigmoid
            clamped = tl.minimum(tl.maximum(stretched, 0.0), 1.0)
            steepness = tl.where(stretched == clamped, 1.5 * stretch * sigmoid * (1 - sigmoid), 0.0)
            tl.store(gate + index, clamped, mask=inside)
            tl.store(slope + index, steepness, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _pointer(address: tl.tensor, kind: tl.constexpr, is_aligned: tl.constexpr) -> tl.tensor:
    """The pointer to numbers of a kind whose address is there; `is_aligned` if it is a multiple of 16."""
    pointer = tl.load(address).to(tl.pointer_type(kind))
    if is_aligned:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit  # type: ignore[untyped-decorator]
def _size(size: tl.tensor, is_aligned: tl.constexpr) -> tl.tensor:
    """The size that is there; `is_aligned` if it is a multiple of 16, so that no wide load or store crosses the end."""
    loaded = tl.load(size)
    if is_aligned:
        loaded = tl.multiple_of(loaded, 16)
    return loaded
