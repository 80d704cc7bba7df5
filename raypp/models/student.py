"""The student before training: a pretrained model, some layers of one, or a new model with a given configuration."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raypp.errors import ConfigError
from raypp.models.loading import load_model_config, load_pretrained
from raypp.models.saved_models import load_saved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raypp.config import Experiment, StudentSettings
    from raypp.kinds import TaskKind
    from raypp.storage import Location

# Lists in a configuration that have one entry for each layer, and lists that may have the same length by chance.
BY_LAYER = ("layer_types", "attention_window")
NOT_BY_LAYER = ("architectures", "pos_att_type")


def initial_student(experiment: Experiment, kind: TaskKind, folder: Path, teacher: Location | None) -> PreTrainedModel:
    """The student of an experiment before its first step, in float32.

    Args:
        folder: of the pretrained model.
        teacher: model folder of the teacher. It is used with `student.start: teacher`, and may be None otherwise.

    Raises:
        ConfigError: the model or the teacher cannot be loaded, or it does not fit the settings.
    """
    fine_tuned = None
    if experiment.student.start == "teacher":
        assert teacher is not None
        fine_tuned = load_saved(teacher, kind)
    return load_student(folder, experiment.student, kind, experiment.train.seed, fine_tuned)


def load_student(
    folder: Path, settings: StudentSettings, kind: TaskKind, seed: int, teacher: PreTrainedModel | None = None
) -> PreTrainedModel:
    """The student in float32, with a head for the task. New weights are initialised from `seed`, the same in every
    process.

    Args:
        folder: of the pretrained model.
        teacher: the fine-tuned teacher if `settings.start` is `teacher`. It becomes the student, and is not copied.

    Raises:
        ConfigError: as `load_pretrained`, `keep_layers` and `student_config`.
    """
    if settings.config is None:
        assert (teacher is not None) == (settings.start == "teacher")
        model = load_pretrained(folder, kind, seed) if teacher is None else teacher
        return model if settings.layers is None else keep_layers(model, settings.layers)
    config = student_config(load_model_config(folder, "student.model"), settings)
    for name, value in kind.head_settings().items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    new: PreTrainedModel = kind.auto_model().from_config(config, dtype=torch.float32, trust_remote_code=False)
    return new


def student_config(pretrained: Any, settings: StudentSettings) -> Any:
    """The student's `transformers` configuration, made from a pretrained model's configuration by the settings.

    Raises:
        ConfigError: the model has no such layer, or transformers cannot use the configuration.
    """
    if settings.layers is not None:
        count = pretrained.num_hidden_layers
        if settings.layers[-1] >= count:
            raise ConfigError(
                f"student.layers: {settings.layers[-1]} is no layer of {settings.model}; allowed: 0 to {count - 1}"
            )
        return _with_layers(pretrained, settings.layers)
    if settings.config is not None:
        assert not isinstance(settings.config, str), "a file is read when the run is planned"
        return _of_values(pretrained, settings.config)
    return pretrained


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A new model, in float32, with some of a model's layers and a copy of everything else.

    Args:
        layers: numbers of the layers, counted from 0, in ascending order.

    Raises:
        ConfigError: the model has no single stack of layers (layers share weights, or it has encoder and decoder), or
            the layers differ, so that they cannot take the places of the first ones.
    """
    smaller = type(model)._from_config(_with_layers(model.config, layers), dtype=torch.float32)
    smaller.load_state_dict(_kept(model, layers))
    return smaller


def check_layers(model: PreTrainedModel, smaller: PreTrainedModel, layers: Sequence[int]) -> None:
    """Checks that `keep_layers` can keep these layers. Reads no weights, so models on the meta device are enough.

    Args:
        smaller: a model with the configuration of the result.

    Raises:
        ConfigError: as `keep_layers`.
    """
    kept = {name: value.shape for name, value in _kept(model, layers).items()}
    if kept != {name: value.shape for name, value in smaller.state_dict().items()}:
        raise _not_alike(model.config, layers)


def _kept(model: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    """The model's tensors except those of other layers, by their names in the smaller model."""
    stack = layer_stack(model)
    place = {str(layer): str(index) for index, layer in enumerate(layers)}
    kept = {}
    for name, value in model.state_dict().items():
        if not name.startswith(f"{stack}."):
            kept[name] = value
            continue
        layer, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if layer in place:
            kept[f"{stack}.{place[layer]}.{rest}"] = value
    return kept


def layer_stack(model: PreTrainedModel) -> str:
    """The name of the module that holds the model's layers.

    Raises:
        ConfigError: the model has no single stack of layers.
    """
    base: nn.Module = model.base_model
    names = {module: name for name, module in model.named_modules()}
    stacks = [
        names[module]
        for module in base.modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    ]
    # Lists inside a layer may have the same length. The stack is the outermost list.
    outer = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    if len(outer) != 1 or model.config.is_encoder_decoder:
        raise ConfigError(
            f"student.layers: a {model.config.model_type} has no single stack of {model.config.num_hidden_layers} "
            "layers of their own to choose from; leave it out"
        )
    return str(outer[0])


def _with_layers(config: Any, layers: Sequence[int]) -> Any:
    count, smaller = config.num_hidden_layers, copy.deepcopy(config)
    lists = {
        name for name, value in config.to_dict().items() if isinstance(value, (list, tuple)) and len(value) == count
    }
    if odd := sorted(lists - {*BY_LAYER, *NOT_BY_LAYER}) if count > 1 else []:
        raise _not_alike(config, layers, f" ({', '.join(odd)} in its configuration)")
    for name in BY_LAYER:
        if name in lists:
            setattr(smaller, name, [getattr(config, name)[layer] for layer in layers])
    smaller.num_hidden_layers = len(layers)
    return smaller


def _not_alike(config: Any, layers: Sequence[int], where: str = "") -> ConfigError:
    return ConfigError(
        f"student.layers: the layers of a {config.model_type} are not alike{where}, so that layers {list(layers)} "
        "cannot take the places of its first ones; leave it out"
    )


def _of_values(pretrained: Any, values: Mapping[str, Any]) -> Any:
    """A new configuration if the values name a model_type; otherwise the pretrained one with these changes."""
    from transformers import AutoConfig

    changes = {name: value for name, value in values.items() if name not in ("model_type", "transformers_version")}
    try:
        config = AutoConfig.for_model(values["model_type"]) if "model_type" in values else pretrained
        known = type(config)()
        made = type(config).from_dict({**config.to_dict(), **changes})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"student.config: transformers cannot use it: {error}") from error
    if unknown := [name for name in changes if not hasattr(known, name)]:
        raise ConfigError(f"student.config: a {config.model_type} has no setting {', '.join(map(repr, unknown))}")
    return made


def read_config(path: Path) -> dict[str, Any]:
    """Reads the values of a configuration from a JSON file.

    Raises:
        ConfigError: the file cannot be read, or it does not contain a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"student.config: {str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"student.config: {str(path)!r} holds no JSON object")
    return values
