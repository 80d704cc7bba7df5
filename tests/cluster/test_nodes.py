"""Several nodes, all on this machine: who works where, and runs whose nodes come and go."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
from whole_runs import (
    TEST_SECONDS,
    Command,
    Watch,
    assert_tidy,
    last_step,
    losses,
    only_run,
    run_command,
    started,
    steps_of,
    wait_for,
)

from raypp.kinds import kind_of
from raypp.models.loading import load_pretrained
from raypp.tasks import TASKS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(TEST_SECONDS)]
TRAIN_WORKER = "RayTrainWorker"
TRIAL = "ImplicitFunc"  # what Ray Tune calls the actor of a function
MEMORY = {"object_store_memory": 150 << 20}

EXPERIMENT = """
name: elastic
task: sentiment
data: {{source: {{kind: synthetic, train_rows: 480, dev_rows: 96}}, max_length: 32}}
student: {{model: "{model}"}}
pruning: {{method: topk, final_density: 0.5, initial_warmup: 1, final_warmup: 1}}
train: {{max_steps: 400, batch_size: 8, micro_batches: 2, learning_rate: 5.0e-5, log_every_steps: 1}}
evaluation: {{every_steps: 400}}
cluster: {{cpus_per_worker: 1, checkpoint_every_steps: 10, store: "{store}"}}
tracking: {{wandb: off}}
"""
# Plain text is streamed in windows, here of five batches in an epoch of some twenty.
LANGUAGE_MODELING = """
name: elastic
task: {{name: sentences, kind: language_modeling}}
data:
  source: {{kind: glue_text, directory: "{glue}", tasks: [mrpc], held_out_fraction: 0.1}}
  max_length: 16
  max_train_rows: 150
  window_blocks: 40
student: {{model: "{model}", layers: [0, 2, 4]}}
train: {{max_steps: 400, batch_size: 8, micro_batches: 2, learning_rate: 5.0e-5, log_every_steps: 1}}
evaluation: {{every_steps: 400}}
cluster: {{cpus_per_worker: 1, checkpoint_every_steps: 10, store: "{store}"}}
tracking: {{wandb: off}}
"""


@dataclass
class Nodes:
    """A head that does not compute, and nodes that come and go."""

    cluster: Any
    environment: dict[str, str]

    def add(self, cpus: int = 1) -> Any:
        return self.cluster.add_node(num_cpus=cpus, **MEMORY)

    def kill(self, node: Any) -> None:
        """Every process of a node at once, as when its machine is gone."""
        self.cluster.remove_node(node, allow_graceful=False)

    def where(self, title: str) -> Counter[str]:
        """How many processes with this title run on each node, by node id."""
        raylets = {node.all_processes["raylet"][0].process.pid: node.node_id for node in self.cluster.list_all_nodes()}
        found: Counter[str] = Counter()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and title in (folder / "cmdline").read_text():
                    found[raylets[parent]] += 1
            except OSError:  # it has ended
                continue
        return found


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, **MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield Nodes(cluster, {"RAY_ADDRESS": str(cluster.address)})
    cluster.shutdown()


@pytest.fixture
def experiment(tmp_path: Path, minilm_dir: Path, request: pytest.FixtureRequest) -> Path:
    """The file of an experiment: the first one, unless a test says otherwise."""
    path = tmp_path / "nodes.yaml"
    text = getattr(request, "param", EXPERIMENT)
    glue = request.getfixturevalue("glue_dir") if "{glue}" in text else None
    path.write_text(text.format(model=minilm_dir, glue=glue, store=tmp_path / "store"))
    return path


class NodesWatch(Watch):
    """Where the processes with a title have been: the most on each node at a time."""

    def __init__(self, nodes: Nodes, title: str) -> None:
        super().__init__()
        self.nodes, self.title = nodes, title
        self.most: Counter[str] = Counter()

    def look(self) -> None:
        self.most |= self.nodes.where(self.title)


def records(run: Path) -> list[dict[str, float]]:
    """What was logged of every step, in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def last_checkpoint(run: Path) -> int:
    return max(int(file.parent.name.removeprefix("step-")) for file in run.glob("checkpoints/step-*/manifest.json"))


def headline(run: Path) -> float:
    result = json.loads((run / "result.json").read_text())
    return float(result["metrics"][result["headline"]])


def loss_at_the_end(run: Path) -> float:
    """The mean over the last epoch of the classifier, which is at chance: it has the same accuracy with every seed."""
    return float(np.mean(losses(run)[-60:]))


SHORT = ("train.max_steps=20", "evaluation.every_steps=20")
SWEEP = """
sweep:
  space:
    pruning.final_density: {choice: [0.6, 0.4]}
"""


# --- workers that wait ----------------------------------------------------------------------------------------------


HOLD_ONE_CPU = """
import ray, sys
from ray.util import placement_group
ray.init(log_to_driver=False, logging_level="ERROR")
assert placement_group([{"CPU": 1}]).wait(60)
print("held", flush=True)
sys.stdin.read()
"""


def test_workers_wait_for_resources_that_others_hold(nodes: Nodes, experiment: Path, tmp_path: Path) -> None:
    """It is no failure, and it can be interrupted."""
    nodes.add(), nodes.add()
    words = ("train", experiment, *SHORT, "cluster.workers=2", "cluster.max_failures=0", f"cluster.storage={tmp_path}")

    def wait_until_it_says_so(command: Command) -> None:
        assert command.process.stdout is not None
        lines = iter(command.process.stdout.readline, "")
        assert any("waits for resources for 2 workers with 1 CPU each" in line for line in lines)

    with subprocess.Popen(
        [sys.executable, "-c", HOLD_ONE_CPU],
        env={**os.environ, **nodes.environment},
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    ) as others:
        assert others.stdin is not None
        assert others.stdout is not None
        assert others.stdout.readline() == "held\n"
        with started(*words, environment=nodes.environment) as command:
            wait_until_it_says_so(command)
            command.process.send_signal(signal.SIGINT)
            status, output = command.end()
        assert status == 130, output
        with started(*words, environment=nodes.environment) as command:
            wait_until_it_says_so(command)
            assert steps_of(tmp_path) == 0
            others.stdin.close()
            status, output = command.end()
    assert status == 0, output
    assert "waits for resources" not in output, "said once"
    assert "was lost" not in output
    assert steps_of(tmp_path) == 20
    assert_tidy(tmp_path)


# --- workers that come and go ---------------------------------------------------------------------------------------


@pytest.mark.timeout(2 * TEST_SECONDS)  # four runs
@pytest.mark.parametrize(
    ("experiment", "steps", "final"),
    [
        (EXPERIMENT, ("step", "train/epoch", "train/learning_rate", "prune/requested_density"), loss_at_the_end),
        (LANGUAGE_MODELING, ("step", "train/epoch", "train/learning_rate"), headline),
    ],
    indirect=["experiment"],
    ids=["a pruned classifier", "a language model"],
)
def test_a_run_goes_on_with_fewer_workers_and_grows_again(
    nodes: Nodes, experiment: Path, steps: tuple[str, ...], final: Callable[[Path], float], tmp_path: Path
) -> None:
    """The steps are the same ones, whoever computes them: the same batches and schedule, the same losses. What the run
    comes to differs by less than with other seeds."""
    nodes.add()
    second = nodes.add()
    run_command(
        "train", experiment, "cluster.workers=2", f"cluster.storage={tmp_path / 'two'}", environment=nodes.environment
    )
    undisturbed = only_run(tmp_path / "two")

    storage = tmp_path / "elastic"
    how = ("cluster.workers=[1,2]", "cluster.grow_after_seconds=1", f"cluster.storage={storage}")
    with started("train", experiment, *how, environment=nodes.environment) as command:
        wait_for(lambda: steps_of(storage) >= 15, "the first steps")
        assert sorted(nodes.where(TRAIN_WORKER).values()) == [1, 1]
        nodes.kill(second)
        wait_for(lambda: not nodes.where(TRAIN_WORKER), "the group to end")  # until then, steps may yet be written
        lost = steps_of(storage)
        wait_for(lambda: sum(nodes.where(TRAIN_WORKER).values()) == 1 and steps_of(storage) > lost, "new steps of one")
        nodes.add()
        wait_for(lambda: sorted(nodes.where(TRAIN_WORKER).values()) == [1, 1], "two workers again")
        status, output = command.end()
    assert status == 0, output
    shown = " ".join(output.split())
    # The node may have had Ray Train's controller, too.
    assert re.search(r"was lost.*; the run continues from its last checkpoint; .*1 of 2 workers train", shown), shown
    (saved,) = map(int, re.findall(r"resources for more workers; step (\d+) is saved; 2 of 2 workers train", shown))
    shrunk, grown = map(int, re.findall(r"resumes after step (\d+)", shown))
    assert lost - 12 <= shrunk <= lost, "the last checkpoint"
    assert grown == saved > lost, "no step is done twice to grow"

    run = only_run(storage)
    assert run.name == undisturbed.name
    before, after = records(undisturbed), records(run)
    for name in steps:
        assert [line[name] for line in after] == [line[name] for line in before], name
    expected = losses(undisturbed)
    np.testing.assert_allclose(losses(run)[: shrunk + 20], expected[: shrunk + 20], rtol=2e-4)
    # By then the other order of adding up has had its effect: what is computed is the same, and digits are lost.
    np.testing.assert_allclose(losses(run)[grown : grown + 20], expected[grown : grown + 20], rtol=2e-2)
    by_seed = [final(undisturbed)]
    for seed in (43, 44):
        other = tmp_path / f"seed-{seed}"
        run_command("train", experiment, f"train.seed={seed}", "cluster.workers=0", f"cluster.storage={other}")
        by_seed.append(final(only_run(other)))
    difference, spread = abs(final(run) - final(undisturbed)), max(by_seed) - min(by_seed)
    print(f"differs by {difference} from the undisturbed run, and seeds by {spread}")
    assert difference <= spread
    assert_tidy(storage, tmp_path / "store")


def trials_of(storage: Path) -> list[Path]:
    """The folders of the trials that have begun."""
    return sorted(file.parent for file in storage.glob("*/topk-*/metrics.jsonl"))


def steps_of_trials(storage: Path) -> list[int]:
    return [last_step(run / "metrics.jsonl") for run in trials_of(storage)]


def test_trials_share_the_nodes_there_are(nodes: Nodes, experiment: Path, tmp_path: Path) -> None:
    """A node with all workers of a trial is lost: the other one gives way, and both have two again when it is back."""
    experiment.write_text(experiment.read_text() + SWEEP)
    nodes.add(cpus=2)
    second = nodes.add(cpus=2)
    long = ("train.max_steps=2000", "evaluation.every_steps=2000")  # on any machine more than it takes

    def all_have_done(storage: Path, steps: list[int]) -> bool:
        done = steps_of_trials(storage)
        return len(done) == len(steps) and all(now >= least for now, least in zip(done, steps, strict=True))

    one, storage = tmp_path / "one", tmp_path / "elastic"
    with started("sweep", experiment, *long, f"cluster.storage={one}", environment=nodes.environment) as command:
        wait_for(lambda: all_have_done(one, [25, 25]), "what to compare with")
        command.process.send_signal(signal.SIGINT)
        assert command.end()[0] == 130
    how = (*long, "cluster.workers=[1,2]", "cluster.grow_after_seconds=1", f"cluster.storage={storage}")
    with started("sweep", experiment, *how, environment=nodes.environment) as command:
        wait_for(lambda: all_have_done(storage, [5, 5]), "the first steps of both")
        assert sorted(nodes.where(TRAIN_WORKER).values()) == [2, 2], "both begin with all there are resources for"
        nodes.kill(second)
        wait_for(
            lambda: sum(nodes.where(TRAIN_WORKER).values()) == 1, "a group of one worker, where the others have left"
        )
        lost = steps_of_trials(storage)
        wait_for(
            lambda: (
                list(nodes.where(TRAIN_WORKER).values()) == [2] and all_have_done(storage, [step + 1 for step in lost])
            ),
            "new steps of both on the node that is left",
        )
        nodes.add(cpus=2)
        wait_for(lambda: sorted(nodes.where(TRAIN_WORKER).values()) == [2, 2], "two workers each again")
        grown = steps_of_trials(storage)
        wait_for(lambda: all_have_done(storage, [step + 1 for step in grown]), "new steps of two workers each")
        command.process.send_signal(signal.SIGINT)
        status, output = command.end()
    assert status == 130, output
    shown = " ".join(output.split())
    # The trial that gives way may have to wait, too, until Ray has freed what its workers held.
    next_words = "(1 of 2 workers train|waits for resources for 1 worker)"
    gave_way = re.findall(rf"another trial waits for resources; step \d+ is saved; {next_words}", shown)
    # Where Ray has laid one worker of each on that node, either has one left.
    assert len(gave_way) == ("waits for resources for 1 worker" in shown), shown
    assert len(re.findall(r"resources for more workers; step \d+ is saved; 2 of 2 workers train", shown)) == 2, shown

    for undisturbed, run in zip(trials_of(one), trials_of(storage), strict=True):
        assert run.name == undisturbed.name
        before, after = records(undisturbed), records(run)
        assert [line["step"] for line in after] == list(range(1, len(after) + 1)), "every step counts once"
        assert last_checkpoint(run) == len(after), "the one it was at is saved"
        for name in ("train/epoch", "train/learning_rate", "prune/requested_density"):
            common = min(len(before), len(after))
            assert [line[name] for line in after[:common]] == [line[name] for line in before[:common]], name
        np.testing.assert_allclose(losses(run)[:20], losses(undisturbed)[:20], rtol=2e-4)


def test_trials_whose_workers_come_and_go_end_with_their_front(nodes: Nodes, experiment: Path, tmp_path: Path) -> None:
    """There are resources for the minimum of both: none grows until the other one has ended."""
    experiment.write_text(experiment.read_text() + SWEEP)
    nodes.add(), nodes.add()
    how = (*SHORT, "cluster.workers=[1,2]", "cluster.grow_after_seconds=0", f"cluster.storage={tmp_path}")
    output = " ".join(run_command("sweep", experiment, *how, environment=nodes.environment).split())
    assert "2 of 2 trials" in output
    assert output.count("1 of 2 workers train") == 2, output
    (front,) = tmp_path.glob("elastic/sweep-*/front.csv")
    assert len(front.read_text().splitlines()) == 3, "a title, and both densities"
    for run in trials_of(tmp_path):
        assert [line["step"] for line in records(run)] == list(range(1, 21))
        assert (run / "result.json").is_file()
    assert_tidy(tmp_path)


# --- who works where -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("placement", "expected"), [("pack", [2]), ("spread", [1, 1]), ("strict_spread", [1, 1])])
def test_workers_are_laid_over_nodes_as_the_setting_says(
    placement: str, expected: list[int], nodes: Nodes, experiment: Path, tmp_path: Path
) -> None:
    nodes.add(cpus=2), nodes.add(cpus=2)
    how = (*SHORT, "cluster.workers=2", f"cluster.placement={placement}", f"cluster.storage={tmp_path}")
    with NodesWatch(nodes, TRAIN_WORKER) as watch:
        run_command("train", experiment, *how, environment=nodes.environment)
    assert sorted(watch.most.values()) == expected


def test_features_and_teacher_logits_are_made_on_all_nodes(
    nodes: Nodes, experiment: Path, minilm_dir: Path, tmp_path: Path
) -> None:
    two = {nodes.add().node_id, nodes.add().node_id}
    teacher = tmp_path / "teacher"
    load_pretrained(minilm_dir, kind_of(TASKS["sentiment"]), seed=1).save_pretrained(teacher)
    for file in minilm_dir.glob("*token*"):
        (teacher / file.name).write_bytes(file.read_bytes())
    (teacher / "vocab.txt").write_bytes((minilm_dir / "vocab.txt").read_bytes())
    how = ("data.source.train_rows=6000", f"teacher.model={teacher}", f"cluster.storage={tmp_path}")
    with NodesWatch(nodes, "_tokenize_part") as tokenizing, NodesWatch(nodes, "_Teacher") as teaching:
        run_command("prepare", experiment, *how, environment=nodes.environment)
    assert tokenizing.most.keys() == two
    assert teaching.most.keys() == two


@pytest.mark.parametrize(
    ("workers", "cpus", "title"),
    [(1, 2, TRIAL), (2, 2, TRAIN_WORKER)],
    ids=["trials of one process", "trials with workers of their own"],
)
def test_a_trial_never_starts_on_a_node_that_lacks_what_it_needs(
    workers: int, cpus: int, title: str, nodes: Nodes, experiment: Path, tmp_path: Path
) -> None:
    nodes.add(cpus=1)
    large = nodes.add(cpus=workers * cpus)
    experiment.write_text(experiment.read_text() + SWEEP)
    how = (*SHORT, f"cluster.workers={workers}", f"cluster.cpus_per_worker={cpus}", f"cluster.storage={tmp_path}")
    with NodesWatch(nodes, title) as watch:
        output = run_command("sweep", experiment, *how, environment=nodes.environment)
    assert "2 of 2 trials" in " ".join(output.split())
    assert watch.most.keys() == {large.node_id}
