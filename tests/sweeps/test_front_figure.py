"""The figure of fronts: what is drawn, told apart and compared with."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raypp.config import PruningSettings
from raypp.sweeps.front import Front, Point
from raypp.sweeps.front_figure import front_figure
from raypp.sweeps.published import published_curves, published_student


def point(density: float, metric: float, on_front: bool = True, spread: float = 0.0, **changes: Any) -> Point:
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return Point(0, settings, density, metric, spread, ("runs/a", "runs/b") if spread else ("runs/a",), on_front)


POINTS = [point(0.5, 0.82, spread=0.01), point(0.31, 0.76, on_front=False), point(0.1, 0.79), point(0.03, 0.71)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_points_their_front_and_the_teacher() -> None:
    figure = front_figure([Front("swept", POINTS, teacher=0.84)], "eval/accuracy")
    (axes,) = figure.axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines["front"].get_xdata()) == [0.03, 0.1, 0.5], "beaten points are not on the line"
    assert set(lines["dense teacher"].get_ydata()) == {0.84}
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "accuracy on dev"
    assert "2 seeds" in axes.get_title()
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in hollow] == [[0.31]]


@pytest.mark.parametrize("densities", [(0.5, 0.03), (0.97,), (0.62, 0.51), (1.0, 0.004), (0.9, 0.0002)])
def test_ticks_are_round_and_enclose_what_is_drawn(densities: tuple[float, ...]) -> None:
    figure = front_figure([Front("swept", [point(density, 0.5) for density in densities])], "eval/f1")
    FigureCanvasAgg(figure).draw()
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()  # type: ignore[attr-defined]
    low, high = axes.get_xlim()
    assert low <= min(densities)
    assert max(densities) <= high
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    assert len(labels) >= 2
    assert all(len(label.get_text()) <= 5 for label in labels)
    boxes = [label.get_window_extent(renderer) for label in labels]
    assert not any(box.overlaps(other) for box, other in itertools.pairwise(boxes))


def test_methods_of_one_sweep_are_told_apart() -> None:
    points = [
        point(0.5, 0.8, pruning={"method": "topK"}),
        point(0.3, 0.7, pruning__method="sigmoid_threshold"),
        point(1.0, 0.9, pruning=None),
    ]
    labels = legend(front_figure([Front("swept", points)], "eval/accuracy"))
    assert {"movement", "soft movement", "dense", "front"} == set(labels)


def test_every_method_has_a_name_in_the_legend() -> None:
    methods = [get_args(settings)[1].tag for settings in get_args(get_args(PruningSettings)[0])]
    assert {"topk", "fisher"} < set(methods)
    points = [point(0.5, 0.8, pruning={"method": method}) for method in methods]
    labels = legend(front_figure([Front("swept", points)], "eval/accuracy"))
    assert len(set(labels) - {"front"}) == len(methods)


def test_sweeps_are_told_apart_and_share_a_teacher() -> None:
    fronts = [Front("one", POINTS, 0.84), Front("two", POINTS, 0.84)]
    assert set(legend(front_figure(fronts, "eval/accuracy"))) == {"dense teacher", "hollow: beaten", "one", "two"}
    fronts[1] = Front("two", POINTS, 0.9)
    assert "dense teacher of two" in legend(front_figure(fronts, "eval/accuracy"))


def test_published_curves_are_those_of_the_same_task_encoder_and_metric() -> None:
    curves = published_curves("mnli", "google-bert/bert-base-uncased", "eval/matched/accuracy")
    soft = next(curve for curve in curves if curve.method == "sigmoid_threshold")
    assert soft.points == ((0.10, pytest.approx(0.812)), (0.03, pytest.approx(0.795)))
    assert "soft movement (Sanh et al. 2020)" in legend(
        front_figure([Front("swept", POINTS, published=curves)], "eval/matched/accuracy")
    )
    assert len(published_curves("qqp", "bert-base-uncased", "eval/accuracy")) == 4
    for task, student, headline in (
        ("mnli", "google-bert/bert-large-uncased", "eval/matched/accuracy"),
        ("mrpc", "bert-base-uncased", "eval/accuracy"),
        ("qqp", "bert-base-uncased", "eval/f1"),
    ):
        assert published_curves(task, student, headline) == []


def test_curves_of_a_whole_encoder_are_not_drawn_beside_a_part_of_it() -> None:
    student = {"model": "bert-base-uncased", "layers": None, "config": None}
    pruning = {"method": "topk", "layers": {"include": ["."], "exclude": []}}

    def found(axes: dict[str, Any], **sections: Any) -> str | None:
        return published_student({"student": student, "pruning": pruning, **sections, "sweep": {"space": axes}})

    some = {**pruning, "layers": {"include": ["."], "exclude": ["attention"]}}
    assert found({"pruning.final_density": {"choice": [0.1]}}) == "bert-base-uncased"
    assert found({"pruning": {"choice": [{"method": "magnitude"}]}}, pruning=None) == "bert-base-uncased"
    assert found({"pruning": {"choice": [{"method": "magnitude"}, some]}}) is None
    for part in ({"layers": (0, 2, 4)}, {"config": {"num_hidden_layers": 3}}):
        assert found({}, student={**student, **part}) is None
    assert found({}, pruning=some) is None
    for axis in ("student.model", "student.layers", "student", "pruning.layers", "pruning.layers.exclude"):
        assert found({axis: {"choice": []}}) is None
    for variant in ({"student.layers": [0]}, {"pruning": some}, {"pruning.layers.exclude": ["attention"]}):
        sweep = {"space": {}, "variants": [{}, variant]}
        assert published_student({"student": student, "pruning": pruning, "sweep": sweep}) is None
