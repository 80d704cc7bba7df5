"""Where the Triton kernels run in these tests."""

from __future__ import annotations

import pytest
from triton_place import Place, kernels_of_own_triton


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    is_gpu = request.param == "cuda"
    return Place(kernels_of_own_triton(not is_gpu, monkeypatch), "cuda" if is_gpu else "cpu")
