"""Figures of weights: that they show the counts they are drawn from, pixel by pixel where a pixel is a weight."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from raypp.figures import DOTS_PER_INCH, NothingToDraw
from raypp.figures.heads import DEAD, heads_figure
from raypp.figures.mask import KEPT, PRUNED, mask_box, mask_figure, pixels_per_weight
from raypp.figures.run import FIGURES, run_figures
from raypp.figures.weights import movement_figure, scores_figure, weights_figure
from raypp.pruning.density import LayerDensity
from raypp.pruning.heads import AttentionHeads
from raypp.pruning.weight_statistics import BINS, Histogram, Movement, WeightStatistics


def histogram(low: float, high: float, border: float) -> Histogram:
    """Numbers spread like a bell, those above the border kept."""
    edges = np.linspace(low, high, BINS + 1)
    bell = np.round(1e6 * np.exp(-(np.linspace(-4, 4, BINS) ** 2))).astype(np.int64)
    return Histogram(edges, np.where(edges[:-1] >= border, bell, 0), np.where(edges[:-1] < border, bell, 0))


@pytest.fixture
def statistics() -> WeightStatistics:
    counts = np.zeros((BINS, BINS), np.int64)
    counts[BINS // 2 + 10, BINS // 2 + 20] = 7  # began a little above 0, and went up
    edges = np.linspace(-0.5, 0.5, BINS + 1)
    return WeightStatistics(
        layers=(LayerDensity("encoder.layer.0.output.dense", 30, 100),),
        weights=histogram(-0.5, 0.5, 0.1),
        movement=Movement(edges, np.linspace(-0.01, 0.01, BINS + 1), counts, counts[::-1, ::-1].copy()),
        scores=histogram(-1.0, 1.0, 0.2),
        scores_are_logarithms=False,
        lowest_kept=(0.1, 0.2, 0.6),
        heads=(AttentionHeads("encoder.layer", "0", (10, 0, 90), 100, (True, False, True)),),
        mask_name="encoder.layer.0.output.dense",
        mask=np.eye(4, 9, dtype=bool),
    )


def texts_of(figure: Figure) -> str:
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts) + str(figure.texts)


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- the mask --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(384, 384), (768, 3072), (3072, 768), (1000, 333), (5, 7), (1, 1)])
def test_the_image_is_the_mask_pixel_for_pixel(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.3
    figure = mask_figure(mask, "encoder.layer.0.output.dense")
    side = pixels_per_weight(shape)
    assert side == 1 or max(shape) < 320
    shown = figure.rgb()[mask_box(shape)]
    colors = np.round(255 * np.array([to_rgb(PRUNED), to_rgb(KEPT)])).astype(np.uint8)
    np.testing.assert_array_equal(shown, colors[mask.astype(int)].repeat(side, 0).repeat(side, 1))
    with Image.open(io.BytesIO(figure.encoded(".png"))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[mask_box(shape)], shown)


def test_a_jpeg_shows_every_weight_in_its_own_colour() -> None:
    mask = np.random.default_rng(0).random((384, 384)) < 0.1
    figure = mask_figure(mask, "layer.0.query")
    with Image.open(io.BytesIO(figure.encoded(".jpg"))) as image:
        assert image.info["dpi"] == (DOTS_PER_INCH, DOTS_PER_INCH)
        found = np.asarray(image.convert("RGB"), np.int64)[mask_box(mask.shape)]
    drawn = figure.rgb().astype(np.int64)[mask_box(mask.shape)]
    assert np.abs(found - drawn).mean() < 4
    assert np.abs(found - drawn).max() < 48, "little of what tells kept from pruned"


def test_the_mask_says_what_it_is() -> None:
    figure = mask_figure(np.eye(4, 8, dtype=bool), "layer.0.query")
    assert "layer.0.query" in texts_of(figure)
    assert "4 of 32 weights kept (12.50%)" in texts_of(figure)
    assert figure.axes[0].get_xlabel() == "input (8)"
    assert figure.axes[0].get_ylabel() == "output (4)"


# --- histograms ------------------------------------------------------------------------------------------------------


def test_the_histogram_of_scores_has_every_weight_and_the_thresholds(statistics: WeightStatistics) -> None:
    figure = scores_figure(statistics)
    (axes,) = figure.axes
    steps = {str(patch.get_label()).split(":")[0]: patch for patch in axes.patches if hasattr(patch, "get_data")}
    assert statistics.scores is not None
    np.testing.assert_array_equal(steps["kept"].get_data().values, statistics.scores.kept)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(steps["pruned"].get_data().values, statistics.scores.pruned)  # type: ignore[attr-defined]
    assert [line.get_xdata()[0] for line in axes.lines] == [0.2], "the median of the matrices"
    assert "lowest score kept: 0.2 (median; band: 0.1 to 0.6, by matrix)" in legend_of(figure)


def test_one_threshold_for_all_is_a_line_without_a_band(statistics: WeightStatistics) -> None:
    figure = scores_figure(replace(statistics, lowest_kept=(0.2, 0.2)))
    assert "lowest score kept: 0.2" in legend_of(figure)


def test_weights_are_shown_as_they_began_and_as_they_ended(statistics: WeightStatistics) -> None:
    figure = weights_figure(statistics)
    assert [axes.get_xlabel().split(" (")[0] for axes in figure.axes] == ["initial weight", "final weight"]
    assert not any(axes.lines for axes in figure.axes), "the threshold is one of scores"
    only_final = weights_figure(replace(statistics, movement=None))
    assert len(only_final.axes) == 1


def test_by_magnitude_the_threshold_is_one_of_weights(statistics: WeightStatistics) -> None:
    figure = weights_figure(replace(statistics, scores=None))
    assert [line.get_xdata()[0] for line in figure.axes[-1].lines] == [0.2, -0.2]
    assert any(text.startswith("smallest absolute weight kept: 0.2") for text in legend_of(figure))


# --- movement --------------------------------------------------------------------------------------------------------


def test_movement_shows_the_counts_where_they_are(statistics: WeightStatistics) -> None:
    figure = movement_figure(statistics)
    kept, pruned, _ = figure.axes
    assert (kept.get_title(), pruned.get_title()) == ("kept: 7 weights", "pruned: 7 weights")
    (image,) = kept.images
    assert image.get_extent() == [-0.5, 0.5, -0.01, 0.01]
    shown = np.ma.filled(image.get_array(), 0)
    assert shown[BINS // 2 + 20, BINS // 2 + 10] == shown.sum() == 7, "up is a change upwards, right an initial weight"


def test_of_a_folded_model_the_kept_weights_move(statistics: WeightStatistics) -> None:
    figure = movement_figure(replace(statistics, lowest_kept=()))
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["kept: 7 weights"]


# --- heads -----------------------------------------------------------------------------------------------------------


def test_heads_show_what_is_left_and_which_are_dead(statistics: WeightStatistics) -> None:
    figure = heads_figure(statistics.heads)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["10", DEAD, "90"]
    assert axes.get_title() == "2 of 3 attention heads survive"
    assert DEAD in axes.get_xlabel()


# --- all -------------------------------------------------------------------------------------------------------------


def test_a_pruned_run_has_every_figure_and_their_texts_fit(statistics: WeightStatistics) -> None:
    records = [{"step": 1, "train/loss": 1.0, "prune/requested_density": 0.5, "eval/accuracy": 0.7}]
    figures = run_figures(records, statistics)
    assert tuple(figures) == FIGURES
    for name in FIGURES[3:]:
        figure = figures[name]
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frame = figure.bbox.padded(1)
        texts = [t for a in figure.axes for t in (*a.texts, a.title, a.xaxis.label, a.yaxis.label)]
        for text in [*texts, *figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]:
            box = text.get_window_extent(canvas.get_renderer())
            assert not text.get_text() or (frame.contains(*box.min) and frame.contains(*box.max)), (name, text)


def test_what_there_is_not_is_not_drawn(statistics: WeightStatistics) -> None:
    bare = replace(statistics, scores=None, movement=None, heads=())
    for draw in (scores_figure, movement_figure):
        with pytest.raises(NothingToDraw):
            draw(bare)
    with pytest.raises(NothingToDraw):
        heads_figure(bare.heads)
    assert tuple(run_figures([], bare)) == ("density_by_layer", "weights", "mask")
