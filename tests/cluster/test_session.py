"""What a session promises of a cluster: whether the workers fit on it, and what is said of a dashboard."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from raypp.cluster.session import Session
from raypp.config import ClusterSettings
from raypp.errors import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def session(**settings: Any) -> Session:
    return Session(ClusterSettings.model_validate(settings))


def test_workers_share_the_cluster_and_more_than_fit_are_refused() -> None:
    """It has four CPUs, all on one node."""
    two = session(workers=2)
    assert two.worker_resources() == {"CPU": 2.0}
    assert (two.capacity(), two.groups(2)) == (2, 1)
    two.check_resources()
    five = session(workers=5, cpus_per_worker=1)
    with pytest.raises(ConfigError, match=r"5 workers with 1 CPU each .* need 5 CPU, but the cluster has 4"):
        five.check_resources()
    session(workers=5, cpus_per_worker=1, autoscaling=True).check_resources()


def test_a_dashboard_that_is_asked_for_in_vain_is_not_ignored_silently(caplog: pytest.LogCaptureFixture) -> None:
    with session(dashboard=True) as joined:
        joined.start()
        joined.start()
    assert [record.message for record in caplog.records] == [
        "cluster.dashboard has no effect: this process has started Ray already"
    ]
    caplog.clear()
    with session(dashboard=True):
        pass
    assert [record.message for record in caplog.records] == [
        "cluster.dashboard has no effect: nothing that this command did needed Ray"
    ]
    caplog.clear()
    with session() as plain:
        plain.start()
    assert not caplog.records


DASHBOARD = """
import re, urllib.request
from urllib.error import HTTPError
from raypp.cluster.session import Session, logger
from raypp.config import ClusterSettings
import logging
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logger.addHandler(handler)
with Session(ClusterSettings(dashboard=True)) as session:
    session.start()
    (url,) = re.findall(r"dashboard is at (http://127\\.0\\.0\\.1:[0-9]+)", " ".join(said))
    with urllib.request.urlopen(url) as page:
        print(page.read(2000).decode())
"""


def with_dashboard(address: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": address}
    command = [sys.executable, "-c", DASHBOARD]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_dashboard_is_there_where_it_is_asked_for() -> None:
    shown = with_dashboard("")
    assert "<title>Ray Dashboard" in shown.stdout, shown.stderr
    refused = with_dashboard("127.0.0.1:1")
    assert "cluster.dashboard: true is for a Ray that the command starts itself" in refused.stderr
