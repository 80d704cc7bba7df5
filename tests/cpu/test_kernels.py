"""The C kernels against plain torch: products, gradients, selections, penalties; and how they are compiled."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from c_kernels import needs_compiler, without_kernels
from torch import Tensor, nn

from raypp.cpu.kernels import Kernels
from raypp.pruning import masked_product
from raypp.pruning.masks import Selection, ThresholdHint, keep_above, keep_largest
from raypp.pruning.penalty import add_penalty

SPECIAL = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -3e38])


def numbers(size: int, seed: int) -> Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    values[:: max(1, size // 50)] = SPECIAL[torch.arange(len(values[:: max(1, size // 50)])) % len(SPECIAL)]
    return values


def same_bits(one: Tensor, other: Tensor) -> bool:
    """NaN equals NaN, and 0.0 does not equal -0.0."""
    is_nan = one.isnan() & other.isnan()
    return torch.equal(one[~is_nan].view(torch.int32), other[~is_nan].view(torch.int32))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A context in which there are no kernels."""
    with monkeypatch.context() as context:
        yield context


@needs_compiler
@pytest.mark.parametrize("size", [1, 63, 64, 1000, 70_001])
def test_products_and_gradients_are_torchs_bit_for_bit(size: int, plain: pytest.MonkeyPatch) -> None:
    weight, gradient = numbers(size, 1), numbers(size, 2)
    kept = torch.rand(size, generator=torch.Generator().manual_seed(3)) > 0.5
    gates, slope = numbers(size, 4), numbers(size, 5)
    types = torch.float32, torch.float32

    def all_of_them() -> list[Tensor]:
        found = [masked_product.multiply(weight, kept, torch.full_like(weight, 7))]
        for mask, derivative in ((kept, None), (gates, slope)):
            found += [g for g in masked_product.gradients(gradient, weight, mask, derivative, types) if g is not None]
        return found

    ours = all_of_them()
    without_kernels(plain)
    expected = all_of_them()
    assert len(ours) == len(expected) == 5
    assert all(same_bits(one, other) for one, other in zip(ours, expected, strict=True))


@needs_compiler
def test_autograd_sees_that_a_kernel_wrote_a_new_product() -> None:
    weight, mask, product = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bool), torch.empty(4, 4)
    masked_product.multiply(weight, mask, product)
    inputs = torch.ones(2, 4, requires_grad=True)
    loss = nn.functional.linear(inputs, product).sum()
    masked_product.multiply(weight, ~mask, product)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        loss.backward()


@needs_compiler
@pytest.mark.parametrize("size", [1, 64, 16_384, 50_001])
def test_a_selection_is_that_of_a_full_search(size: int, plain: pytest.MonkeyPatch) -> None:
    """Over steps, so that thresholds are looked for near the last: drifting, tied, jumping and infinite scores."""
    hints, found, expected = [ThresholdHint(), ThresholdHint()], [], []
    for results in (found, expected):
        generator = torch.Generator().manual_seed(size)
        scores = [torch.randn(size, generator=generator) * 0.01, torch.randn(size, generator=generator) * 0.01]
        for step in range(12):
            for matrix in scores:
                matrix += 0.001 * torch.randn(size, generator=generator) + (1.0 if step == 6 else 0.0)
            scores[1][: size // 2] = scores[1][size // 2]
            scores[0][0] = torch.inf if step % 2 else -torch.inf
            hint = hints[0] if results is found else None
            results += keep_largest([Selection(scores, max(1, size // 5), [1, 2], hint)])[0]
        without_kernels(plain)
    assert [int(mask.sum()) for mask in found] == [int(mask.sum()) for mask in expected]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_selections_that_are_made_together_are_those_of_each_alone(threads: int) -> None:
    """Matrices smaller and larger than a thread's part, over steps; the first of a selection all alike."""
    sizes = [[7, 40_000, 1], [16_384], [300, 300, 5_000], [2, 9]]
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        scores = [[torch.randn(size, generator=generator) for size in each] for each in sizes]
        hints = [ThresholdHint() for _ in sizes]
        for step in range(8):
            for each in scores:
                for matrix in each[1:] or each:
                    matrix += 1e-3 * torch.randn(len(matrix), generator=generator)
            counts = [max(1, (10 - step) * sum(each) // 20) for each in sizes]
            seeds = [list(range(len(each))) for each in sizes]
            rows = list(zip(scores, counts, seeds, strict=True))
            together = keep_largest([Selection(*row, hint) for row, hint in zip(rows, hints, strict=True)])
            for row, masks in zip(rows, together, strict=True):
                (alone,) = keep_largest([Selection(*row)])
                assert all(torch.equal(one, other) for one, other in zip(masks, alone, strict=True))
    finally:
        torch.set_num_threads(usual)


def test_a_norm_is_torchs_whatever_the_threads_and_shows_what_is_not_finite(kernels: Kernels) -> None:
    sizes = (1, 513, 100_003, 131_072, 300_000)
    tensors = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in sizes]
    expected = sum(float(tensor.double().square().sum()) for tensor in tensors)
    usual, found = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.add(kernels.sum_squares(tensors))
    finally:
        torch.set_num_threads(usual)
    assert len(found) == 1
    assert found.pop() == pytest.approx(expected, rel=1e-6)
    tensors[2][77_777] = torch.inf
    assert kernels.sum_squares(tensors) == torch.inf
    tensors[0][0] = torch.nan
    assert math.isnan(kernels.sum_squares(tensors))


@pytest.mark.parametrize("decay", [0.5, 0.9999, 1 - 1e-9])
def test_a_running_mean_is_torchs(decay: float, kernels: Kernels) -> None:
    mean, gradient = torch.rand(1001, generator=torch.Generator().manual_seed(1)), numbers(1001, 2)
    expected = mean.clone().mul_(decay).addcmul_(gradient, gradient, value=(1.0 - decay) * 32)
    kernels.average_squares(mean, gradient, decay, 32)
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("threshold", [-torch.inf, 0.3, 5.0, torch.inf])
def test_what_is_above_a_threshold_is_what_torch_finds(threshold: float, plain: pytest.MonkeyPatch) -> None:
    scores = [torch.randn(size, generator=torch.Generator().manual_seed(size)).view(-1, 3) for size in (3, 300, 30_000)]
    scores[1][:5] = 0.3
    found = keep_above(scores, threshold, [1, 20, 30], [1, 2, 3])
    without_kernels(plain)
    assert all(
        torch.equal(a, b) for a, b in zip(found, keep_above(scores, threshold, [1, 20, 30], [1, 2, 3]), strict=True)
    )


@needs_compiler
@pytest.mark.parametrize("kind", ["l1", "l0"])
def test_a_penalty_adds_what_torch_adds(kind: str, plain: pytest.MonkeyPatch) -> None:
    def penalized() -> tuple[Tensor, list[Tensor | None]]:
        matrices = [nn.Parameter(torch.linspace(-90, 90, size)) for size in (1, 500, 4001)]
        matrices[1].grad = torch.linspace(-1, 1, 500)
        return add_penalty(matrices, kind, "per_matrix", 30.0), [matrix.grad for matrix in matrices]  # type: ignore[arg-type]

    value, gradients = penalized()
    without_kernels(plain)
    plain_value, plain_gradients = penalized()
    torch.testing.assert_close(value, plain_value, rtol=1e-6, atol=0)
    for one, other in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@dataclass
class Loaded:
    """How a process of its own would come by its kernels."""

    has_kernels: bool
    warnings: list[str]


@pytest.fixture
def load_anew(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[..., Loaded]:
    """Multiplies twice with a mask, with the module imported anew in an environment."""

    def load(cache: Path, **environment: str) -> Loaded:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.find_spec("raypp.cpu.kernels")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(masked_product, "cpu_kernels", module)
        caplog.clear()
        weight, mask = torch.tensor([2.0, 3.0]), torch.tensor([True, False])
        for _ in range(2):
            assert masked_product.multiply(weight, mask, torch.empty(2)).tolist() == [2.0, 0.0]
        return Loaded(module.kernels_for(weight) is not None, [record.getMessage() for record in caplog.records])

    return load


@pytest.mark.skipif(platform.system() != "Linux", reason="the C kernels are for Linux")
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "no C compiler 'no-such-compiler'"),
        ("false", "no C kernels"),
        ('gcc "', "No closing quotation"),
    ],
)
def test_where_no_compiler_works_torch_serves_and_that_is_said_once(
    compiler: str, reason: str, load_anew: Callable[..., Loaded], tmp_path: Path
) -> None:
    loaded = load_anew(tmp_path, CC=compiler)
    assert not loaded.has_kernels
    (warning,) = loaded.warnings
    assert warning.startswith("no C kernels, so masks, dropout and the optimizer take longer: ")
    assert reason in warning
    assert not list(tmp_path.glob("raypp/*")), "half a file is not left"


@needs_compiler
def test_a_machine_compiles_once_and_anew_what_is_damaged(load_anew: Callable[..., Loaded], tmp_path: Path) -> None:
    log = tmp_path / "compilations"
    compiler = tmp_path / "counting-cc"
    compiler.write_text(f'#!/bin/sh\necho compiled >> {log}\nexec {os.environ.get("CC", "cc")} "$@"\n')
    compiler.chmod(0o755)
    for _ in range(2):
        assert load_anew(tmp_path / "whole", CC=str(compiler)) == Loaded(True, [])
    assert log.read_text().splitlines() == ["compiled"]
    folder = tmp_path / "whole" / "raypp"
    assert folder.stat().st_mode & 0o077 == 0, "nobody else can write what is loaded"

    # In another place, since this process has the first one in its memory.
    (library,) = folder.iterdir()
    damaged = tmp_path / "damaged" / "raypp" / library.name
    damaged.parent.mkdir(mode=0o700, parents=True)
    damaged.write_bytes(library.read_bytes()[:100])
    assert load_anew(tmp_path / "damaged", CC=str(compiler)) == Loaded(True, [])
    assert log.read_text().splitlines() == ["compiled"] * 2
    assert damaged.stat().st_size == library.stat().st_size


@needs_compiler
@pytest.mark.parametrize("what", ["a file in its place", "others may write"])
def test_kernels_need_no_cache_and_take_none_that_is_not_safe(
    what: str, load_anew: Callable[..., Loaded], tmp_path: Path
) -> None:
    """The compiler's name is empty here, which is no name."""
    folder = tmp_path / "raypp"
    if what == "others may write":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.write_text("")
    assert load_anew(tmp_path, CC="") == Loaded(True, [])
    assert not folder.is_dir() or list(folder.iterdir()) == []


@needs_compiler
def test_kernels_use_the_threads_of_torch() -> None:
    """A second OpenMP would have threads of its own, which wait for a core on which torch's spin."""
    script = (
        "import torch\n"
        "from raypp.cpu import kernels\n"
        "assert kernels.kernels_for(torch.ones(2)) is not None\n"
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line})\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.count("libgomp") == 1, ran.stdout
