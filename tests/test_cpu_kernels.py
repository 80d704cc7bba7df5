"""The C kernels against plain torch: products, gradients, selections, penalties; and how they are compiled."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raypp import cpu_kernels
from raypp.pruning import masked_product
from raypp.pruning.masks import Selection, ThresholdHint, keep_above, keep_largest
from raypp.pruning.penalty import add_penalty

SPECIAL = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -3e38])
needs_compiler = pytest.mark.skipif(cpu_kernels._kernels() is None, reason="no C compiler here")


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


def without_kernels(context: pytest.MonkeyPatch) -> None:
    context.setattr(cpu_kernels, "kernels_for", lambda *tensors, **mixed: None)


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


@needs_compiler
def test_a_norm_is_torchs_whatever_the_threads_and_shows_what_is_not_finite() -> None:
    kernels = cpu_kernels._kernels()
    assert kernels is not None
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


@needs_compiler
@pytest.mark.parametrize("decay", [0.5, 0.9999, 1 - 1e-9])
def test_a_running_mean_is_torchs(decay: float) -> None:
    kernels = cpu_kernels._kernels()
    assert kernels is not None
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


def compiled_in(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A process of its own that multiplies with a mask, and says whether it had kernels."""
    script = (
        "import logging, torch; logging.basicConfig(format='%(message)s')\n"
        "from raypp import cpu_kernels\n"
        "from raypp.pruning import masked_product\n"
        "weight, mask = torch.tensor([2.0, 3.0]), torch.tensor([True, False])\n"
        "for _ in range(2):\n"
        "    product = masked_product.multiply(weight, mask, torch.empty(2))\n"
        "print(product.tolist(), cpu_kernels.kernels_for(weight) is not None)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )


def test_where_there_is_no_compiler_torch_serves_and_that_is_said_once(tmp_path: Path) -> None:
    ran = compiled_in({"CC": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)})
    assert ran.stdout == "[2.0, 0.0] False\n"
    assert ran.stderr.count("no C kernels") == 1
    assert "no-such-compiler" in ran.stderr
    failing = compiled_in({"CC": "false", "XDG_CACHE_HOME": str(tmp_path)})
    assert failing.stdout == "[2.0, 0.0] False\n"
    assert list((tmp_path / "raypp").iterdir()) == [], "half a file is not left"


def test_a_compiler_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    ran = compiled_in({"CC": 'gcc "', "XDG_CACHE_HOME": str(tmp_path)})
    assert ran.stdout == "[2.0, 0.0] False\n"
    assert "No closing quotation" in ran.stderr


@needs_compiler
def test_an_empty_name_of_a_compiler_is_no_name(tmp_path: Path) -> None:
    assert compiled_in({"CC": "", "XDG_CACHE_HOME": str(tmp_path)}).stdout == "[2.0, 0.0] True\n"


@needs_compiler
def test_a_damaged_library_is_compiled_anew(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    compiled_in(environment)
    (library,) = (tmp_path / "raypp").iterdir()
    size = library.stat().st_size
    library.write_bytes(library.read_bytes()[:100])
    ran = compiled_in(environment)
    assert (ran.stdout, ran.stderr) == ("[2.0, 0.0] True\n", "")
    assert library.stat().st_size == size


@needs_compiler
def test_a_machine_compiles_once(tmp_path: Path) -> None:
    log = tmp_path / "compilations"
    compiler = tmp_path / "counting-cc"
    compiler.write_text(f'#!/bin/sh\necho compiled >> {log}\nexec {os.environ.get("CC", "cc")} "$@"\n')
    compiler.chmod(0o755)
    environment = {"CC": str(compiler), "XDG_CACHE_HOME": str(tmp_path)}
    assert [compiled_in(environment).stdout for _ in range(2)] == ["[2.0, 0.0] True\n"] * 2
    assert log.read_text().splitlines() == ["compiled"]
    assert (tmp_path / "raypp").stat().st_mode & 0o077 == 0, "nobody else can write what is loaded"


@needs_compiler
@pytest.mark.parametrize("what", ["a file in its place", "others may write"])
def test_kernels_need_no_cache_and_take_none_that_is_not_safe(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "raypp"
    if what == "others may write":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.write_text("")
    ran = compiled_in({"XDG_CACHE_HOME": str(tmp_path)})
    assert ran.stdout == "[2.0, 0.0] True\n", ran.stderr
    assert not folder.is_dir() or list(folder.iterdir()) == []


@needs_compiler
def test_kernels_use_the_threads_of_torch() -> None:
    """A second OpenMP would have threads of its own, which wait for a core on which torch's spin."""
    script = (
        "import torch\n"
        "from raypp import cpu_kernels\n"
        "assert cpu_kernels.kernels_for(torch.ones(2)) is not None\n"
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line})\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.count("libgomp") == 1, ran.stdout
