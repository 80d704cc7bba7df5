"""The process group of a TorchTrainer's workers, on the network in which Ray knows their nodes.

By default gloo listens on the address to which the host's name resolves. On many hosts that is the loopback (Debian and
Ubuntu write it to /etc/hosts), and workers on other hosts wait for a connection in vain. Ray Train's controller imports
this module, so it imports little.
"""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class ByNodeAddress(TorchConfig):  # type: ignore[misc]
    """Ray Train's process group, with gloo on the network interface that has the node's address."""

    @property
    def backend_cls(self) -> type:
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Sets gloo's interface in this process's environment, unless the user has set one.

    It is left unset if no interface has the node's address, as behind network address translation.
    """
    import ray.util

    interface = interface_with(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_with(address: str) -> str | None:
    """The network interface that has this address."""
    import psutil  # a dependency of Ray

    for name, entries in psutil.net_if_addrs().items():
        if address in (entry.address for entry in entries):
            return str(name)
    return None
