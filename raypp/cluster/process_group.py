"""How the workers of a TorchTrainer find each other: over the network that Ray knows their nodes by.

Gloo listens on the address that the host's name resolves to. On many hosts that is the loopback (Debian's and Ubuntu's
/etc/hosts say so), and workers on other hosts wait for it in vain. Ray Train's controller opens this file: it imports
little.
"""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class ByNodeAddress(TorchConfig):  # type: ignore[misc]
    """Ray Train's own process group, with gloo on the interface that has the node's address."""

    @property
    def backend_cls(self) -> type:
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Names gloo's interface in this process's environment, unless somebody has; none where no interface has the node's
    address, as behind a translation of addresses."""
    import ray.util

    interface = interface_with(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_with(address: str) -> str | None:
    """The network interface that has this address."""
    import psutil  # Ray brings it along

    for name, entries in psutil.net_if_addrs().items():
        if address in (entry.address for entry in entries):
            return str(name)
    return None
