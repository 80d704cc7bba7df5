"""Gates by the Triton kernels against those of plain torch with the same noise."""

from __future__ import annotations

import pytest
import torch
from c_kernels import without_kernels
from triton_place import Place, needs_triton

from raypp.gpu import kernels as gpu_kernels
from raypp.noise import CHUNK
from raypp.pruning.gates import hard_concrete, sample_gates, uniform_noise

pytestmark = needs_triton


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy's, where exp(-score) is large
@pytest.mark.parametrize(
    ("sizes", "lift"), [((1, 7, 1027, 2 * CHUNK + 5), 1.5), ((16, 1024, 1040, CHUNK + 4096), None)]
)
def test_the_kernels_sample_the_gates_of_their_seeds_noise(
    sizes: tuple[int, ...], lift: float | None, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernels(monkeypatch)
    monkeypatch.setattr(gpu_kernels, "kernels_for", lambda *tensors: place.kernels)
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(size, generator=generator).mul_(4).to(place.device) for size in sizes]
    scores[2][:6] = torch.tensor([-1e30, -100.0, -20.0, 20.0, 100.0, 1e30])
    scores[2] = scores[2].view(13, -1).t()  # of another layout
    seeds = [3, 2**62, 5, 2**63 - 1]
    raised = None if lift is None else torch.tensor(lift, device=place.device)
    for matrix, seed, found in zip(scores, seeds, sample_gates(scores, seeds, raised), strict=True):
        expected = hard_concrete(matrix.double() + (lift or 0.0), uniform_noise(matrix, seed).double())
        for one, exact in zip(found, expected, strict=True):
            assert one.shape == matrix.shape
            torch.testing.assert_close(one.double(), exact, rtol=0, atol=2e-6)


def test_several_programs_draw_the_noise_of_a_large_matrix(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In short chunks, because the interpreter takes long for whole ones."""
    monkeypatch.setattr("raypp.noise.CHUNK", 64)
    monkeypatch.setattr(place.kernels, "CHUNK", 64)
    without_kernels(monkeypatch)
    monkeypatch.setattr(gpu_kernels, "kernels_for", lambda *tensors: place.kernels)
    scores = torch.zeros(64 * place.kernels.WARP * 2 + 100, device=place.device)
    ((gates, _),) = sample_gates([scores], [9])
    torch.testing.assert_close(gates, hard_concrete(scores, uniform_noise(scores, 9))[0], rtol=0, atol=2e-6)
