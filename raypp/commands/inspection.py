"""`raypp inspect`: the remaining weights of a model, counted in its files without running it, as table and figures."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from raypp.config import LayerRule
from raypp.errors import ConfigError
from raypp.models.initial_model import initial_model
from raypp.models.loading import FROM_FOLDER, load_model_config, quiet_loading, resolve_model
from raypp.models.opening import NamedModel
from raypp.pruning.density import DensityReport, count_density, split_layer_name
from raypp.pruning.linear import linear_layers, select_layers
from raypp.pruning.weight_statistics import DifferentModel, measure
from raypp.storage import Location

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raypp.figures import Picture

FIGURES = ("density_by_layer", "heads", "weights", "movement", "mask")
"""The figures of `run_figures` that can be drawn from a model's files."""
OF_ONE_MATRIX = ("weights", "movement", "mask")  # figures that can show a single matrix


@dataclass(frozen=True)
class Inspection:
    """A model and its remaining weights."""

    name: str
    """The model's class."""
    density: DensityReport
    """The density of the linear weights, the encoder, the model, and each layer."""
    model: PreTrainedModel = field(repr=False)
    missing: tuple[str, ...]
    """Parameters of the model that its files lack, such as a pooler; their initial values are counted."""


def inspect_model(folder: Path, layers: LayerRule | None = None) -> Inspection:
    """Counts the non-zero weights of a Hugging Face folder.

    Args:
        folder: configuration and safetensors of a plain (folded) model.
        layers: which linear layers were pruned; None: all linear layers of the encoder.

    Raises:
        ConfigError: the model does not exist, its files cannot be read or lack weights of the encoder, or the encoder
            has no linear layers.
    """
    model, missing = _load(resolve_model(str(folder), None, "MODEL"), "MODEL")
    names = None if layers is None else list(select_layers(model, layers))
    return Inspection(type(model).__name__, count_density(model, names), model, missing)


def _load(folder: Path, field: str) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model, as the class that its configuration names, and the names of the parameters that its files lack.
    Errors name `field`."""
    import transformers

    config = load_model_config(folder, field)
    named = getattr(transformers, (config.architectures or [""])[0], None)
    is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    model_class: Any = named if is_model else transformers.AutoModel
    try:
        with quiet_loading():
            model, info = model_class.from_pretrained(
                str(folder), use_safetensors=True, output_loading_info=True, dtype="auto", **FROM_FOLDER
            )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{field}: the weights in {folder} cannot be read: {error}") from error
    layers = linear_layers(model)
    if not layers:
        raise ConfigError(f"{field}: the encoder of {type(model).__name__} has no linear layers")
    missing = tuple(sorted(info["missing_keys"]))
    inside = {name.removeprefix(f"{model.base_model_prefix}.") for name in missing}
    if lost := sorted(inside.intersection(f"{name}.weight" for name in layers)):
        raise ConfigError(
            f"{field}: the weights in {folder} lack {len(lost)} matrices of the encoder; the first is {lost[0]}"
        )
    return model, missing


def inspection_table(inspection: Inspection) -> Table:
    """The table of the remaining weights of every pruned matrix, grouped by layer, with totals at the end."""
    density = inspection.density
    table = Table(title=f"Remaining weights of {inspection.name}", title_style="bold", title_justify="left")
    table.add_column("layer")
    table.add_column("matrix")
    for column in ("remaining", "of", "density"):
        table.add_column(column, justify="right")
    places = [(split_layer_name(layer.name), layer) for layer in density.layers]
    several = len({stack for (stack, _, _), _ in places}) > 1
    for (stack, number), group in groupby(places, key=lambda place: place[0][:2]):
        label = f"{stack}.{number}".strip(".") if several else number
        for (_, _, kind), layer in group:
            table.add_row(label, kind, f"{layer.kept:,}", f"{layer.total:,}", f"{layer.density:.4f}")
            label = ""
        table.add_section()
    kept, total = sum(layer.kept for layer in density.layers), sum(layer.total for layer in density.layers)
    table.add_row("all", "these linear weights", f"{kept:,}", f"{total:,}", f"{density.linear:.4f}", style="bold")
    table.add_row("", "encoder, with biases and norms", "", "", f"{density.encoder:.4f}")
    table.add_row("", "model, with embeddings", "", "", f"{density.model:.4f}")
    return table


def inspection_figure(
    inspection: Inspection, name: str = FIGURES[0], matrix: str | None = None, initial: PreTrainedModel | None = None
) -> Picture:
    """One of `FIGURES` of a model.

    Args:
        name: the name of the figure.
        matrix: draw this matrix only; None: all matrices together, or the mask of the first one.
        initial: the model before pruning, for `movement`.

    Raises:
        ConfigError: the figure or matrix does not exist, or there is no data for the figure.
    """
    from raypp.figures import NothingToDraw
    from raypp.figures.run import DRAWINGS_OF_WEIGHTS

    if name not in FIGURES:
        raise ConfigError(f"--figure: allowed are {', '.join(FIGURES)}, got {name!r}")
    if matrix is not None and name not in OF_ONE_MATRIX:
        raise ConfigError(
            f"--matrix: {name} shows all matrices; figures of a single matrix are {', '.join(OF_ONE_MATRIX)}"
        )
    if name == "movement" and initial is None:
        raise ConfigError("--initial: --figure movement needs the model before pruning; only a run has recorded it")
    if name != "movement" and initial is not None:
        raise ConfigError(f"--initial: is only for --figure movement, got --figure {name}")
    density = inspection.density
    if matrix is not None:
        layers = {layer.name: layer for layer in density.layers}
        if matrix not in layers:
            near = ", ".join(difflib.get_close_matches(matrix, layers, n=3, cutoff=0.0))
            raise ConfigError(f"--matrix: {matrix!r} is not a pruned matrix of this model; similar names: {near}")
        density = replace(density, layers=(layers[matrix],))
    try:
        return DRAWINGS_OF_WEIGHTS[name](measure(inspection.model, density, initial))
    except (NothingToDraw, DifferentModel) as error:
        raise ConfigError(f"--figure: {error}") from error


def inspect_command(
    reference: str,
    save_to: str | None = None,
    console: Console | None = None,
    *,
    figure: str | None = None,
    matrix: str | None = None,
    initial: str | None = None,
) -> None:
    """Prints the table of a run or model (folder, URI, hub name or package), and saves a figure if a file is given.

    Args:
        figure, matrix: as in `inspection_figure`.
        initial: the model before pruning, for `movement`; None: the run's own.
    """
    console = console or Console()
    if save_to is None:
        if given := [f"--{n}" for n, v in {"figure": figure, "matrix": matrix, "initial": initial}.items() if v]:
            raise ConfigError(f"{', '.join(given)}: needs --save FILE, the file for the figure")
    else:
        from raypp.figures import require_format

        require_format(Location.of(save_to, "--save").name, "--save")
    named = NamedModel.of(reference, "MODEL")
    experiment = named.experiment
    with named.opened() as folder:
        layers = None if experiment is None or experiment.pruning is None else experiment.pruning.layers
        inspection = inspect_model(folder, layers)
        if save_to is not None:
            name = figure or FIGURES[0]
            before = None
            if initial is not None:
                before = _load(resolve_model(initial, None, "--initial"), "--initial")[0]
            elif experiment is not None and name == "movement":
                before = initial_model(experiment)()
            picture, file = inspection_figure(inspection, name, matrix, before), Location.of(save_to, "--save")
            file.parent.make_folder()
            picture.save(file)
    console.print(inspection_table(inspection))
    if inspection.missing:
        names = ", ".join(inspection.missing)
        console.print(f"Not in the files; initial values counted: {names}", markup=False, soft_wrap=True)
    if save_to is not None:
        console.print(f"figure: {save_to}", markup=False, soft_wrap=True)
