"""Counts how often the host would wait for a GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts what a GPU's host would wait for: a number or a size that is brought back, a number that is sent there.

    A CPU's tensor needs no operation to become a list or an array of numpy, so that these calls are counted themselves.
    """

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal", "_to_copy")
    CALLS = (Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__array__)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._calls = _Calls(self)

    def __enter__(self) -> Waits:
        self._calls.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.OPERATIONS
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits.count += func in Waits.CALLS
        return func(*args, **(kwargs or {}))
