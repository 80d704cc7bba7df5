"""Whatever dies, a run recovers or ends cleanly, and comes to the same result, bit for bit: faults as a table.

Real runs of a real encoder with its default dropout. Each case breaks a run in its middle. It then recovers by itself,
or it ends with one message and its exit status, and the same command goes on. Neither a process nor a lock nor half a
file is left. `pytest -rP` shows how long each took to recover, and how many steps were done twice. What happens in one
process, without a kill, is in tests/test_faults.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from metadata_service import metadata_service
from placement_groups import held_on
from struck_runs import (
    Fault,
    Pause,
    Recovery,
    Undisturbed,
    assert_recovers,
    is_in_the_middle,
    kill,
    to_driver,
    wait_for_new_step,
)
from whole_runs import (
    TEST_SECONDS,
    Command,
    assert_same,
    assert_tidy,
    checkpoints,
    copy_tokenizer,
    only_run,
    outcome,
    resumed_after,
    run_command,
    started,
    steps_of,
    wait_for,
)

from raypp.kinds import kind_of
from raypp.models.loading import load_pretrained
from raypp.tasks import TASKS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(TEST_SECONDS)]

EXPERIMENT = """
name: faulty
task: sentiment
data: {{source: {{kind: synthetic, train_rows: 240, dev_rows: 48}}, max_length: 32}}
student: {{model: "{model}"}}
pruning: {{method: topk, final_density: 0.3, initial_warmup: 1, final_warmup: 1}}
train: {{max_steps: 36, batch_size: 8, micro_batches: 2, learning_rate: 5.0e-5, log_every_steps: 1}}
evaluation: {{every_steps: 12}}
cluster: {{workers: 1, cpus_per_worker: 1, checkpoint_every_steps: 4, store: "{store}"}}
tracking: {{wandb: off, figures: main}}
"""
RESUMES = "the same command resumes from the last checkpoint: raypp train"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("faults") / "faulty.yaml"
    path.write_text(EXPERIMENT.format(model=minilm_dir, store=path.parent / "store"))
    return path


@pytest.fixture(scope="module")
def undisturbed(experiment: Path) -> Undisturbed:
    return Undisturbed(experiment)


def truncate_newest_checkpoint(storage: Path) -> None:
    file = checkpoints(storage)[-1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


LEAVES = ("stopping: the current step is saved first", "interrupted after step", "which is saved", RESUMES)
FAULTS = {
    "a train worker is killed": Fault(kill("RayTrainWorker")),
    "two train workers are killed at once": Fault(kill("RayTrainWorker", 2), workers=2),
    "the train controller is killed": Fault(
        kill("TrainController"), says=("Ray Train's controller was lost; the run continues from its last checkpoint",)
    ),
    # … which had the CPUs that the next ones need, on a machine of two.
    "the train controller of two workers is killed": Fault(
        kill("TrainController"),
        workers=2,
        says=("Ray Train's controller was lost; the run continues from its last checkpoint",),
    ),
    "the driver is killed": Fault(to_driver(signal.SIGKILL), ends=-signal.SIGKILL),
    # … which is the one in `make test`, and therefore short.
    "the driver of a run without workers is killed": Fault(
        to_driver(signal.SIGKILL), workers=0, overrides=("train.max_steps=20",), ends=-signal.SIGKILL
    ),
    "SIGTERM": Fault(to_driver(signal.SIGTERM), ends=130, says=LEAVES, saves=True),
    "Ctrl-C": Fault(to_driver(signal.SIGINT), ends=130, says=LEAVES, saves=True),
    "SIGTERM to a run of two workers": Fault(to_driver(signal.SIGTERM), workers=2, ends=130, says=LEAVES, saves=True),
    "the newest checkpoint is cut short": Fault(
        to_driver(signal.SIGKILL),
        ends=-signal.SIGKILL,
        before_resuming=truncate_newest_checkpoint,
        resuming_says=("is damaged and not used",),
    ),
}


FAST = "the driver of a run without workers is killed"


@pytest.mark.parametrize(
    "name", [FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in FAULTS if name != FAST)]
)
def test_a_run(
    name: str,
    experiment: Path,
    undisturbed: Undisturbed,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    fault = FAULTS[name]
    assert_recovers(fault, experiment, undisturbed(fault.workers, *fault.overrides), tmp_path).tell(record_property)


# --- what is prepared before training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A classifier that can be a teacher: MiniLM with a head of its own."""
    folder = tmp_path_factory.mktemp("teacher")
    load_pretrained(minilm_dir, kind_of(TASKS["sentiment"]), seed=7).save_pretrained(folder)
    copy_tokenizer(minilm_dir, folder)
    return folder


def artifacts(store: Path) -> dict[str, pa.Table]:
    """The store's only copy of everything, by kind and key, in the order of rows."""
    found = {}
    for manifest in store.glob("v1/*/*/*/manifest.json"):
        names = [file["name"] for file in json.loads(manifest.read_text())["files"]]
        kind_and_key = "/".join(manifest.parts[-4:-2])
        assert kind_and_key not in found, "one build of each"
        found[kind_and_key] = pa.concat_tables(pq.read_table(manifest.parent / name) for name in names).sort_by("row")
    return found


@pytest.fixture(scope="module")
def prepared(experiment: Path, teacher: Path) -> dict[str, pa.Table]:
    """What an undisturbed command prepares."""
    store = experiment.parent / "prepared"
    run_command("prepare", experiment, *preparation(teacher, store))
    return artifacts(store)


def preparation(teacher: Path, store: Path) -> tuple[str, ...]:
    rows = ("data.source.train_rows=6000", "data.source.dev_rows=48")
    return (*rows, f"teacher.model={teacher}", f"cluster.store={store}", f"cluster.storage={store.parent / 'runs'}")


@pytest.mark.slow
@pytest.mark.parametrize("title", ["_tokenize_part", "_Teacher"])
def test_a_killed_process_of_ray_data_changes_nothing_that_is_prepared(
    title: str,
    experiment: Path,
    teacher: Path,
    prepared: dict[str, pa.Table],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    with started("prepare", experiment, *preparation(teacher, tmp_path / "store")) as command:
        os.kill(command.one_of(title), signal.SIGKILL)
        began = time.monotonic()
        status, output = command.end()
    assert status == 0, output
    Recovery(time.monotonic() - began, 0).tell(record_property)
    found = artifacts(tmp_path / "store")
    assert found.keys() == prepared.keys()
    for name, table in prepared.items():
        assert found[name] == table, name
    assert_tidy(tmp_path)


# --- nodes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that does not compute and two nodes of one CPU, all on this machine."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 150 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **memory)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def processes_on(cluster: Any, title: str) -> dict[int, Any]:
    """The node of each process with a title that the cluster has started, by process id."""
    raylets = {raylet_of(node): node for node in cluster.list_all_nodes()}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if title.encode() in (folder / "cmdline").read_bytes() and parent in raylets:
                found[int(folder.name)] = raylets[parent]
        except OSError:
            continue
    return found


def computing_node(cluster: Any) -> Any:
    """The node on which the train worker runs; None while there is none."""
    return next(iter(processes_on(cluster, "RayTrainWorker").values()), None)


def kill_node(cluster: Any, node: Any) -> None:
    os.kill(raylet_of(node), signal.SIGKILL)


def warn_of_the_end_of_node(cluster: Any, node: Any) -> None:
    """As AWS does, two minutes before."""
    with metadata_service() as service:
        service.ends_at = datetime.now(UTC) + timedelta(seconds=120)
        words = ["--address", cluster.address, "--node-id", node.node_id, "--metadata", service.url]
        subprocess.run([sys.executable, "-m", "raypp.cluster.spot", *words], check=True, capture_output=True)


LONG = ("train.max_steps=240", "evaluation.every_steps=120", "cluster.checkpoint_every_steps=20")


@pytest.mark.slow
@pytest.mark.parametrize("warned", [False, True], ids=["its raylet is killed", "it is a spot machine and warned"])
def test_a_run_whose_node_goes_away_goes_on_on_another(
    warned: bool,
    experiment: Path,
    undisturbed: Undisturbed,
    cluster: Any,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    expected = outcome(undisturbed(1, *LONG))
    words = ("train", experiment, *LONG, f"cluster.storage={tmp_path}")
    with started(*words, environment={"RAY_ADDRESS": cluster.address}) as command:
        wait_for(lambda: is_in_the_middle(tmp_path, 45), "the middle of the run")
        pause = Pause(tmp_path)
        node = computing_node(cluster)
        (warn_of_the_end_of_node if warned else kill_node)(cluster, node)
        # A worker outlives its raylet by some seconds, in which it goes on.
        wait_for(lambda: computing_node(cluster) not in (None, node), "a worker elsewhere")
        done = steps_of(tmp_path)
        if warned:
            kill_node(cluster, node)
        status, output = command.end()
    assert status == 0, output
    shown = " ".join(output.split())
    if warned:
        (saved,) = re.findall(r"a node is preempted, or cannot reach the command; step (\d+) is saved", shown)
        done = int(saved)
    recovery = Recovery(pause.end(), done - resumed_after(output))
    recovery.tell(record_property)
    assert recovery.twice == 0 if warned else recovery.twice < done
    assert_same(outcome(only_run(tmp_path)), expected)
    assert_tidy(tmp_path, experiment.parent / "store")


ORPHAN_SECONDS = 60  # within which nothing of a killed command may be left on a cluster that outlives it


@pytest.mark.slow
def test_a_cluster_keeps_nothing_of_a_command_that_was_killed(
    experiment: Path,
    undisturbed: Undisturbed,
    cluster: Any,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    expected = outcome(undisturbed(1))
    words, environment = ("train", experiment, f"cluster.storage={tmp_path}"), {"RAY_ADDRESS": str(cluster.address)}
    titles = ("RayTrainWorker", "TrainController")
    with started(*words, environment=environment) as command:
        wait_for(lambda: is_in_the_middle(tmp_path), "the middle of the run")
        assert [len(processes_on(cluster, title)) for title in titles] == [1, 1]
        assert held_on(cluster.address)
        command.process.kill()
        assert command.end()[0] == -signal.SIGKILL
    wait_for(
        lambda: not any(processes_on(cluster, title) for title in titles), "the train worker to end", ORPHAN_SECONDS
    )
    wait_for(lambda: not held_on(cluster.address), "its placement group to be given back", ORPHAN_SECONDS)
    done = steps_of(tmp_path)
    with started(*words, environment=environment) as command:
        seconds = wait_for_new_step(tmp_path, done)
        status, output = command.end()
    assert status == 0, output
    recovery = Recovery(seconds, done - resumed_after(output))
    recovery.tell(record_property)
    assert recovery.twice < done
    assert_same(outcome(only_run(tmp_path)), expected)
    assert_tidy(tmp_path, experiment.parent / "store")


# --- sweeps ----------------------------------------------------------------------------------------------------------

SWEEP = """
sweep:
  space:
    pruning.final_density: {choice: [0.3]}
"""


def kill_trial(command: Command, storage: Path) -> None:
    (lock,) = (file for file in storage.glob("*/*/.lock") if not file.parent.name.startswith("sweep-"))
    os.kill(int(json.loads(lock.read_text())["pid"]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "ends", "workers"),
    [(kill_trial, 0, 1), (kill_trial, 0, 2), (kill("RayTrainWorker", 2), 0, 2), (to_driver(signal.SIGTERM), 130, 1)],
    ids=[
        "a trial is killed",
        "a trial that has workers of its own is killed",
        "the workers of a trial are killed",
        "SIGTERM",
    ],
)
def test_a_sweep(
    strike: Callable[[Command, Path], None],
    ends: int,
    workers: int,
    experiment: Path,
    undisturbed: Undisturbed,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    expected = outcome(undisturbed(workers))
    path, storage = tmp_path / "sweep.yaml", tmp_path / "runs"
    path.write_text(experiment.read_text() + SWEEP)
    words = ("sweep", path, f"cluster.storage={storage}", f"cluster.workers={workers}")
    with started(*words) as command:
        wait_for(lambda: is_in_the_middle(storage), "the middle of the trial")
        strike(command, storage)
        done = steps_of(storage)
        pause = Pause(storage)
        status, output = command.end()
        seconds = pause.end()
    assert status == ends, output
    assert "Traceback" not in output
    if ends:
        assert "interrupted" in output
        done = steps_of(storage)
        with started(*words) as command:
            seconds = wait_for_new_step(storage, done)
            status, output = command.end()
        assert status == 0, output
    else:
        assert "is tried again from its last checkpoint" in " ".join(output.split())
    recovery = Recovery(seconds, done - resumed_after(output))
    recovery.tell(record_property)
    assert recovery.twice == 0 if ends else recovery.twice < done
    assert_same(outcome(only_run(storage)), expected)
    assert_tidy(storage, experiment.parent / "store")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_interrupt_of_a_sweep_does_not_wait(workers: int, experiment: Path, tmp_path: Path) -> None:
    path, storage = tmp_path / "sweep.yaml", tmp_path / "runs"
    path.write_text(experiment.read_text() + SWEEP)
    words = ("sweep", path, f"cluster.storage={storage}", f"cluster.workers={workers}")
    with started(*words) as command:
        wait_for(lambda: is_in_the_middle(storage), "the middle of the trial")
        command.process.send_signal(signal.SIGINT)
        assert command.process.stdout is not None
        assert any("stopping:" in line for line in iter(command.process.stdout.readline, ""))
        command.process.send_signal(signal.SIGINT)
        status, output = command.end()
    assert status == 130, output
    assert "raypp: interrupted" in output
    assert RESUMES.replace("train", "sweep") in output
    assert "Traceback" not in output
    assert resumed_after(run_command(*words)) > 0
    assert_tidy(storage, experiment.parent / "store")


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "title"), [("train", "RayTrainWorker"), ("sweep", "ImplicitFunc")])
def test_a_step_that_takes_long_to_save_is_waited_for(verb: str, title: str, experiment: Path, tmp_path: Path) -> None:
    path, storage = tmp_path / "slow.yaml", tmp_path / "runs"
    path.write_text(experiment.read_text() + SWEEP * (verb == "sweep"))
    words = (verb, path, f"cluster.storage={storage}")
    with started(*words) as command:
        wait_for(lambda: is_in_the_middle(storage), "the middle of the run")
        worker = command.one_of(title)
        os.kill(worker, signal.SIGSTOP)  # as slow as can be
        try:
            command.process.send_signal(signal.SIGINT)
            assert command.process.stdout is not None
            assert any("still waits for" in line for line in iter(command.process.stdout.readline, ""))
            time.sleep(2)
            assert command.process.poll() is None
        finally:
            os.kill(worker, signal.SIGCONT)
        status, output = command.end()
    assert status == 130, output
    done = steps_of(storage)
    assert resumed_after(run_command(*words)) == done, "no step is done twice"
    assert_tidy(storage, experiment.parent / "store")


def node_of_trial(cluster: Any, storage: Path) -> Any:
    """The node on which the sweep's only trial runs; None while it runs nowhere."""
    try:
        (lock,) = (file for file in storage.glob("*/*/.lock") if not file.parent.name.startswith("sweep-"))
        process = json.loads(lock.read_text())["pid"]
        parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):  # between two tries
        return None
    return {raylet_of(node): node for node in cluster.list_all_nodes()}.get(parent)


@pytest.mark.slow
def test_a_trial_goes_elsewhere_however_often_its_node_is_taken_away(
    experiment: Path, undisturbed: Undisturbed, cluster: Any, tmp_path: Path
) -> None:
    expected = outcome(undisturbed(1, *LONG))
    cluster.add_node(num_cpus=1, object_store_memory=150 << 20)
    cluster.wait_for_nodes()
    path, storage = tmp_path / "sweep.yaml", tmp_path / "runs"
    path.write_text(experiment.read_text() + SWEEP)
    words = ("sweep", path, *LONG, f"cluster.storage={storage}")
    with started(*words, environment={"RAY_ADDRESS": cluster.address}) as command:
        for step in (45, 90):
            wait_for(lambda step=step: steps_of(storage) >= step, f"step {step}")
            node = node_of_trial(cluster, storage)
            warn_of_the_end_of_node(cluster, node)
            wait_for(lambda node=node: node_of_trial(cluster, storage) not in (None, node), "a trial elsewhere")
            kill_node(cluster, node)
        status, output = command.end()
    assert status == 0, output
    shown = " ".join(output.split())
    saved = re.findall(
        r"is tried again from its last checkpoint: \S+ its node is preempted; step (\d+) is saved", shown
    )
    assert len(saved) == 2, shown
    assert saved == re.findall(r"resumes after step (\d+)", shown)
    assert_same(outcome(only_run(storage)), expected)
    assert_tidy(storage, experiment.parent / "store")


# --- what is not a death ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_commands_that_start_the_same_run_the_second_says_so(
    experiment: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    words = ("train", experiment, f"cluster.storage={tmp_path}", "cluster.workers=0")
    with started(*words) as first, started(*words) as second:
        ends = sorted([first.end(), second.end()])
    said = ends[1][1]
    assert [status for status, _ in ends] == [0, 2], ends
    assert re.search(r"another process \(\{.*\}\) works on", " ".join(said.split())), said
    assert "Traceback" not in said
    assert_same(outcome(only_run(tmp_path)), outcome(undisturbed(0)))
    assert_tidy(tmp_path, experiment.parent / "store")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loss_that_is_not_finite_ends_a_run_at_once(workers: int, experiment: Path, tmp_path: Path) -> None:
    # So small an epsilon is 0 in float32: where a gradient is 0, Adam divides by it. The same steps would fail again.
    words = (
        "train",
        experiment,
        f"cluster.storage={tmp_path}",
        f"cluster.workers={workers}",
        "train.adam_epsilon=1e-60",
    )
    with started(*words) as command:
        status, output = command.end()
    assert status == 1, output
    assert output.count("the loss or the gradient is not finite") == 1
    assert "raypp: the same command would fail again" in output
    assert RESUMES not in output
    assert "resumes after" not in output, "nothing is tried again"
    assert "Traceback" not in output
    assert_tidy(tmp_path, experiment.parent / "store")


UNREACHABLE = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0123456789" * 4}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("dies", [False, True], ids=["W&B cannot be reached", "W&B's process is killed"])
def test_a_run_goes_on_without_wandb(
    dies: bool, workers: int, experiment: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    words = ("train", experiment, f"cluster.storage={tmp_path}", f"cluster.workers={workers}")
    how = ("tracking.wandb=offline",) if dies else ("tracking.wandb=online",)
    with started(*words, *how, environment={} if dies else UNREACHABLE) as command:
        if dies:
            wait_for(lambda: is_in_the_middle(tmp_path), "the middle of the run")
            os.kill(command.one_of("wandb-core"), signal.SIGKILL)
        status, output = command.end()
    assert status == 0, output
    said = "recording stopped, the run continues" if dies else "is recorded offline"
    assert " ".join(output.split()).count(said) == 1, "said once"
    assert "was lost" not in output
    assert "Traceback" not in output
    assert_same(outcome(only_run(tmp_path)), outcome(undisturbed(workers)))
    assert_tidy(tmp_path, experiment.parent / "store")
