"""`ray job submit --working-dir . -- raypp …`, as in docs/cluster.md, on a head that starts as cluster.yaml's does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ray_head import RAY, free_ports, ray_head, short_folder
from whole_runs import TEST_SECONDS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(TEST_SECONDS)]
ROOT = Path(__file__).resolve().parent.parent.parent
TOKEN = "a" * 64
KEY = "5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0ffee5ec2"
DEADLINE_SECONDS = 200
# Shows which code has trained.
MARK = """
unmarked = train_loop

def train_loop(*args, **kwargs):
    with open({path!r}, "a") as marks:
        marks.write("brought\\n")
    return unmarked(*args, **kwargs)
"""
STEPS = 400  # of a job that is stopped: `ray job stop` takes seconds to reach it


@dataclass
class Head:
    dashboard: str
    folder: Path

    def job(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """`ray job …` from a shell that has the token and not the W&B key."""
        words = (*RAY, "job", command, "--address", self.dashboard, *words)
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS)

    def submit(self, working_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, waiting."""
        return self.job("submit", "--working-dir", str(working_dir), "--", *words)

    def get(self, path: str, token: str | None) -> str:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.dashboard + path, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.read().decode())

    def answers(self) -> bool:
        """Whether the dashboard does."""
        try:
            self.get("/api/jobs/", TOKEN)
            return True
        except OSError:
            return False


@pytest.fixture
def head() -> Iterator[Head]:
    """A head with two CPUs, since it has no workers, and otherwise with cluster.yaml's environment and dashboard."""
    port, dashboard, agent = free_ports(3)
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    (start,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    (host,) = [word for word in start.split() if word.startswith("--dashboard-host=")]
    options = [f"--port={port}", host, f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    settings = [option.split()[1] for option in cluster["docker"]["run_options"] if option.startswith("--env")]
    environment = {**os.environ, **dict(setting.split("=") for setting in settings)}
    environment |= {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}
    del environment["RAY_AUTH_TOKEN"]
    with short_folder() as folder:
        (folder / "auth_token").write_text(TOKEN)
        environment["RAY_AUTH_TOKEN_PATH"] = str(folder / "auth_token")
        started = Head(f"http://127.0.0.1:{dashboard}", folder)
        with ray_head(folder, [*options, "--num-cpus=2"], environment, is_ready=started.answers):
            yield started


@pytest.fixture
def working_dir(tmp_path: Path, minilm_dir: Path) -> Path:
    """A folder as somebody has it who works on raypp: this code and an experiment."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "raypp", folder / "raypp", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "raypp" / "training" / "loop.py").open("a") as code:
        code.write(MARK.format(path=str(tmp_path / "marks")))
    values = {
        "task": "sentiment",
        "data": {"source": {"kind": "synthetic", "train_rows": 64, "dev_rows": 32}, "max_length": 32},
        "student": {"model": str(minilm_dir)},
        "train": {"max_steps": 4, "batch_size": 8},
        "cluster": {"workers": 1, "cpus_per_worker": 1, "storage": str(tmp_path / "runs")},
        "sweep": {"space": {"train.learning_rate": {"choice": [3.0e-5, 5.0e-5]}}},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_job_runs_the_code_it_brings_and_only_with_the_token(head: Head, working_dir: Path, tmp_path: Path) -> None:
    for token in (None, "b" * 64):
        with pytest.raises(urllib.error.HTTPError) as refused:
            head.get("/api/jobs/", token)
        assert refused.value.code in (401, 403)

    raypp = [str(Path(sys.executable).parent / "raypp")]  # which is in a node's PATH
    done = head.submit(working_dir, *raypp, "sweep", "job.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 trials" in " ".join(done.stdout.split()), "the table is in the job's log"
    assert (tmp_path / "marks").read_text() == "brought\n" * 2, "both trials ran the code that the job brought"
    runs = list((tmp_path / "runs" / "job").glob("dense-*/result.json"))
    assert len(runs) == 2
    assert all(list(run.parent.glob("wandb/offline-run-*")) for run in runs), "trials are recorded"

    wrong = head.submit(working_dir, *raypp, "sweep", "job.yaml", "train.batch_size=0")
    assert wrong.returncode == 1, "all that Ray's command tells apart"
    assert "train.batch_size" in wrong.stdout
    lost = head.submit(working_dir, *raypp, "prepare", "job.yaml", "cluster.storage=runs", "cluster.store=kept")
    assert lost.returncode == 1
    for setting in ("cluster.storage", "cluster.store"):
        assert re.search(rf"{setting}: /.* is among the files of the job, which Ray deletes", lost.stdout), lost.stdout
    jobs = json.loads(head.get("/api/jobs/", TOKEN))
    assert sorted(job["driver_exit_code"] for job in jobs) == [0, 2, 2]

    assert KEY not in json.dumps(jobs) + done.stdout + done.stderr + wrong.stdout + lost.stdout
    written = [path for folder in (tmp_path / "runs", head.folder) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("job-driver-") for path in written), "Ray has logged"
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_a_job_that_is_stopped_saves_its_step_and_goes_on_when_it_is_submitted_again(
    head: Head, working_dir: Path, tmp_path: Path
) -> None:
    values = yaml.safe_load((working_dir / "job.yaml").read_text())
    del values["sweep"]
    values["train"] = {"max_steps": STEPS, "batch_size": 8, "log_every_steps": 1}
    values["cluster"]["checkpoint_every_steps"] = STEPS  # none that a schedule would have written before
    (working_dir / "job.yaml").write_text(yaml.safe_dump(values))
    raypp = [sys.executable, "-m", "raypp.cli", "train", "job.yaml", f"evaluation.every_steps={STEPS}"]
    begun = head.job("submit", "--working-dir", str(working_dir), "--no-wait", "--submission-id", "first", "--", *raypp)
    assert begun.returncode == 0, begun.stdout + begun.stderr

    def checkpoints() -> list[str]:
        return sorted(path.parent.name for path in tmp_path.glob("runs/job/*/checkpoints/step-*/manifest.json"))

    def logged() -> list[int]:
        files = list(tmp_path.glob("runs/job/*/metrics.jsonl"))
        return [json.loads(line)["step"] for file in files for line in file.read_text().splitlines()]

    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(logged()) < 5:
        assert time.monotonic() < deadline, head.job("logs", "first").stdout
        time.sleep(0.1)
    assert checkpoints() == []
    stopped = head.job("stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    (saved,) = checkpoints()
    step = int(saved.removeprefix("step-"))
    assert 5 <= step < STEPS
    (state,) = json.loads(head.get("/api/jobs/", TOKEN))
    assert state["status"] == "STOPPED"

    done = head.submit(working_dir, *raypp)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumes after step {step}" in done.stdout
    lines = [*range(1, STEPS + 1), STEPS, STEPS]  # of every step, the evaluation and the speed of the whole run
    assert logged() == lines, "no step is done twice"
