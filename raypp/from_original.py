"""`raypp show --from-original`: the experiment that a command line of the original research scripts asks for.

Translates by `original_options.OPTIONS`. The scripts' defaults are written out where raypp's differ in value, so that
the experiment is what the command would have done; what has no meaning here stands above it as a comment.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import yaml

from raypp.config import METHOD_ALIASES, Experiment
from raypp.errors import ConfigError
from raypp.original_command import OriginalCommand
from raypp.original_options import OPTIONS, Option
from raypp.tasks import find_task

NEEDED = ("model_name_or_path", "task_name", "teacher_name", "data_file", "student_config")
METHODS = ("topk", "magnitude", "sigmoid_threshold", "threshold", "l0")
EXTRACTED_LAYERS = (0, 2, 4, 7, 9, 11)


def translate(command_line: str) -> str:
    """The equivalent experiment as YAML, with comments for what it does not say.

    Args:
        command_line: as typed: launcher, script and options, of one of the scripts that train.

    Raises:
        ConfigError: what `OriginalCommand.parse` refuses; an option that the script needs and that is missing; a task
            or a method that is unknown.
    """
    command = OriginalCommand.parse(command_line)
    translation = _Translation(command)
    ordered = {name: translation.settings[name] for name in Experiment.model_fields if name in translation.settings}
    settings = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True)
    comments = [f"translated from {command.script}", *translation.comments]
    return "\n".join([*(f"# {line}" for line in comments), settings.rstrip()])


class _Translation:
    """Nested settings, written field by field, and what there is to say besides."""

    def __init__(self, command: OriginalCommand) -> None:
        self.command = command
        self.options = {option.name: option for option in OPTIONS[command.script]}
        self.settings: dict[str, Any] = {}
        self.comments: list[str] = []
        needed = [name for name in NEEDED if name in self.options and command[name] is None]
        if needed:
            raise ConfigError([f"--from-original: {command.script} needs --{name}" for name in needed])
        if command.script == "train.py":
            self._language_modeling()
        else:
            self._task()
        for option in self.options.values():
            self._take(option)
        self._length_and_batches()
        self._devices()
        if "pruning_method" in self.options:
            self._pruning()
        if "teacher_name_or_path" in self.options:
            self._teacher()

    def put(self, field: str, value: Any) -> None:
        """Writes a setting, by field path."""
        *sections, last = field.split(".")
        target = self.settings
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value

    def comment(self, why: str, *names: str) -> None:
        """Says why options that were given are not in the settings."""
        for name in names:
            if name in self.command.given:
                value = "" if self.options[name].is_flag else f" {self.command.given[name]}"
                self.comments.append(f"--{name}{value}: {why}")

    def _take(self, option: Option) -> None:
        """An option whose value is the field's own; or one that no field takes the place of."""
        value = self.command[option.name]
        if option.copied and value is not None:
            self.put(option.place, value)
        elif not option.place:
            self.comment(option.note, option.name)
        elif option.place.startswith("raypp "):
            self.comment(f"`{option.place}`. {option.note}", option.name)

    def _task(self) -> None:
        command = self.command
        if "task_name" in self.options:
            name = command["task_name"]
            self.put("task", "mnli" if name.lower() == "mnli-mm" else find_task(name).name)
        else:
            self.put("task", "squad_v2" if command["version_2_with_negative"] else "squad")
        folder, files = command["data_dir"], [command.given.get(name) for name in ("train_file", "predict_file")]
        if folder is None and any(files):
            folder = str(PurePosixPath(next(file for file in files if file)).parent)
        if folder is not None:
            self.put("data.source", {"kind": "official", "directory": folder})
        self.comment("is looked for under its published name, such as train-v1.1.json", "train_file", "predict_file")

    def _language_modeling(self) -> None:
        command, masked = self.command, self.command["mlm"]
        self.put("task", {"name": "text", "kind": "language_modeling"})
        self.put("task.objective", "masked" if masked else "causal")
        unused = ("mlm_mask_prop", "word_mask", "word_keep", "word_rand", "mlm_smoothing")
        for name in unused if masked else ():
            self.put(self.options[name].place, command[name])
        text = str(PurePosixPath(command["data_file"]).with_suffix(".txt"))
        self.put("data.source", {"kind": "text", "files": [text]})
        self.comment(f"raypp reads the text that it was made of; {text} is a guess at its name", "data_file")
        self.put("student.model", command["teacher_name"])
        if command["student_pretrained_weights"] is None:
            self.put("student.config", command["student_config"])
        else:
            self.put("student.layers", list(EXTRACTED_LAYERS))
            extracted = f"scripts/extract.py took the layers {', '.join(map(str, EXTRACTED_LAYERS))} of the teacher"
            self.comment(f"{extracted}, as student.layers does here", "student_pretrained_weights", "student_config")
        self.comment("a field of the student's configuration", "initializer_range")
        self.put("distillation.hard_weight", command["alpha_mlm" if masked else "alpha_clm"])
        for name in ("alpha_mse", "alpha_cos"):
            self.put(self.options[name].place, command[name])
        self.put("distillation.soft_tokens", "targets" if command["restrict_ce_to_mask"] else "all")
        for name in ("freeze_pos_embs", "freeze_token_type_embds"):
            if command[name]:
                self.put(self.options[name].place, True)

    def _length_and_batches(self) -> None:
        command = self.command
        is_language_modeling = "n_epoch" in self.options
        steps = -1 if is_language_modeling else command["max_steps"]
        if steps > 0:
            self.put("train.max_steps", steps)
            self.comment("--max_steps takes its place", "num_train_epochs")
        else:
            self.put("train.epochs", float(command["n_epoch" if is_language_modeling else "num_train_epochs"]))
        shares = command["gradient_accumulation_steps"] * self._processes()
        each = command["batch_size" if is_language_modeling else "per_gpu_train_batch_size"]
        self.put("train.batch_size", each * shares)
        if shares > 1:  # else as many as there will be workers
            self.put("train.micro_batches", shares)
        if command["fp16"]:
            self.put("train.precision", "float16")
        if "evaluate_during_training" in command.given:
            self.put("evaluation.every_steps", command["logging_steps"])

    def _processes(self) -> int:
        return self.command.processes or max(1, self.command["n_gpu"] if "n_gpu" in self.options else 1)

    def _devices(self) -> None:
        processes = self._processes()
        has_gpus = self.command["n_gpu"] > 0 if "n_gpu" in self.options else not self.command["no_cuda"]
        is_told = "n_gpu" in self.options or "no_cuda" in self.command.given or self.command.processes is not None
        if is_told:
            self.put("cluster.workers", processes)
            self.put("cluster.gpus_per_worker", int(has_gpus))
        else:
            self.comments.append("the script took a GPU where it found one: cluster.gpus_per_worker=1 asks for one")

    def _pruning(self) -> None:
        command, method = (
            self.command,
            METHOD_ALIASES.get(self.command["pruning_method"], self.command["pruning_method"]),
        )
        if method not in METHODS:
            raise ConfigError(f"--from-original: --pruning_method: allowed are {', '.join(METHODS)}, got {method!r}")
        self.put("pruning.method", method)
        has_density, has_scores = method in ("topk", "magnitude"), method != "magnitude"
        if method == "l0":
            why = "l0 has no threshold; its lambda rises from 0 over the same schedule"
            self.comment(why, "initial_threshold", "final_threshold")
        else:
            for end in ("initial", "final"):
                kind = "density" if has_density else "threshold"
                self.put(f"pruning.{end}_{kind}", command[f"{end}_threshold"])
        if command["global_topk"] and has_density:
            self.put("pruning.scope", "global")
        elif command["global_topk"]:
            self.comment(f"a threshold is one for all matrices, so {method} has no scope", "global_topk")
        for name in ("initial_warmup", "final_warmup"):
            self.put(self.options[name].place, command[name])
        if not has_scores:
            names = ("mask_scores_learning_rate", "mask_init", "mask_scale", "regularization", "final_lambda")
            self.comment("magnitude has no scores", *names)
            return
        for name in ("mask_scores_learning_rate", "mask_init", "mask_scale"):
            self.put(self.options[name].place, command[name])
        if command["regularization"] in (None, "null"):
            self.comment("without --regularization it has no effect", "final_lambda")
        else:
            for name in ("regularization", "final_lambda"):
                self.put(self.options[name].place, command[name])

    def _teacher(self) -> None:
        places = {name: o.place for name, o in self.options.items() if o.place.startswith("distillation.")}
        if "teacher_type" not in self.command.given:  # without it, the scripts read none of the others
            self.comment("without --teacher_type there is no teacher", "teacher_name_or_path", *places)
            return
        if self.command["teacher_name_or_path"] is None:
            raise ConfigError("--from-original: --teacher_type needs --teacher_name_or_path")
        self.put("teacher.model", self.command["teacher_name_or_path"])
        for name, place in places.items():
            self.put(place, self.command[name])
