"""Figures: that they show the numbers they were given, legibly, in every format."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from raypp.errors import ConfigError
from raypp.figures.layers import density_by_layer_figure
from raypp.figures.run import evaluation_figure, loss_figure, run_figures, running_mean, schedule_figure
from raypp.pruning.density import split_layer_name
from raypp.storage import Location

OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}


@dataclass(frozen=True)
class Matrix:
    name: str
    kept: int
    total: int


def bert(layers: int, hidden: int = 768) -> list[Matrix]:
    """The matrices of a BERT encoder, each of another density."""
    kinds = {f"attention.self.{kind}": 1 for kind in ("query", "key", "value")}
    kinds |= {"attention.output.dense": 1, "intermediate.dense": 4, "output.dense": 4}
    random = np.random.default_rng(0)
    return [
        Matrix(f"encoder.layer.{layer}.{kind}", int(random.uniform(0, 0.4) * factor * hidden**2), factor * hidden**2)
        for layer in range(layers)
        for kind, factor in kinds.items()
    ]


def training(steps: int = 1000) -> list[dict[str, float]]:
    """The metrics.jsonl of a run: a line every 10 steps, an evaluation every 250."""
    records: list[dict[str, float]] = []
    for step in range(10, steps + 1, 10):
        record = {"step": step, "train/loss": 1 / step, "train/soft_loss": 2 / step, "train/hard_loss": 0.5}
        record |= {"train/hidden_loss": 3 / step}
        record |= {
            "train/penalty": step / 7,
            "prune/requested_density": 1 - 0.85 * step / steps,
            "prune/penalty_lambda": step,
        }
        if step % 250 == 0:
            record |= {"eval/accuracy": 0.7, "eval/f1": 0.8, "eval/entropy": 1.6, "prune/density": 1.0 - step / steps}
        records.append(record)
    return records


def lines(figure: Figure) -> dict[str, dict[str, Any]]:
    """{y label of the panel: {label of the line: the line}}."""
    return {axes.get_ylabel(): {str(line.get_label()): line for line in axes.lines} for axes in figure.axes}


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".jpg", b"\xff\xd8\xff"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_a_figure_is_saved_as_its_files_ending_says(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"schedule{suffix}"
    schedule_figure(training()).save(path)
    assert path.read_bytes().startswith(magic)
    schedule_figure(training()).save(Location.of(tmp_path / f"again{suffix.upper()}"))
    assert (tmp_path / f"again{suffix.upper()}").read_bytes().startswith(magic)


@pytest.mark.parametrize("name", ["figure.gif", "figure"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.png, \.jpg, \.svg, \.pdf"):
        schedule_figure(training()).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_figures_pixels_are_those_of_its_png() -> None:
    figure = schedule_figure(training())
    pixels = figure.rgb()
    assert pixels.dtype == np.uint8
    assert pixels.shape == (round(figure.get_figheight() * 150), round(figure.get_figwidth() * 150), 3)
    with Image.open(io.BytesIO(schedule_figure(training()).encoded(".png"))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels)


def test_a_notebook_shows_a_figure_by_itself() -> None:
    figure = schedule_figure(training())
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        assert image.size == figure.rgb().shape[1::-1]


def test_matplotlib_is_imported_to_draw_and_its_global_state_is_left_alone() -> None:
    program = (
        "import sys, raypp.training.recording, raypp.commands.inspection, raypp.sweeps.result;"
        "print('matplotlib' in sys.modules);"
        "import sys, tempfile, pathlib, matplotlib as m; before = dict(m.rcParams);"
        "import raypp.figures.run as r;"
        "r.schedule_figure([{'step': 1, 'prune/penalty_lambda': 2.0}]).save(pathlib.Path(tempfile.mkdtemp()) /"
        "'a.png'); assert dict(m.rcParams) == before; print('matplotlib.pyplot' in sys.modules)"
    )
    environment = {"MPLBACKEND": "agg", "PATH": "", "HOME": str(Path.home())}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=root)
    assert done.stdout == "False\nFalse\n", done.stderr


# --- over steps ------------------------------------------------------------------------------------------------------


def test_the_schedule_shows_what_was_recorded() -> None:
    panels = lines(schedule_figure(training()))
    assert list(panels) == ["remaining linear weights", "lambda of the penalty"]
    achieved = panels["remaining linear weights"]["achieved"]
    assert achieved.get_xdata().tolist() == [250, 500, 750, 1000]
    assert achieved.get_ydata().tolist() == [0.75, 0.5, 0.25, 0.0]
    assert panels["remaining linear weights"]["requested"].get_ydata()[-1] == pytest.approx(0.15)


def test_series_that_are_missing_are_left_out() -> None:
    records = [{"step": 1, "prune/threshold": 0.01}, {"step": 2, "prune/threshold": 0.02, "train/loss": 1.0}]
    assert list(lines(schedule_figure(records))) == ["threshold"]
    [panel] = lines(loss_figure(records)).values()
    assert list(panel)[-1] == "loss"


@pytest.mark.parametrize("draw", [schedule_figure, loss_figure, evaluation_figure, density_by_layer_figure])
@pytest.mark.parametrize("records", [[], [{"step": 1, "perf/steps_per_second": 3.0}]])
def test_nothing_to_draw_is_an_error_that_says_so(draw: Any, records: list[dict[str, float]]) -> None:
    if draw is density_by_layer_figure:
        records = []
    with pytest.raises(ValueError, match=r"(?i)(none of its series was recorded|no pruned layer)"):
        draw(records)


def test_a_run_gets_the_figures_it_has_data_for() -> None:
    assert list(run_figures(training(), None)) == ["schedule", "evaluation", "loss"]
    assert list(run_figures([{"step": 1, "train/loss": 0.5}], None)) == ["loss"]


def test_loss_terms_share_a_panel_and_the_penalty_has_its_own() -> None:
    panels = lines(loss_figure(training()))
    assert list(panels) == ["loss (mean of the rows)", "penalty"]
    assert {"loss", "soft loss", "hard loss", "hidden loss"} <= panels["loss (mean of the rows)"].keys()
    hard = panels["loss (mean of the rows)"]["hard loss"]
    np.testing.assert_allclose(hard.get_ydata(), 0.5)  # the running mean of a constant


def test_the_running_mean_neither_lags_nor_shifts() -> None:
    ramp = np.arange(500.0)
    np.testing.assert_allclose(running_mean(ramp), ramp)
    noise = np.random.default_rng(0).normal(size=2000)
    middle = running_mean(noise)[1000]
    assert middle == pytest.approx(noise[950:1051].mean())  # a twentieth of the run, 100 values, around the middle
    assert running_mean(noise[:3]).tolist() == noise[:3].tolist()  # too few to smooth


def test_a_loss_of_one_term_is_drawn_once() -> None:
    records = [{"step": step, "train/loss": 1 / step, "train/hard_loss": 1 / step} for step in (1, 2)]
    [panel] = lines(loss_figure(records)).values()
    assert [label for label in panel if not label.startswith("_")] == ["hard loss"]


def test_metrics_of_other_scales_get_panels_of_their_own() -> None:
    panels = lines(evaluation_figure(training()))
    assert list(panels) == ["metric", "entropy"]
    assert list(panels["metric"]) == ["accuracy", "f1"]


def test_colours_are_colour_blind_safe_and_axes_are_labelled() -> None:
    for figure in (schedule_figure(training()), loss_figure(training()), evaluation_figure(training())):
        assert {to_hex(line.get_color()) for axes in figure.axes for line in axes.lines} <= OKABE_ITO
        assert all(axes.get_ylabel() for axes in figure.axes)
        assert figure.axes[-1].get_xlabel() == "optimizer step"


# --- over layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("encoder.layer.11.attention.self.query", ("encoder.layer", "11", "attention.self.query")),
        ("albert_layer_groups.0.albert_layers.1.ffn", ("albert_layer_groups.0.albert_layers", "1", "ffn")),
        ("layers.3.mlp.0", ("layers", "3", "mlp.0")),
        ("0.dense", ("", "0", "dense")),
        ("embeddings_project", ("", "", "embeddings_project")),
    ],
)
def test_where_a_name_is_split(name: str, place: tuple[str, str, str]) -> None:
    assert split_layer_name(name) == place


@pytest.mark.parametrize("layers", [1, 6, 12, 24])
def test_the_map_shows_every_matrix_and_the_sums(layers: int) -> None:
    matrices = bert(layers)
    axes = density_by_layer_figure(matrices).axes[0]
    shown = np.array([text.get_text() for text in axes.texts], dtype=float).reshape(layers + 1, 7)
    kept = np.array([matrix.kept for matrix in matrices]).reshape(layers, 6)
    total = np.array([matrix.total for matrix in matrices]).reshape(layers, 6)
    np.testing.assert_allclose(shown[:-1, :-1], 100 * kept / total, atol=0.051)
    np.testing.assert_allclose(shown[:-1, -1], 100 * kept.sum(1) / total.sum(1), atol=0.051)
    np.testing.assert_allclose(shown[-1, :-1], 100 * kept.sum(0) / total.sum(0), atol=0.051)
    assert shown[-1, -1] == pytest.approx(100 * kept.sum() / total.sum(), abs=0.051)
    assert [label.get_text() for label in axes.get_yticklabels()] == [*map(str, range(layers)), "all"]


def test_several_stacks_and_numberless_matrices_share_the_map() -> None:
    matrices = [*bert(2), Matrix("embeddings_project", 1, 10), Matrix("decoder.layer.0.output.dense", 3, 4)]
    axes = density_by_layer_figure(matrices).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["encoder.layer.0", "encoder.layer.1", "others", "decoder.layer.0", "all"]
    assert "75.0" in {text.get_text() for text in axes.texts}


def test_names_without_a_number_become_bars() -> None:
    axes = density_by_layer_figure([Matrix("query", 1, 4), Matrix("value", 3, 4)]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [25.0, 75.0]  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["query", "value"]
    assert axes.get_xlabel() == "remaining weights (%)"


@pytest.mark.parametrize("layers", [1, 6, 12, 24])
def test_no_text_of_the_map_is_cut_or_covers_another(layers: int) -> None:
    figure = density_by_layer_figure(bert(layers))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    axes, colorbar = figure.axes
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    texts: list[Text] = [*axes.texts, *labels, axes.title, axes.yaxis.label, colorbar.yaxis.label]
    frame = figure.bbox.padded(1)
    for text in texts:
        box = text.get_window_extent(renderer)
        assert frame.contains(*box.min), text
        assert frame.contains(*box.max), text
    for group in (axes.texts, axes.get_yticklabels()):
        boxes = [text.get_window_extent(renderer) for text in group]
        assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[index + 1 :])
