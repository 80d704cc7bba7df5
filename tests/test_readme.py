"""What README and docs say is there: the quickstart, experiments, the loop that learns masks, files that are named."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification

from raypp.cli import main
from raypp.load_config import experiment_from, load_experiment
from raypp.pruning.linear import masked_layers

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_experiments_load() -> None:
    documents = [
        document
        for page in PAGES
        for block in blocks("ya?ml", page.read_text())
        for document in yaml.safe_load_all(block)
    ]
    assert len(documents) >= 6
    for document in documents:
        values = {"name": "shown", "task": "mrpc", "student": {"model": "m"}, "pruning": {"method": "topk"}, **document}
        assert experiment_from(values, expand_paths=False).name == "shown"


def test_the_loop_ends_with_what_it_was_asked_for() -> None:
    (loop,) = (block for block in blocks("python") if "Pruner(" in block)
    placeholder = re.search(r"^    \.\.\.  # your forward.*$", loop, re.MULTILINE)
    assert placeholder is not None
    loop = loop.replace(placeholder[0], "    train_step(optimizer, pruner)")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **small)).train()
    ids, labels = torch.randint(5, 50, (8, 10)), torch.randint(0, 2, (8,))
    began: list[dict[str, torch.Tensor]] = []

    def train_step(optimizer: torch.optim.Optimizer, pruner: Any) -> None:
        if not began:
            began.append({name: scores.detach().clone() for name, scores in pruner.scores()})
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    names: dict[str, Any] = {"model": model, "total_steps": 20, "warmup_steps": 2, "train_step": train_step}
    exec(loop, names)
    density = names["pruner"].density().linear
    assert density == pytest.approx(0.15, abs=1e-3)
    assert names["plain"] is model
    assert not masked_layers(model)
    moved = [float((scores - began[0][name]).detach().abs().max()) for name, scores in names["pruner"].scores()]
    assert min(moved) > 0.05, "scores learn at their own rate"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "minilm_dir")
def test_the_quickstart_ends_with_the_table_that_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fewer = ["data.source.train_rows=96", "data.source.dev_rows=32", "cluster.workers=0", "tracking.wandb=off"]
    words = ["train", str(ROOT / "experiments" / "quickstart.yaml"), *fewer, f"cluster.storage={tmp_path}"]
    assert main(words) == 0
    labels = re.findall(r"^│ (\S.*?) +│", README, re.MULTILINE)
    assert len(labels) == 9
    assert re.findall(r"^│ (\S.*?) +│", capsys.readouterr().out, re.MULTILINE) == labels


def shown_commands() -> dict[str, list[str]]:
    """Every command of the pages on an experiment of this repository, by its text: the experiment and the overrides."""
    found = {}
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for command in re.findall(r"raypp (?:train|sweep|prepare|show) +experiments/[^`\n]+", text):
            words = shlex.split(command, comments=True)[2:]
            found[command] = [word for word in words if not word.startswith("--")]
    return found


COMMANDS = shown_commands()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_load(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE_DIR", "glue")
    experiment, *overrides = COMMANDS[command]
    assert (load_experiment(ROOT / experiment, overrides).sweep is not None) == command.startswith("raypp sweep")


def test_pages_show_commands_with_overrides() -> None:
    assert sum(len(words) > 1 for words in COMMANDS.values()) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"experiments/[\w/.*-]+\.yaml", text)
    assert [name for name in named if not list(ROOT.glob(name))] == []
