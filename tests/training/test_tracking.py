"""metrics.jsonl, and real W&B runs in separate processes, which are read from their files or a small local server."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from wandb_files import read_run
from whole_runs import wait_for

from raypp.config import TrackingSettings
from raypp.training.metrics_file import MetricsFile
from raypp.training.tracking import NullTracker, WandbTracker, make_tracker

FAKE_KEY = "0123456789abcdef0123456789abcdef01234567"
UNREACHABLE = "http://127.0.0.1:9"

# --- metrics.jsonl ---------------------------------------------------------------------------------------------------


def test_metrics_are_on_disk_line_by_line(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.records() == []
    metrics.log(10, {"train/loss": 0.1, "perf/tokens": 12})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 10, "train/loss": 0.1, "perf/tokens": 12}\n'
    metrics.log(20, {"eval/accuracy": 1 / 3})
    assert metrics.records()[1] == {"step": 20, "eval/accuracy": 1 / 3}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"train/penalty.*step 3"):
        metrics.log(3, {"train/loss": 1.0, "train/penalty": value})
    assert metrics.records() == []


def test_cut_removes_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.cut(5)
    assert path.read_text() == ""
    for step in (1, 2, 3, 4):
        metrics.log(step, {"train/loss": step / 7})
    before = path.read_text()
    path.write_text(before + '{"step": 5, "train/lo')
    assert [record["step"] for record in metrics.records()] == [1, 2, 3, 4]
    metrics.cut(4)
    assert path.read_text() == before
    metrics.cut(2)
    assert path.read_text() == "".join(before.splitlines(keepends=True)[:2])
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


@pytest.mark.parametrize("spoilt", [bytes(50), b"\xff\xfe", b"7", b'{"train/loss": 0.5}'])
def test_a_line_damaged_by_a_power_failure_costs_a_resumed_run_only_this_line(
    spoilt: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for step in (1, 2, 3):
        metrics.log(step, {"train/loss": step / 7})
    metrics.sync()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + spoilt + b"\n" + lines[2])
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        metrics.records()
    metrics.cut(3)
    assert [record["step"] for record in metrics.records()] == [1, 3]
    assert "metrics.jsonl, line 2: not a JSON object" in caplog.text
    metrics.log(4, {"train/loss": 0.5})
    assert len(metrics.records()) == 3


def test_lines_of_a_worker_that_seemed_dead_are_not_in_the_log(tmp_path: Path) -> None:
    lost, successor = MetricsFile(tmp_path / "metrics.jsonl"), MetricsFile(tmp_path / "metrics.jsonl")
    lost.cut(0)
    for step in (1, 2, 3):
        lost.log(step, {"train/loss": 0.5})
    successor.cut(2)
    lost.log(4, {"train/loss": 0.5})
    successor.log(3, {"train/loss": 0.5})
    lost.log(5, {"train/loss": 0.5})
    assert [record["step"] for record in successor.records()] == [1, 2, 3]


# --- who records -----------------------------------------------------------------------------------------------------


def test_a_run_with_wandb_off_records_nothing(tmp_path: Path) -> None:
    tracker = make_tracker(TrackingSettings(wandb="off"), **arguments(tmp_path))
    assert isinstance(tracker, NullTracker)
    tracker.log(1, {"train/loss": 1.0})
    tracker.log_figures({"loss": tmp_path / "missing.png"})
    tracker.summary({"eval/accuracy": 1.0})
    tracker.finish(1)
    assert tracker.sync_command() is None
    assert list(tmp_path.iterdir()) == []


def arguments(folder: Path) -> dict[str, Any]:
    return {
        "run_folder": folder,
        "run_name": "calm-fox",
        "run_id": "mrpc-calm-fox",
        "group": "sweep-1",
        "config": {"task": "mrpc", "pruning": {"method": "topk", "final_density": 0.15}},
    } | {"resume_step": None}


# --- real W&B runs ---------------------------------------------------------------------------------------------------

# One session of a run; says on its last line how it went.
SESSION = """
import json, sys
from pathlib import Path
import numpy as np
import raypp.training.tracking as tracking
from raypp.config import TrackingSettings

job = json.loads(sys.argv[1])
for name, seconds in job["limits"].items():
    setattr(tracking, name, seconds)
warnings = []
tracker = tracking.make_tracker(
    TrackingSettings(wandb=job["wandb"]), run_folder=Path(job["folder"]), run_name="calm-fox",
    run_id="mrpc-calm-fox", group="sweep-1", config=job["config"], resume_step=job["resume_step"], warn=warnings.append,
)
if job["wait"]:
    sys.stdin.readline()
for step in job["steps"]:
    tracker.log(step, {"train/loss": 1 / step})
    tracker.log(step, {"prune/density": 0.5})
if job["figure"]:
    tracker.log_figures({"figures/loss": Path(job["figure"])})
    tracker.log_histograms(step, {"parameters/a.weight": (np.array([4, 1]), np.array([0.0, 0.5, 1.0]))})
tracker.summary({"density": {"linear": 0.15}})
if job["wait"]:
    print("logged", flush=True)
tracker.finish(job["exit_code"])
print(json.dumps({"warnings": warnings, "sync_command": tracker.sync_command()}))
"""


@dataclass
class Job:
    """One session in a child process: its input and its outcome."""

    folder: Path
    wandb: str = "auto"
    steps: list[int] = field(default_factory=lambda: [1, 2, 3])
    resume_step: int | None = None
    figure: str | None = None
    exit_code: int = 0
    limits: dict[str, float] = field(default_factory=dict)
    wait: bool = False
    """Whether the child waits for a line before it logs, and writes a line when it has logged."""
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        job = {
            key: getattr(self, key)
            for key in ("wandb", "steps", "resume_step", "figure", "exit_code", "limits", "wait")
        }
        job |= {"folder": str(self.folder), "config": arguments(self.folder)["config"]}
        return subprocess.Popen(
            [sys.executable, "-c", SESSION, json.dumps(job)],
            env=clean_environment() | {"HOME": str(home), "WANDB_HTTP_TIMEOUT": "2"} | self.environment,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> dict[str, Any]:
        output, _ = self.start().communicate(timeout=120)
        return self.outcome(output)

    def outcome(self, output: str) -> dict[str, Any]:
        lines = output.splitlines()
        assert lines, "the session printed nothing"
        assert lines[-1].startswith("{"), output
        assert FAKE_KEY not in output
        return json.loads(lines[-1]) | {"other_output": lines[:-1]}


def test_an_offline_run_can_be_read_completely(tmp_path: Path) -> None:
    figure = tmp_path / "loss.png"
    draw(figure)
    outcome = Job(tmp_path / "run", wandb="offline", figure=str(figure), exit_code=7).run()
    [folder] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    run = read_run(folder)
    assert run["id"] == "mrpc-calm-fox"
    assert (run["project"], run["name"], run["group"]) == ("raypp", "calm-fox", "sweep-1")
    assert run["config"]["pruning"] == {"method": "topk", "final_density": 0.15}
    rows = [(row["_step"], row["train/loss"], row["prune/density"]) for row in run["history"]]
    assert rows == [(1, 1.0, 0.5), (2, 0.5, 0.5), (3, 1 / 3, 0.5)]  # two reports of one step are merged
    image = folder / "files" / run["history"][2]["figures/loss/path"]
    assert image.read_bytes() == figure.read_bytes()
    histogram = {part: run["history"][2][f"parameters/a.weight/{part}"] for part in ("_type", "values", "bins")}
    assert histogram == {"_type": "histogram", "values": [4, 1], "bins": [0.0, 0.5, 1.0]}
    assert run["summary"]["density"] == {"linear": 0.15}
    assert run["exit_code"] == 7
    assert outcome["sync_command"] == f"wandb sync {shlex.quote(str(folder))}"
    assert outcome["warnings"] == outcome["other_output"] == []


def test_every_offline_session_holds_the_whole_run_up_to_its_end(tmp_path: Path, server: Server) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    steps = [10, 20, 30, 40, 50]
    metrics = MetricsFile(folder / "metrics.jsonl")
    for step in steps:
        metrics.log(step, {"train/loss": 1 / step, "prune/density": 0.5})
    Job(folder, wandb="offline", steps=steps).run()
    [first] = (folder / "wandb").glob("offline-run-*")

    outcome = Job(folder, wandb="offline", steps=[40, 50, 60], resume_step=30).run()
    [second] = (folder / "wandb").glob("offline-run-*")
    assert second != first
    assert outcome["sync_command"] == f"wandb sync {second}"
    run = read_run(second)
    assert run["id"] == "mrpc-calm-fox"
    assert [(row["_step"], row["train/loss"]) for row in run["history"]] == [(s, 1 / s) for s in [*steps, 60]]

    upload = [str(Path(sys.executable).with_name("wandb")), *outcome["sync_command"].split()[1:]]
    environment = clean_environment() | server.environment | {"HOME": str(tmp_path)}
    subprocess.run(upload, env=environment, check=True, capture_output=True, timeout=60)
    assert [row["_step"] for row in server.history] == [*steps, 60]

    Job(folder, wandb="offline", steps=[10, 20]).run()  # from the beginning again
    [only] = (folder / "wandb").glob("offline-run-*")
    assert [row["_step"] for row in read_run(only)["history"]] == [10, 20]


@pytest.mark.parametrize("mode", ["auto", pytest.param("online", marks=pytest.mark.slow)])
def test_an_unreachable_server_does_not_stop_the_run(tmp_path: Path, mode: str) -> None:
    environment = {"WANDB_BASE_URL": UNREACHABLE, "WANDB_API_KEY": FAKE_KEY}
    outcome = Job(tmp_path / "run", wandb=mode, steps=list(range(1, 301)), environment=environment).run()
    [folder] = (tmp_path / "run" / "wandb").glob("*run-*-mrpc-calm-fox")
    assert folder.name.startswith("offline-run-")
    run = read_run(folder)
    assert [row["_step"] for row in run["history"]] == list(range(1, 301))
    assert run["exit_code"] == 0
    [warning] = outcome["warnings"]
    assert UNREACHABLE in warning
    assert f"wandb sync {folder}" in warning
    assert outcome["other_output"] == []
    assert_no_key_in(tmp_path)


@pytest.mark.parametrize(
    ("mode", "environment", "warns"),
    [
        ("auto", {}, False),  # no key: offline is what auto means
        ("online", {}, True),  # no key, although online is requested
        ("auto", {"WANDB_MODE": "offline", "WANDB_API_KEY": FAKE_KEY, "WANDB_BASE_URL": UNREACHABLE}, False),
        ("offline", {"WANDB_MODE": "disabled", "WANDB_API_KEY": FAKE_KEY, "WANDB_BASE_URL": UNREACHABLE}, False),
        ("auto", {"WANDB_API_KEY": "too-short"}, True),
    ],
)
def test_when_a_run_is_recorded_offline(tmp_path: Path, mode: str, environment: dict[str, str], warns: bool) -> None:
    outcome = Job(tmp_path / "run", wandb=mode, environment=environment).run()
    [folder] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert len(read_run(folder)["history"]) == 3
    assert len(outcome["warnings"]) == warns
    assert outcome["other_output"] == []


def test_auto_respects_wandb_mode_disabled(tmp_path: Path) -> None:
    outcome = Job(tmp_path / "run", environment={"WANDB_MODE": "disabled", "WANDB_API_KEY": FAKE_KEY}).run()
    assert list((tmp_path / "run").iterdir()) == []
    assert outcome["sync_command"] is None
    assert outcome["warnings"] == []


def test_a_figure_of_another_format_is_refused(tmp_path: Path) -> None:
    tracker = object.__new__(WandbTracker)
    with pytest.raises(ValueError, match=r"loss\.pdf is none of \.png"):
        tracker.log_figures({"loss": tmp_path / "loss.pdf"})


def test_with_a_server_and_a_key_the_run_is_online(tmp_path: Path, server: Server) -> None:
    outcome = Job(tmp_path / "run", environment=server.environment).run()
    assert outcome["warnings"] == outcome["other_output"] == []
    assert outcome["sync_command"] is None
    assert [row["_step"] for row in server.history] == [1, 2, 3]
    assert server.config["pruning"]["value"] == {"method": "topk", "final_density": 0.15}
    assert server.authorized
    assert_no_key_in(tmp_path)


def test_an_online_run_is_resumed_and_sends_nothing_again(tmp_path: Path, server: Server) -> None:
    server.last_step = 50
    (tmp_path / "run").mkdir()
    MetricsFile(tmp_path / "run" / "metrics.jsonl").log(30, {"train/loss": 1 / 30})
    job = Job(tmp_path / "run", steps=[40, 50, 60, 70], resume_step=30, environment=server.environment)
    outcome = job.run()
    assert outcome["warnings"] == outcome["other_output"] == []
    assert [row["_step"] for row in server.history] == [60, 70]


def test_earlier_offline_recordings_reach_the_server_after_a_resume(tmp_path: Path, server: Server) -> None:
    Job(tmp_path / "run", wandb="offline", steps=[10, 20]).run()
    metrics = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    metrics.log(10, {"train/loss": 1 / 10})
    metrics.log(20, {"train/loss": 1 / 20})
    outcome = Job(tmp_path / "run", steps=[20, 30], resume_step=10, environment=server.environment).run()
    assert [row["_step"] for row in server.history] == [10, 20, 30]
    assert outcome["sync_command"] is None


def test_a_refused_key_is_reported_once_and_the_run_is_recorded_offline(tmp_path: Path, server: Server) -> None:
    server.refuses = True
    outcome = Job(tmp_path / "run", environment=server.environment).run()
    [warning] = outcome["warnings"]
    assert server.url in warning
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1
    assert_no_key_in(tmp_path)


def test_a_run_that_the_server_does_not_register_is_recorded_offline(tmp_path: Path, server: Server) -> None:
    server.registers = False
    limits = {"INIT_SECONDS": 2.0}
    outcome = Job(tmp_path / "run", wandb="online", limits=limits, environment=server.environment).run()
    [folder] = (tmp_path / "run" / "wandb").glob("*run-*-mrpc-calm-fox")  # the failed attempt is removed
    assert [row["_step"] for row in read_run(folder)["history"]] == [1, 2, 3]
    [warning] = outcome["warnings"]
    assert f"wandb sync {folder}" in warning


def test_a_run_does_not_wait_for_a_slow_server(tmp_path: Path, server: Server) -> None:
    server.answers.clear()
    job = Job(tmp_path / "run", wait=True, environment=server.environment | {"WANDB_HTTP_TIMEOUT": "60"})
    process = job.start()
    assert process.stdin is not None
    assert process.stdout is not None
    assert server.asked.wait(60)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "logged\n", "while nothing is answered"
    server.answers.set()
    outcome = job.outcome(process.communicate(timeout=60)[0])
    assert outcome["warnings"] == []
    assert [row["_step"] for row in server.history] == [1, 2, 3]


def test_a_server_lost_during_the_run_costs_a_bounded_wait_at_the_end(tmp_path: Path, server: Server) -> None:
    job = Job(tmp_path / "run", wait=True, limits={"UPLOAD_SECONDS": 2.0}, environment=server.environment)
    process = job.start()
    assert server.registered.wait(60)
    wait_for((tmp_path / "run" / "wandb").is_dir, "the run's files")
    server.stop()
    output, _ = process.communicate("\n", timeout=60)  # without a limit, W&B would retry for longer
    outcome = job.outcome(output)
    [folder] = (tmp_path / "run" / "wandb").glob("run-*")
    assert outcome["sync_command"] == f"wandb sync --include-online {folder}"
    assert outcome["sync_command"] in outcome["warnings"][-1]
    assert [row["_step"] for row in read_run(folder)["history"]] == [1, 2, 3]  # nothing is lost


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}


def draw(path: Path) -> None:
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(path)


def assert_no_key_in(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if FAKE_KEY.encode() in path.read_bytes()] == []


# --- a server that speaks as much of W&B's protocol as an online run needs -------------------------------------------


class Server:
    def __init__(self) -> None:
        self.refuses = False
        self.registers = True
        self.asked, self.registered, self.answers = threading.Event(), threading.Event(), threading.Event()
        self.answers.set()
        self.authorized = False
        self.history: list[dict[str, Any]] = []
        self.last_step: int | None = None  # of a run that the server already has
        self.config: dict[str, Any] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.environment = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": FAKE_KEY}
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        operation, variables = body.get("operationName"), body.get("variables", {})
        for line in body.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            self.history.append(json.loads(line))
        project = {"id": "p", "name": "raypp", "entity": {"id": "e", "name": "me"}}
        if self.refuses:
            return 401, {"errors": [{"message": "user is not logged in"}]}
        if operation == "Viewer":
            return 200, {"data": {"viewer": {"id": "u", "entity": "me", "flags": "{}", "teams": {"edges": []}}}}
        if operation == "RunResumeStatus" and self.last_step is not None:
            tail = json.dumps([json.dumps({"_step": self.last_step, "_runtime": 1})])
            counts = {"historyLineCount": self.last_step, "eventsLineCount": 0, "logLineCount": 0}
            bucket = {"id": "b", "name": "mrpc-calm-fox", "historyTail": tail, "eventsTail": "[]", **counts}
            bucket |= {"summaryMetrics": "{}", "config": "{}", "tags": [], "wandbConfig": json.dumps({"t": 1})}
            return 200, {"data": {"model": {**project, "bucket": bucket}}}
        if operation == "UpsertBucket" and not self.registers:
            return 500, {}
        if operation == "UpsertBucket":
            self.config |= json.loads(variables.get("config") or "{}")
            self.registered.set()
            bucket = {"id": "b", "name": "mrpc-calm-fox", "displayName": "calm-fox", "project": project}
            return 200, {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return 200, {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        return 200, {"data": {}}

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.asked.set()
                server.answers.wait()
                content = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("content-encoding") == "gzip":
                    content = gzip.decompress(content)
                try:
                    body = json.loads(content)
                except ValueError:
                    body = {}  # telemetry
                server.authorized |= "authorization" in self.headers
                status, answer = server.answer(self.path, body if isinstance(body, dict) else {})
                reply = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_PUT = do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()
