"""The figure of one or several sweeps: metric against achieved density, with teachers and published results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from raypp.config import METHOD_LABELS, method_name
from raypp.evaluation.metric_label import metric_label
from raypp.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Picture
from raypp.sweeps.front import Front, Point

LOOKS = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))
REFERENCE_STYLES = (("--", "x"), ("-.", "+"), (":", "1"), ((0, (5, 1, 1, 1, 1, 1)), "2"))
TICKS = (*(factor * 10.0**power for power in range(-4, 0) for factor in (1, 2, 3, 5)), 0.7, 1.0)
MOST_TICKS = 10  # the labels of more ticks would touch


def front_figure(fronts: Sequence[Front], headline: str) -> Picture:
    """Metric against achieved density (logarithmic): points with the spread of their seeds, each front as a line.

    Points on the front are filled, other points are hollow. Colours and markers show the method in the figure of one
    sweep, and the sweep in the figure of several.
    """
    figure = Picture(7.0, 5.0)
    axes = figure.subplots()
    _draw_references(axes, fronts)
    looks = cycle(LOOKS)
    for front in fronts:
        groups = {front.name: list(front.points)} if len(fronts) > 1 else _by_method(front)
        line_color = BLACK if len(groups) > 1 else LOOKS[0][0]
        for (label, group), (color, marker) in zip(groups.items(), looks, strict=False):
            _draw_points(axes, group, label, color, marker)
            line_color = color if len(groups) == 1 else line_color
        line = sorted((point.density, point.metric) for point in front.points if point.on_front)
        name = "front" if len(fronts) == 1 else "_nolegend_"
        axes.plot(*zip(*line, strict=True), color=line_color, linewidth=1.5, zorder=2, label=name)
    points = [point for front in fronts for point in front.points]
    if not all(point.on_front for point in points):
        axes.plot([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="none", label="hollow: beaten")
    published = [density for front in fronts for curve in front.published for density, _ in curve.points]
    _scale_densities(axes, [*(point.density for point in points), *published])
    axes.set_xlabel("remaining linear weights (%), logarithmic")
    axes.set_ylabel(metric_label(headline).replace("_", " ").replace("/", " ") + " on dev")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    seeds = max(len(point.runs) for point in points)
    spread = f"\nmean and standard deviation of {seeds} seeds" if seeds > 1 else ""
    axes.set_title((fronts[0].name if len(fronts) == 1 else "Fronts") + spread, fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _by_method(front: Front) -> dict[str, list[Point]]:
    """A sweep's points by pruning method; all in one group if the sweep does not try several methods."""
    changed = [_changed_method(point) for point in front.points]
    groups: dict[str, list[Point]] = {}
    for point, method in zip(front.points, changed, strict=True):
        groups.setdefault(method or (front.method if any(changed) else "trials"), []).append(point)
    return groups


def _changed_method(point: Point) -> str | None:
    """The label of the pruning method that a point sets; None if it does not set any."""
    section = point.changes.get("pruning", {})
    if section is None:
        return "dense"
    method = point.changes.get("pruning.method", section.get("method"))
    return None if method is None else METHOD_LABELS[method_name(method)]


def _draw_points(axes: Axes, points: Sequence[Point], label: str, color: str, marker: str) -> None:
    for on_front in (True, False):
        chosen = [point for point in points if point.on_front == on_front]
        if chosen:
            axes.errorbar(
                [point.density for point in chosen],
                [point.metric for point in chosen],
                yerr=[point.spread for point in chosen] if any(point.spread for point in chosen) else None,
                color=color,
                marker=marker,
                markersize=6,
                markerfacecolor=color if on_front else "white",
                linestyle="none",
                capsize=3,
                zorder=3,
                label=label,
            )
            label = "_nolegend_"  # the legend has the label once


def _draw_references(axes: Axes, fronts: Sequence[Front]) -> None:
    """Draws a line for each dense teacher, and published results in grey."""
    teachers: dict[float, list[str]] = {}
    for front in fronts:
        if front.teacher is not None:
            teachers.setdefault(front.teacher, []).append(front.name)
    colors = {front.name: color for front, (color, _) in zip(fronts, cycle(LOOKS), strict=False)}
    for metric, names in teachers.items():
        one = len(teachers) == 1
        label = "dense teacher" if one else f"dense teacher of {', '.join(names)}"
        axes.axhline(metric, color=BLACK if one else colors[names[0]], linestyle=":", linewidth=1.5, label=label)
    published = dict.fromkeys(curve for front in fronts for curve in front.published)
    for curve, (style, marker) in zip(published, cycle(REFERENCE_STYLES), strict=False):
        axes.plot(
            *zip(*curve.points, strict=True), color=GREY, linestyle=style, marker=marker, linewidth=1, label=curve.label
        )


def _scale_densities(axes: Axes, densities: Sequence[float]) -> None:
    """Makes the density axis logarithmic, with round limits around the drawn densities and plain percentages."""
    low = max((tick for tick in TICKS if tick <= min(densities) * 1.001), default=TICKS[0])
    high = min(tick for tick in TICKS if tick >= max(densities) * 0.999)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xscale("log")
    axes.set_xlim(low * 0.9, high * 1.1)
    axes.set_xticks(ticks if len(ticks) <= MOST_TICKS else [tick for tick in ticks if f"{tick:e}"[0] == "1"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: f"{100 * density:.3g}"))
