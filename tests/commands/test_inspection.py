"""Remaining weights of saved models, against counts made straight from their safetensors."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from raypp.cli import main
from raypp.commands.inspection import FIGURES, inspect_command, inspect_model, inspection_figure, inspection_table
from raypp.config import Experiment, LayerRule
from raypp.errors import ConfigError
from raypp.figures.mask import mask_box, pixels_per_weight
from raypp.kinds import kind_of
from raypp.models.student import load_student
from raypp.runs import start_run
from raypp.storage import Location
from raypp.tasks import TASKS

MATRIX = re.compile(r"bert\.encoder\.(layer\.\d+\..*dense|layer\.\d+\..*(?:query|key|value))\.weight")


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A folder with a tiny BERT of two layers, each matrix with another part of its weights set to zero."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=20, **sizes))
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            parameter[parameter == 0] = 0.5  # biases start at 0: only what is pruned here shall count as zero
            if MATRIX.fullmatch(name):
                parameter.view(-1)[: parameter.numel() * (index % 7) // 10] = 0.0
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def part_kept(tensors: dict[str, Any], pattern: str) -> float:
    chosen = [tensor for name, tensor in tensors.items() if re.match(pattern, name)]
    assert chosen
    return float(sum((tensor != 0).sum() for tensor in chosen) / sum(tensor.size for tensor in chosen))


def edit(folder: Path, *, drop: str) -> None:
    """Takes tensors out of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not re.search(drop, name)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def printed(reference: Path | str, save_to: str | None = None) -> str:
    file = io.StringIO()
    inspect_command(str(reference), save_to, Console(file=file, width=80))
    return file.getvalue()


def test_the_three_densities_and_every_matrix_match_the_files(pruned: Path) -> None:
    inspection = inspect_model(pruned)
    tensors = load_file(pruned / "model.safetensors")
    matrices = {match[1]: tensor for name, tensor in tensors.items() if (match := MATRIX.fullmatch(name))}
    assert len(matrices) == 12
    counted = {layer.name: (layer.kept, layer.total) for layer in inspection.density.layers}
    assert counted == {f"encoder.{name}": (int((t != 0).sum()), t.size) for name, t in matrices.items()}
    assert inspection.density.linear == pytest.approx(part_kept(tensors, MATRIX.pattern))
    assert inspection.density.encoder == pytest.approx(part_kept(tensors, r"bert\.encoder\."))
    assert inspection.density.model == pytest.approx(part_kept(tensors, ""))
    assert inspection.density.linear < inspection.density.encoder < inspection.density.model < 1
    assert inspection.missing == ()
    assert inspection.name == "BertForSequenceClassification"


def test_the_pretrained_encoder_is_dense(minilm_dir: Path) -> None:
    inspection = inspect_model(minilm_dir)
    assert len(inspection.density.layers) == 36
    assert sum(layer.total for layer in inspection.density.layers) == 6 * (4 * 384**2 + 2 * 4 * 384**2)
    assert inspection.density.linear == pytest.approx(1.0, abs=1e-4)


def test_only_the_layers_that_were_pruned_count(pruned: Path) -> None:
    inspection = inspect_model(pruned, LayerRule(include=(r"attention\.self",)))
    tensors = load_file(pruned / "model.safetensors")
    assert len(inspection.density.layers) == 6
    pattern = r"bert\.encoder\.layer\.\d\.attention\.self\.\w+\.weight"
    assert inspection.density.linear == pytest.approx(part_kept(tensors, pattern))
    assert inspection.density.model == pytest.approx(part_kept(tensors, ""))


def test_what_the_files_lack_is_said(pruned: Path) -> None:
    edit(pruned, drop=r"^classifier\.")
    assert inspect_model(pruned).missing == ("classifier.bias", "classifier.weight")
    assert "Not in the files; initial values counted: classifier.bias, classifier.weight\n" in printed(pruned)


def test_missing_matrices_of_the_encoder_are_an_error(pruned: Path) -> None:
    edit(pruned, drop=r"layer\.1\.attention\.self\.\w+\.weight")
    with pytest.raises(ConfigError, match=r"lack 3 matrices of the encoder; the first is encoder\.layer\.1\."):
        inspect_model(pruned)


def test_a_model_without_linear_layers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=50)).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    assert "MODEL: the encoder of GPT2LMHeadModel has no linear layers" in capsys.readouterr().err


def test_damaged_or_absent_models_are_refused(pruned: Path, tmp_path: Path) -> None:
    content = (pruned / "model.safetensors").read_bytes()
    for damaged in (content[: len(content) // 2], b"not safetensors at all"):
        (pruned / "model.safetensors").write_bytes(damaged)
        file = re.escape(str(pruned / "model.safetensors"))
        with pytest.raises(ConfigError, match=f"MODEL: the weights in {file} cannot be read"):
            inspect_model(pruned)
    with pytest.raises(ConfigError, match="MODEL"):
        inspect_command(str(tmp_path / "nothing-here"))


def test_the_table_groups_by_layer_and_ends_with_the_sums(pruned: Path) -> None:
    inspection = inspect_model(pruned)
    file = io.StringIO()
    Console(file=file, width=80).print(inspection_table(inspection))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[0] for row in rows] == ["0", "", "", "", "", "", "1", "", "", "", "", "", "all", "", ""]
    first = inspection.density.layers[0]
    assert rows[0] == ["0", "attention.self.query", str(first.kept), "256", f"{first.density:.4f}"]
    kept, total = (sum(getattr(layer, key) for layer in inspection.density.layers) for key in ("kept", "total"))
    assert rows[-3][1:] == ["these linear weights", f"{kept:,}", f"{total:,}", f"{inspection.density.linear:.4f}"]
    assert rows[-2][-1] == f"{inspection.density.encoder:.4f}"
    assert rows[-1][-1] == f"{inspection.density.model:.4f}"


def test_the_command_saves_the_figure(pruned: Path, tmp_path: Path) -> None:
    figure = tmp_path / "new" / "folder" / "density.svg"
    assert f"figure: {figure}\n" in printed(pruned, str(figure))
    assert "attention.self.query" in figure.read_text()
    with pytest.raises(ConfigError, match=r"\.png, \.jpg, \.svg, \.pdf"):
        printed(pruned, str(tmp_path / "density.gif"))


def test_any_figure_of_a_model_can_be_saved(pruned: Path, tmp_path: Path) -> None:
    for name in FIGURES:
        if name != "movement":
            inspect_command(str(pruned), str(tmp_path / f"{name}.png"), Console(file=io.StringIO()), figure=name)
            assert (tmp_path / f"{name}.png").is_file()
    last = "encoder.layer.1.output.dense"
    inspection = inspect_model(pruned)
    figure = inspection_figure(inspection, "mask", last)
    tensor = load_file(pruned / "model.safetensors")[f"bert.{last}.weight"]
    shown = figure.rgb()[mask_box(tensor.shape)][:: pixels_per_weight(tensor.shape), :: pixels_per_weight(tensor.shape)]
    assert np.array_equal((shown == shown[tensor != 0][0]).all(-1), tensor != 0)


def test_movement_is_counted_from_the_initial_model(pruned: Path, tmp_path: Path) -> None:
    tensors = load_file(pruned / "model.safetensors")
    initial = tmp_path / "initial"
    shutil.copytree(pruned, initial)
    moved = {name: tensor + (0.25 if MATRIX.fullmatch(name) else 0) for name, tensor in tensors.items()}
    save_file(moved, initial / "model.safetensors", metadata={"format": "pt"})
    figure = inspection_figure(inspect_model(pruned), "movement", initial=inspect_model(initial).model)
    kept = sum(int((tensor != 0).sum()) for name, tensor in tensors.items() if MATRIX.fullmatch(name))
    (image,) = figure.axes[0].images
    counts = np.ma.filled(image.get_array(), 0)
    assert counts.sum() == kept
    assert counts[0].sum() == kept, "all that is left went down by 0.25, as far as any weight went"


@pytest.mark.parametrize("student", [{"layers": [0, 2]}, {"config": {"num_hidden_layers": 2}}, {}])
def test_movement_of_a_run_is_counted_from_the_student_that_it_began_as(
    student: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    pretrained = tmp_path / "pretrained"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=20, **sizes)).save_pretrained(
        pretrained
    )
    experiment = Experiment.model_validate(
        {"name": "tiny", "task": "mrpc", "student": {"model": str(pretrained), **student}}, strict=False
    )
    start_run(Location.of(tmp_path / "run").make_folder(), experiment, "digest", {})
    began = load_student(pretrained, experiment.student, kind_of(TASKS["mrpc"]), experiment.train.seed)
    began.save_pretrained(tmp_path / "began")
    with torch.no_grad():
        for parameter in began.parameters():
            parameter.sub_(0.25)
    began.save_pretrained(tmp_path / "run" / "model")
    files = [str(tmp_path / f"{name}.png") for name in ("known", "named")]
    inspect_command(str(tmp_path / "run"), files[0], figure="movement")
    inspect_command(str(tmp_path / "run" / "model"), files[1], figure="movement", initial=str(tmp_path / "began"))
    assert Path(files[0]).read_bytes() == Path(files[1]).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--figure", "heads"], r"--figure: needs --save FILE"),
        (["--save", "a.png", "--figure", "schedule"], r"--figure: allowed are density_by_layer, .*, got 'schedule'"),
        (["--save", "a.png", "--figure", "movement"], r"--initial: --figure movement needs the model"),
        (["--save", "a.png", "--initial", "X"], r"--initial: 'X' is not a folder, and the hub does not provide it"),
        (["--save", "a.png", "--matrix", "query"], r"--matrix: density_by_layer shows all matrices"),
        (
            ["--save", "a.png", "--figure", "mask", "--matrix", "encoder.layer.1.attention.self.quary"],
            r"not a pruned matrix of this model; similar names: encoder\.layer\.1\.attention\.self\.query, ",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(
    pruned: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pruned.parent)
    assert main(["inspect", str(pruned), *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not Path("a.png").exists()


def test_a_run_is_inspected_over_the_layers_that_it_pruned(pruned: Path, tmp_path: Path) -> None:
    experiment = Experiment.model_validate(
        {
            "name": "tiny",
            "task": "mrpc",
            "student": {"model": "tiny"},
            "pruning": {"method": "topk", "layers": {"include": ["intermediate"]}},
        }
    )
    run = tmp_path / "run"
    run.mkdir()
    start_run(Location.of(run), experiment, "digest", {})
    with pytest.raises(ConfigError, match="has no model yet"):
        printed(run)
    pruned.rename(run / "model")
    text = printed(run)
    assert "intermediate.dense" in text
    assert "attention" not in text
