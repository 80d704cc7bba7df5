"""`raypp show --from-original`: translates a command line of the original research scripts to an experiment.

The translation follows the table `original.options.OPTIONS`. It writes out the scripts' defaults where raypp's differ,
so that the experiment does what the command did. Options without an equivalent are comments above the experiment. The
settings pass the checks of `raypp train` that need no models or data, which may be missing.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from raypp.config import Experiment, method_name
from raypp.errors import ConfigError
from raypp.load_config import expanded, experiment_from
from raypp.original.command import OriginalCommand
from raypp.original.options import OPTIONS, Option
from raypp.tasks import find_task
from raypp.yaml_text import dump_yaml

METHODS = ("topk", "magnitude", "sigmoid_threshold", "threshold", "l0")
EXTRACTED_LAYERS = (0, 2, 4, 7, 9, 11)
MAX_LENGTHS = {"bert": 512, "roberta": 512, "gpt2": 1024}
"""Maximum tokens of a text, by the teacher's family, as in its tokenizer."""
INTERVALS = ("logging_steps", "save_steps", "log_interval", "checkpoint_interval")
"""Intervals in steps. The scripts accepted 0, which raypp's fields do not."""


def translate(command_line: str) -> str:
    """The equivalent experiment as YAML, with comments on what the experiment does not contain.

    Args:
        command_line: launcher, script and options as typed, of one of the scripts that train.

    Raises:
        ConfigError: `OriginalCommand.parse` refuses the command line; a required option is missing; a task or method is
            unknown; a field of the experiment refuses a value.
    """
    try:
        command = OriginalCommand.parse(command_line)
        translation = _Translation(command)
        ordered = {name: translation.settings[name] for name in Experiment.model_fields if name in translation.settings}
        # The experiment gets the name of its file later. Its variables are expanded where it is trained.
        experiment_from({"name": "translated", **ordered}, expand_paths=False)
    except ConfigError as error:
        raise ConfigError(f"--from-original: {problem}" for problem in error.problems) from error
    settings = dump_yaml(ordered)
    comments = [f"translated from {command.script}", *translation.comments]
    return "\n".join([*(f"# {line}" for line in comments), settings.rstrip()])


class _Translation:
    """Nested settings, which are written field by field, and comments."""

    def __init__(self, command: OriginalCommand) -> None:
        self.command = command
        self.options = {option.name: option for option in OPTIONS[command.script]}
        self.settings: dict[str, Any] = {}
        self.comments: list[str] = []
        needed = [option.name for option in self.options.values() if option.needed and command[option.name] is None]
        if needed:
            raise ConfigError([f"{command.script} needs --{name}" for name in needed])
        if command.script == "train.py":
            self._language_modeling()
        else:
            self._without_training()
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
        """Sets a field by its path."""
        *sections, last = field.split(".")
        target = self.settings
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value

    def comment(self, why: str, *names: str) -> None:
        """Adds comments that explain why given options are not in the settings."""
        for name in names:
            if name in self.command.given:
                value = "" if self.options[name].is_flag else f" {self.command.given[name]}"
                self.comments.append(f"--{name}{value}: {why}")

    def _take(self, option: Option) -> None:
        """Translates an option whose value is the field's value, or comments on one that has no field."""
        value = self.command[option.name]
        if option.name in INTERVALS and value <= 0:
            self.comment(f"not above 0, so {option.place} keeps raypp's default", option.name)
        elif option.name == "null_score_diff_threshold" and not self.command["version_2_with_negative"]:
            self.comment("every question of squad has an answer, so the script ignored it", option.name)
        elif option.copied and value is not None:
            self.put(option.place, value)
        elif not option.place:
            self.comment(option.note, option.name)
        elif option.place.startswith("raypp "):
            self.comment(f"`{option.place}`. {option.note}", option.name)

    def _without_training(self) -> None:
        """Adds a comment at the top if the command did not train."""
        if self.command["do_train"]:
            return
        does = "only evaluates, which is `raypp evaluate` here" if self.command["do_eval"] else "does nothing"
        self.comments.append(f"this command did not train: without --do_train the script {does};")
        self.comments.append("the experiment below is the training that --do_train would have started")

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
        self.comment("raypp expects its published name, such as train-v1.1.json", "train_file", "predict_file")

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
        self.put("data.max_length", MAX_LENGTHS[command["teacher_type"]])
        self.put("train.adam_betas", [0.9, 0.98])  # fixed in the script, different from torch's default
        self.put("student.model", command["teacher_name"])
        if command["student_pretrained_weights"] is None:
            self._student_config()
        else:
            self.put("student.layers", list(EXTRACTED_LAYERS))
            extracted = f"scripts/extract.py took the layers {', '.join(map(str, EXTRACTED_LAYERS))} of the teacher"
            self.comment(f"{extracted}, as student.layers does here", "student_pretrained_weights", "student_config")
            self.comment("with student.layers the student is of the teacher's family", "student_type")
        self.comment("a field of the student's configuration", "initializer_range")
        self.put("distillation.hard_weight", command["alpha_mlm" if masked else "alpha_clm"])
        for name in ("alpha_mse", "alpha_cos"):
            self.put(self.options[name].place, command[name])
        if command["alpha_mse"] != 0:
            weaker = (
                "weaker here: raypp takes the mean of the squared error over the vocabulary, the script took the sum"
            )
            self.comment(f"{weaker}; logits_weight times the vocabulary's size would be the same", "alpha_mse")
        self.put("distillation.soft_tokens", "targets" if command["restrict_ce_to_mask"] else "all")
        for name in ("freeze_pos_embs", "freeze_token_type_embds"):
            if command[name]:
                self.put(self.options[name].place, True)

    def _student_config(self) -> None:
        """The values of the configuration file, with the model family, which the script took from another option."""
        from raypp.models.student import read_config  # imports torch, which takes seconds

        path, family = self.command["student_config"], self.command["student_type"]
        file = Path(expanded(path))
        if file.is_file():
            values = read_config(file)
            kept = {name: value for name, value in values.items() if name not in ("model_type", "tie_weights_")}
            self.put("student.config", {"model_type": family, **kept})
            why = "its values are in student.config, with --student_type as model_type and without tie_weights_"
        else:
            self.put("student.config", path)
            why = f'cannot be read here; it must contain "model_type": "{family}" and no "tie_weights_"'
        self.comment(why, "student_config")

    def _length_and_batches(self) -> None:
        command = self.command
        is_language_modeling = "n_epoch" in self.options
        steps = -1 if is_language_modeling else command["max_steps"]
        if steps > 0:
            self.put("train.max_steps", steps)
            self.comment("--max_steps takes precedence", "num_train_epochs")
        else:
            self.put("train.epochs", float(command["n_epoch" if is_language_modeling else "num_train_epochs"]))
        shares = command["gradient_accumulation_steps"] * self._processes()
        each = command["batch_size" if is_language_modeling else "per_gpu_train_batch_size"]
        self.put("train.batch_size", each * shares)
        if shares > 1:  # with one share, auto: as many micro-batches as workers
            self.put("train.micro_batches", shares)
        if command["fp16"]:
            self.put("train.precision", "float16")
        if "evaluate_during_training" in command.given:
            if command["logging_steps"] > 0:
                self.put("evaluation.every_steps", command["logging_steps"])
            else:
                self.comment("has no effect with --logging_steps at 0 or less", "evaluate_during_training")

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
            self.comments.append("the script used a GPU if it found one; in raypp set cluster.gpus_per_worker=1")

    def _pruning(self) -> None:
        command, method = self.command, method_name(self.command["pruning_method"])
        if method not in METHODS:
            raise ConfigError(f"--pruning_method: must be one of {', '.join(METHODS)}, got {method!r}")
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
            self.comment(f"all matrices have the same threshold, so {method} has no scope", "global_topk")
        for name in ("initial_warmup", "final_warmup"):
            self.put(self.options[name].place, command[name])
        if not has_scores:
            names = ("mask_scores_learning_rate", "mask_init", "mask_scale", "regularization", "final_lambda")
            self.comment("magnitude has no scores", *names)
            return
        self.put("pruning.mask_learning_rate", command["mask_scores_learning_rate"])
        self._first_scores()
        if command["regularization"] in (None, "null"):
            self.comment("has no effect without --regularization", "final_lambda")
        else:
            for name in ("regularization", "final_lambda"):
                self.put(self.options[name].place, command[name])

    def _first_scores(self) -> None:
        kind, scale = self.command["mask_init"], self.command["mask_scale"]
        if kind == "kaiming":
            scale = 1.0
            self.comment("has no effect with --mask_init kaiming, as in the script", "mask_scale")
        elif kind == "uniform" and scale == 0:
            kind = "constant"
            self.comment("with a mask_scale of 0 all scores are 0, so it is constant here", "mask_init")
        self.put("pruning.score_initialization", {"kind": kind, "scale": scale})

    def _teacher(self) -> None:
        places = {name: o.place for name, o in self.options.items() if o.place.startswith("distillation.")}
        if "teacher_type" not in self.command.given:  # without it, the scripts ignored the other options
            self.comment("without --teacher_type there is no teacher", "teacher_name_or_path", *places)
            return
        if self.command["teacher_name_or_path"] is None:
            raise ConfigError("--teacher_type needs --teacher_name_or_path")
        self.put("teacher.model", self.command["teacher_name_or_path"])
        for name, place in places.items():
            self.put(place, self.command[name])
