"""C kernels (kernels.c) for dropout and for the passes over all weights that pruning and the optimizer make at every
step on a CPU. Each kernel reads its operands and writes its results once, on torch's own threads.

Like Triton's, the kernels are compiled on first use, with the machine's C compiler and for its processor, and kept in
the user's cache. A machine without a C compiler trains in plain torch, and a warning says so once. Callers ask
`kernels_for`, and compute the same in plain torch where it returns None; tests compare the two.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("raypp")

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
COMPILE_SECONDS = 120.0
PROCESSOR_LINES = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant")  # x86, ARM

_SIZE, _FLOAT, _POINTER, _INT = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p, ctypes.c_int
# The types that matrices are multiplied in, and the ends of the names of the kernels for them.
_TYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    **{f"multiply_{name}": (None, [_SIZE, *[_POINTER] * 3, _INT]) for name in _TYPES.values()},
    **{f"gradients_{name}": (None, [_SIZE, *[_POINTER] * 5, _INT]) for name in _TYPES.values()},
    **{f"gate_gradients_{name}": (None, [_SIZE, *[_POINTER] * 6, _INT]) for name in _TYPES.values()},
    **{
        f"dropout_{name}": (None, [_SIZE, _POINTER, _POINTER, ctypes.c_uint64, ctypes.c_uint32, _FLOAT, _INT])
        for name in _TYPES.values()
    },
    "mark_above": (_SIZE, [_SIZE, _POINTER, _FLOAT, _POINTER, _INT]),
    "select_near": (None, [_SIZE, *[_POINTER] * 10, _INT]),
    "sum_squares": (ctypes.c_double, [_SIZE, _POINTER, _POINTER, _INT]),
    "adamw": (None, [_SIZE, *[_POINTER] * 6, *[ctypes.c_double] * 6, _INT]),
    "average_squares": (None, [_SIZE, _POINTER, _POINTER, ctypes.c_double, ctypes.c_double, _INT]),
    "add_sigmoid_gradient": (ctypes.c_double, [_SIZE, _POINTER, _FLOAT, _FLOAT, _POINTER, _INT]),
    "sample_gates": (None, [_SIZE, *[_POINTER] * 3, *[_FLOAT] * 4, _POINTER, _POINTER, _INT]),
}


class Kernels:
    """The compiled kernels, for tensors that `kernels_for` accepts. Autograd does not see what they do."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    def _of(self, name: str, tensor: Tensor) -> Callable[..., None]:
        """The kernel for a tensor of this type."""
        function: Callable[..., None] = getattr(self._library, f"{name}_{_TYPES[tensor.dtype]}")
        return function

    def multiply(self, weight: Tensor, mask: Tensor, out: Tensor) -> None:
        """out = weight * mask, which is bool; `out` may be bfloat16."""
        _require(weight, mask, or_bfloat16=out)
        self._of("multiply", out)(
            weight.numel(), weight.data_ptr(), mask.data_ptr(), out.data_ptr(), torch.get_num_threads()
        )

    def gradients(
        self, gradient: Tensor, weight: Tensor, mask: Tensor, gate_slope: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns gradient * mask and gradient * weight; for gates, gradient * mask and gradient * weight * gate_slope.
        The gradient is float32 or bfloat16, the results are float32."""
        factors = [weight, mask] if gate_slope is None else [weight, mask, gate_slope]
        _require(*factors, or_bfloat16=gradient)
        assert (mask.dtype == torch.bool) == (gate_slope is None)
        results = torch.empty_like(weight), torch.empty_like(weight)
        kernel = self._of("gradients" if gate_slope is None else "gate_gradients", gradient)
        pointers = [tensor.data_ptr() for tensor in (gradient, *factors, *results)]
        kernel(gradient.numel(), *pointers, torch.get_num_threads())
        return results

    def dropout(self, inputs: Tensor, dropped: int, scale: float, seed: int) -> Tensor:
        """Returns inputs * scale, or 0 where a random number of 16 bits is below `dropped`; float32 or bfloat16."""
        _require(or_bfloat16=inputs)
        outputs = torch.empty_like(inputs)
        self._of("dropout", inputs)(
            inputs.numel(), inputs.data_ptr(), outputs.data_ptr(), seed, dropped, scale, torch.get_num_threads()
        )
        return outputs

    def mark_above(self, scores: Tensor, threshold: float) -> tuple[Tensor, int]:
        """Returns scores > threshold, and the number of those scores."""
        mask = torch.empty(scores.shape, dtype=torch.bool)
        _require(scores, mask)
        return mask, self._library.mark_above(
            scores.numel(), scores.data_ptr(), threshold, mask.data_ptr(), torch.get_num_threads()
        )

    def select_near(
        self, groups: Sequence[Sequence[Tensor]], counts: Sequence[int], ranges: Sequence[tuple[float, float]]
    ) -> list[tuple[float, list[Tensor], list[int]] | None]:
        """Selects the largest scores of each group, if the threshold is where it is expected.

        Args:
            groups: vectors of fewer than 2**32 scores.
            counts: one n per group: its threshold is the n-th largest score of its vectors together.
            ranges: one per group: the lowest and the highest value that the threshold may have, rounded to float32.

        Returns:
            For each group the threshold, the masks of the scores at or above it, and the number of those in each
            vector; None for a group whose threshold is not in its range.
        """
        scores = [vector for group in groups for vector in group]
        masks = [torch.empty(vector.shape, dtype=torch.bool) for vector in scores]
        _require(*scores, *masks)
        sizes = np.array([vector.numel() for vector in scores], np.int64)
        first = np.cumsum([0, *[len(group) for group in groups]], dtype=np.int64)
        with np.errstate(over="ignore"):  # beyond float32's range: infinity
            lows, highs = np.array(ranges, np.float32).T.copy()
        wanted, kept = np.array(counts, np.int64), np.empty(len(scores), np.int64)
        thresholds = np.empty(len(groups), np.float32)
        near = torch.empty(int(sizes.sum()), dtype=torch.int64)  # only the part for scores in the ranges is touched
        self._library.select_near(
            len(groups),
            *[array.ctypes.data for array in (first, wanted, lows, highs, sizes)],
            _pointers(scores),
            _pointers(masks),
            near.data_ptr(),
            thresholds.ctypes.data,
            kept.ctypes.data,
            torch.get_num_threads(),
        )
        return [
            None if math.isnan(threshold) else (threshold, masks[begin:end], kept[begin:end].tolist())
            for threshold, begin, end in zip(thresholds.tolist(), first[:-1].tolist(), first[1:].tolist(), strict=True)
        ]

    def average_squares(self, mean: Tensor, gradient: Tensor, decay: float, factor: float) -> None:
        """mean = decay * mean + (1 - decay) * factor * gradient^2, in place."""
        _require(mean, gradient)
        self._library.average_squares(
            mean.numel(), mean.data_ptr(), gradient.data_ptr(), decay, factor, torch.get_num_threads()
        )

    def sum_squares(self, tensors: Sequence[Tensor]) -> float:
        """The sum of the squares of all numbers."""
        _require(*tensors)
        total: float = self._library.sum_squares(
            len(tensors), _sizes(tensors), _pointers(tensors), torch.get_num_threads()
        )
        return total

    def adamw(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        means: Sequence[Tensor],
        squares: Sequence[Tensor],
        steps: Sequence[float],
        *,
        rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        epsilon: float,
        scale: float,
    ) -> None:
        """A step of AdamW in place: parameters and both moments.

        Args:
            steps: number of steps of each parameter, including this one.
            scale: factor of the gradients.
        """
        _require(*parameters, *gradients, *means, *squares)
        self._library.adamw(
            len(parameters),
            _sizes(parameters),
            *[_pointers(tensors) for tensors in (parameters, gradients, means, squares)],
            (ctypes.c_double * len(steps))(*steps),
            rate,
            weight_decay,
            *betas,
            epsilon,
            scale,
            torch.get_num_threads(),
        )

    def add_sigmoid_gradient(self, scores: Tensor, shift: float, factor: float, gradient: Tensor) -> float:
        """gradient += factor * d sigmoid(scores + shift) / d scores; returns the sum of the sigmoids."""
        _require(scores, gradient)
        total: float = self._library.add_sigmoid_gradient(
            scores.numel(), scores.data_ptr(), shift, factor, gradient.data_ptr(), torch.get_num_threads()
        )
        return total

    def sample_gates(
        self, matrices: Sequence[Tensor], seeds: Sequence[int], lift: float, stretch: tuple[float, float], margin: float
    ) -> list[tuple[Tensor, Tensor]]:
        """Returns the hard concrete gates of each matrix + lift, and their derivatives (see `gates.sample_gates`)."""
        _require(*matrices)
        gates, slopes = ([torch.empty_like(matrix) for matrix in matrices] for _ in range(2))
        self._library.sample_gates(
            len(matrices),
            _sizes(matrices),
            _pointers(matrices),
            (ctypes.c_uint64 * len(seeds))(*seeds),
            lift,
            *stretch,
            margin,
            _pointers(gates),
            _pointers(slopes),
            torch.get_num_threads(),
        )
        return list(zip(gates, slopes, strict=True))


def _require(*tensors: Tensor, or_bfloat16: Tensor | None = None) -> None:
    """Checks the arguments, because the kernels cannot."""
    assert _fit(tensors, or_bfloat16)


def _sizes(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    return (_SIZE * len(tensors))(*[tensor.numel() for tensor in tensors])


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (_POINTER * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def kernels_for(*tensors: Tensor, or_bfloat16: Tensor | None = None) -> Kernels | None:
    """The kernels, if they accept these tensors: float32 (masks: bool), contiguous, on the CPU; otherwise None.

    Args:
        or_bfloat16: a further tensor, which may also be bfloat16.
    """
    return _kernels() if _fit(tensors, or_bfloat16) else None


def _fit(tensors: Sequence[Tensor], or_bfloat16: Tensor | None) -> bool:
    mixed = [] if or_bfloat16 is None else [or_bfloat16]
    return (
        all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in (*tensors, *mixed))
        and all(tensor.dtype in (torch.float32, torch.bool) for tensor in tensors)
        and all(tensor.dtype in _TYPES for tensor in mixed)
    )


@functools.cache
def _kernels() -> Kernels | None:
    """The kernels, compiled if the cache does not have them; None where they cannot be compiled.

    They are used on Linux only, where gcc and torch share OpenMP's library and therefore its threads. (Clang has a
    library of its own, whose threads would wait for the cores that torch's threads use.) The kernels read bytes out of
    words, the lowest first, so that the machine must be little-endian.
    """
    if platform.system() != "Linux" or sys.byteorder != "little":
        return None
    try:
        return Kernels(_load())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        logger.warning("no C kernels, so masks, dropout and the optimizer take longer: %s", reason)
        return None


def _load() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CC") or "cc")  # ValueError: a quotation mark is not closed
    command = [*compiler, *FLAGS]
    processor, folder = _processor(), _cache()
    if processor is not None and folder is not None:
        key = hashlib.sha256("\n".join([SOURCE.read_text(), *command, processor]).encode()).hexdigest()[:16]
        library = folder / f"cpu_kernels-{key}.so"
        if library.exists():
            # A file that a crash cut short, or one of another system that shares the home folder: compiled again.
            with contextlib.suppress(OSError):
                return ctypes.CDLL(str(library))
        _compile(command, library)
        return ctypes.CDLL(str(library))
    with tempfile.TemporaryDirectory(prefix="raypp-") as own:
        _compile(command, Path(own) / "cpu_kernels.so")
        return ctypes.CDLL(str(Path(own) / "cpu_kernels.so"))


def _cache() -> Path | None:
    """The folder of compiled code, which nobody else can write to, because the code is loaded. None if there is no such
    folder; then each process compiles for itself."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "raypp"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the home folder is read-only or missing, or the user has none
        return None
    status = folder.stat()
    is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if is_own and os.access(folder, os.W_OK) else None


def _compile(command: Sequence[str], library: Path) -> None:
    """Compiles into another file first, because several processes may compile at the same time."""
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"no C compiler {command[0]!r}; install one, or name it in the variable CC")
    descriptor, unfinished = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(descriptor)
    try:
        subprocess.run(
            [*command, "-o", unfinished, str(SOURCE), "-lm"],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
        )
        os.replace(unfinished, library)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _processor() -> str | None:
    """The processor that the machine code is for, because machines may share the cache; None if it is not known."""
    lines = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(PROCESSOR_LINES)}
    return "\n".join([platform.machine(), *sorted(lines)]) if lines else None
