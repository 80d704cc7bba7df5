"""Command lines of the original scripts: translated to experiments that load, and the page that lists their options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from raypp.cli import main
from raypp.config import Experiment, StudentSettings
from raypp.errors import ConfigError
from raypp.load_config import load_experiment
from raypp.models.student import student_config
from raypp.original.options import OPTIONS, Option
from raypp.original.translation import translate

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-masked_run_glue.md"

# The recipe of soft movement pruning that the original's README gives, for MNLI.
SOFT = """python examples/movement-pruning/masked_run_glue.py \\
    --output_dir $OUT --data_dir $DATA/MNLI --task_name mnli --do_train --do_eval --do_lower_case \\
    --model_type masked_bert --model_name_or_path bert-base-uncased --per_gpu_train_batch_size 32 \\
    --warmup_steps 12000 --num_train_epochs 6 --learning_rate 3e-5 --mask_scores_learning_rate 1e-2 \\
    --initial_threshold 0 --final_threshold 0.1 --initial_warmup 1 --final_warmup 1 \\
    --pruning_method sigmoied_threshold --mask_init constant --mask_scale 0. \\
    --regularization l1 --final_lambda 400 --fp16 --fp16_opt_level O2 \\
    --teacher_type bert --teacher_name_or_path teachers/mnli --alpha_distil 0.9 --alpha_ce 0.1"""
GLUE = "masked_run_glue.py --data_dir d --task_name mrpc --output_dir o --model_type masked_bert --model_name_or_path m"
TRAIN = (
    "train.py --student_type gpt2 --student_config c.json --teacher_type gpt2 --teacher_name gpt2 --data_file d.pickle"
)
SQUAD = "masked_run_squad.py --data_dir d --output_dir o --model_type masked_bert --model_name_or_path m"


def settings(command: str) -> dict[str, Any]:
    loaded = yaml.safe_load(translate(command))
    assert isinstance(loaded, dict)
    return loaded


def loaded(command: str, folder: Path) -> Experiment:
    file = folder / "translated.yaml"
    file.write_text(translate(command))
    return load_experiment(file)


def comments(command: str) -> str:
    return "\n".join(line for line in translate(command).splitlines() if line.startswith("#"))


# --- masked_run_glue.py ----------------------------------------------------------------------------------------------


def test_the_recipe_of_the_paper_becomes_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA", "/glue")
    monkeypatch.setenv("OUT", str(tmp_path))
    assert main(["show", "--from-original", SOFT]) == 0
    (tmp_path / "soft.yaml").write_text(capsys.readouterr().out)
    experiment = load_experiment(tmp_path / "soft.yaml")
    expected = {
        "name": "soft",
        "task": "mnli",
        "data": {"source": {"kind": "official", "directory": "/glue/MNLI"}},
        "student": {"model": "bert-base-uncased"},
        "teacher": {"model": "teachers/mnli"},
        "pruning": {
            "method": "sigmoid_threshold",
            "initial_threshold": 0.0,
            "final_threshold": 0.1,
            "final_warmup": 1,
            "penalty": {"kind": "l1", "final_lambda": 400.0},
        },
        "distillation": {"soft_weight": 0.9, "hard_weight": 0.1},
        "train": {"epochs": 6.0, "warmup_steps": 12000, "precision": "float16", "log_every_steps": 50},
        "cluster": {"storage": str(tmp_path), "checkpoint_every_steps": 50},
    }
    assert experiment == Experiment.model_validate(expected)


def test_defaults_are_the_scripts_own(tmp_path: Path) -> None:
    experiment = loaded(GLUE, tmp_path)
    assert experiment.pruning is not None
    assert experiment.pruning.method == "topk"
    assert (experiment.pruning.initial_density, experiment.pruning.final_density) == (1.0, 0.7)
    assert (experiment.train.learning_rate, experiment.train.batch_size, experiment.train.warmup_steps) == (5e-5, 8, 0)
    assert experiment.teacher is None
    assert experiment.distillation is None


@pytest.mark.parametrize(
    ("words", "section"),
    [
        (
            "--pruning_method topK --final_threshold 0.15 --global_topk",
            {"method": "topk", "final_density": 0.15, "scope": "global"},
        ),
        ("--pruning_method magnitude --final_threshold=0.03", {"method": "magnitude", "final_density": 0.03}),
        (
            "--pruning_method l0 --regularization l0 --final_lambda 125 --mask_init uniform --mask_scale 2",
            {"method": "l0"},
        ),
        ("--pruning_method threshold --initial_threshold 0 --final_threshold 0.1", {"final_threshold": 0.1}),
    ],
)
def test_every_method_loads(words: str, section: dict[str, Any], tmp_path: Path) -> None:
    pruning = loaded(f"{GLUE} {words}", tmp_path).pruning
    assert pruning is not None
    assert {name: getattr(pruning, name) for name in section} == section


def test_the_batch_is_that_of_all_processes_and_accumulated_steps(tmp_path: Path) -> None:
    launcher = "CUDA_VISIBLE_DEVICES=0,1 python -m torch.distributed.launch --nproc_per_node=4 --nnodes 2"
    experiment = loaded(f"{launcher} {GLUE} --per_gpu_train_batch_size 4 --gradient_accumulation_steps 3", tmp_path)
    assert (experiment.train.batch_size, experiment.train.micro_batches) == (96, 24)
    assert (experiment.cluster.workers, experiment.cluster.gpus_per_worker) == (8, 1)
    assert loaded(f"torchrun --nnodes=2 {GLUE}", tmp_path).cluster.workers == 2, "one process of each node"


def test_steps_take_the_place_of_epochs_and_evaluation_of_its_rhythm(tmp_path: Path) -> None:
    words = "--max_steps 500 --num_train_epochs 3 --evaluate_during_training --logging_steps 25 --no_cuda"
    experiment = loaded(f"{GLUE} {words}", tmp_path)
    assert (experiment.train.max_steps, experiment.train.epochs) == (500, None)
    assert (experiment.evaluation.every_steps, experiment.evaluation.every_epochs) == (25, None)
    assert experiment.cluster.gpus_per_worker == 0


@pytest.mark.parametrize(
    ("words", "kind", "scale", "said"),
    [
        ("--mask_init kaiming", "kaiming", 1.0, ""),
        ("--mask_init kaiming --mask_scale 2", "kaiming", 1.0, "# --mask_scale 2.0: has no effect with --mask_init"),
        ("--mask_init uniform --mask_scale 2", "uniform", 2.0, ""),
        ("--mask_init uniform", "constant", 0.0, "# --mask_init uniform: with a mask_scale of 0 all scores are 0"),
        ("--mask_scale 1.5", "constant", 1.5, ""),
        ("--pruning_method threshold", "constant", 0.0, ""),  # where raypp's own default is another
        ("--pruning_method l0", "constant", 0.0, ""),
    ],
)
def test_scores_start_as_in_the_script(words: str, kind: str, scale: float, said: str, tmp_path: Path) -> None:
    pruning = loaded(f"{GLUE} {words}", tmp_path).pruning
    assert pruning is not None
    assert (pruning.score_initialization.kind, pruning.score_initialization.scale) == (kind, scale)
    assert said in comments(f"{GLUE} {words}")
    assert said or "mask_" not in comments(f"{GLUE} {words}")


@pytest.mark.parametrize(
    ("command", "logging", "saving"),
    [(GLUE, "logging_steps", "save_steps"), (TRAIN, "log_interval", "checkpoint_interval")],
)
def test_what_was_off_is_left_out(command: str, logging: str, saving: str, tmp_path: Path) -> None:
    command = f"{command} --{logging} 0 --{saving} -1"
    experiment = loaded(command, tmp_path)
    assert experiment.cluster.checkpoint_every_steps is None
    assert "log_every_steps" not in experiment.train.model_fields_set
    assert f"# --{logging} 0: not above 0, so train.log_every_steps keeps raypp's default" in comments(command)
    assert f"# --{saving} -1: not above 0, so cluster.checkpoint_every_steps keeps raypp's default" in comments(command)


def test_evaluation_whose_rhythm_was_off_is_left_out(tmp_path: Path) -> None:
    command = f"{GLUE} --evaluate_during_training --logging_steps 0"
    assert loaded(command, tmp_path).evaluation.every_steps is None
    assert "# --evaluate_during_training: has no effect with --logging_steps at 0 or less" in comments(command)


@pytest.mark.parametrize("command", [GLUE, SQUAD])
def test_a_command_that_did_not_train_says_so_at_the_top(command: str) -> None:
    first, second, *_ = translate(f"{command} --do_eval").splitlines()
    assert first.startswith("# translated from masked_run_")
    assert second.startswith("# this command did not train: without --do_train the script only evaluates")
    assert "`raypp evaluate`" in second
    assert "without --do_train the script does nothing" in translate(command).splitlines()[1]
    assert "did not train" not in comments(f"{command} --do_train --do_eval")


def test_variables_and_paths_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_HERE", str(tmp_path))
    for name in ("SET_HERE", "NOT_SET_HERE"):
        command = GLUE.replace("--data_dir d", f"--data_dir ${name}/MRPC").replace("--output_dir o", "--output_dir ~/o")
        assert settings(command)["data"]["source"]["directory"] == f"${{{name}}}/MRPC"
        assert settings(command)["cluster"]["storage"] == "~/o"


def test_what_has_no_meaning_here_is_said(tmp_path: Path) -> None:
    words = "--pruning_method magnitude --mask_init uniform --alpha_ce 0.3 --fp16_opt_level O2 --overwrite_output_dir"
    said = comments(f"{GLUE} {words}")
    for line in (
        "# --mask_init uniform: magnitude has no scores",
        "# --alpha_ce 0.3: without --teacher_type there is no teacher",
        "# --fp16_opt_level O2: Apex is not used.",
        "# --overwrite_output_dir: `raypp train --fresh`.",
    ):
        assert line in said
    assert "mask_scale" not in said, "what was not given is not spoken of"
    assert "# --final_lambda 3.0: has no effect without --regularization" in comments(f"{GLUE} --final_lambda 3")
    assert "# --final_threshold 0.1: l0 has no threshold" in comments(
        f"{GLUE} --pruning_method l0 --final_threshold .1"
    )
    loaded(f"{GLUE} {words}", tmp_path)


@pytest.mark.parametrize(
    "script", ["masked_run_glue.py", "masked_run_squad.py", "run_squad_w_distillation.py", "train.py"]
)
def test_no_option_that_is_given_is_dropped(script: str, tmp_path: Path) -> None:
    """With a value that is not the script's own, its field has another one than without it, or a comment names it."""
    needed = {option.name: _value(option) for option in OPTIONS[script] if option.needed}
    if script == "train.py":
        (tmp_path / "config.json").write_text('{"vocab_size": 100}')
        needed["student_config"] = str(tmp_path / "config.json")
    else:
        needed |= {"teacher_type": "bert", "teacher_name_or_path": "t"}
    for option in OPTIONS[script]:
        given = needed | ONLY_WITH.get(option.name, {})
        without = _translated(script, given)
        given |= TOGETHER.get(option.name, {}) | {option.name: "" if option.is_flag else _another(option)}
        text = _translated(script, given)
        field = option.place.split(" ")[0].split(":")[0].rstrip(",")
        found, before = (_at(yaml.safe_load(each), field) for each in (text, without))
        assert f"# --{option.name}" in text or (found is not None and found != before), option


# What options have an effect with only.
ONLY_WITH: dict[str, dict[str, str]] = {
    "alpha_mlm": {"mlm": ""},
    "mlm_mask_prop": {"mlm": ""},
    "word_mask": {"mlm": ""},
    "word_keep": {"mlm": ""},
    "word_rand": {"mlm": ""},
    "mlm_smoothing": {"mlm": ""},
    "mask_scale": {"mask_init": "uniform"},
    "final_lambda": {"regularization": "l1"},
    "null_score_diff_threshold": {"version_2_with_negative": ""},
}


# What else changes with an option, for its value to be allowed.
TOGETHER: dict[str, dict[str, str]] = {
    "initial_threshold": {"final_threshold": "0.2"},
    "word_mask": {"word_keep": "0.5"},
    "word_keep": {"word_rand": "0.15"},
    "word_rand": {"word_keep": "0.15"},
}


def _translated(script: str, given: dict[str, str]) -> str:
    return translate(" ".join([script, *(f"--{name} {value}" for name, value in given.items())]))


def _value(option: Option) -> str:
    return option.choices[0] if option.choices else {"task_name": "mrpc"}.get(option.name, "some")


def _another(option: Option) -> str:
    """A value that is neither the script's default nor the one above."""
    if option.choices:
        return option.choices[-1]
    if isinstance(option.default, float):
        return str(option.default / 2 or 0.25)
    if isinstance(option.default, int):
        return str(max(option.default, 0) + 1)
    known = {"task_name": "sst-2", "regularization": "l1", "pruning_method": "magnitude", "mask_init": "uniform"}
    return known.get(option.name, "another")


def _at(values: Any, field: str) -> Any:
    """The value of a field; None where it has none."""
    for key in field.split("."):
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


# --- the other scripts -----------------------------------------------------------------------------------------------


def test_questions_and_answers(tmp_path: Path) -> None:
    answered = settings(f"{SQUAD} --null_score_diff_threshold -1.5")
    assert "null_threshold" not in answered["evaluation"]["answers"], "the script did not read it either"
    version_2 = settings(f"{SQUAD} --version_2_with_negative --null_score_diff_threshold -1.5 --doc_stride 64")
    assert version_2["task"] == "squad_v2"
    assert version_2["data"] == {"source": {"kind": "official", "directory": "d"}, "max_length": 384, "stride": 64}
    assert version_2["evaluation"]["answers"] == {"null_threshold": -1.5, "n_best": 20, "max_tokens": 30}
    answers = loaded(f"{SQUAD} --version_2_with_negative --max_answer_length 12", tmp_path).evaluation.answers
    assert (answers.max_tokens, answers.null_threshold) == (12, 0.0)
    with_files = "masked_run_squad.py --model_name_or_path m --train_file in/train-v1.1.json --output_dir o"
    assert settings(with_files)["data"]["source"]["directory"] == "in"


def test_the_same_name_means_another_thing_in_another_script() -> None:
    """alpha_ce weighs the labels in the pruning scripts, and the teacher in the distillation scripts."""
    teacher = "--teacher_type bert --teacher_name_or_path t --alpha_ce 0.2"
    pruning = settings(f"{GLUE} {teacher}")
    distilling = settings(
        f"run_squad_w_distillation.py --model_name_or_path m --data_dir d {teacher} --alpha_squad 0.8"
    )
    assert pruning["distillation"] == {"hard_weight": 0.2, "soft_weight": 0.5, "temperature": 2.0}
    assert distilling["distillation"] == {"soft_weight": 0.2, "hard_weight": 0.8, "temperature": 2.0}
    assert "pruning" not in distilling


def test_a_distilled_language_model(tmp_path: Path) -> None:
    command = (
        "python train.py --student_type distilbert --student_config distilbert.json --teacher_type bert "
        "--teacher_name bert-base-uncased --alpha_ce 5.0 --alpha_mlm 2.0 --alpha_cos 1.0 --alpha_clm 0.0 --mlm "
        "--freeze_pos_embs --dump_path out --data_file data/binarized.pickle --token_counts counts.pickle --n_gpu 4"
    )
    translated = settings(command)
    assert translated["task"]["objective"] == "masked"
    assert translated["task"]["masking"]["smoothing"] == 0.7
    assert translated["student"] == {"model": "bert-base-uncased", "config": "distilbert.json"}
    distillation = translated["distillation"]
    assert (distillation["soft_weight"], distillation["hard_weight"], distillation["cosine_weight"]) == (5.0, 2.0, 1.0)
    assert (translated["train"]["batch_size"], translated["train"]["micro_batches"]) == (1000, 200)
    assert translated["train"]["freeze_position_embeddings"] is True
    assert translated["train"]["adam_betas"] == [0.9, 0.98]
    experiment = loaded(command, tmp_path)
    assert not isinstance(experiment.task, str)
    assert experiment.task.kind == "language_modeling"
    extracted = settings(f"{command} --student_pretrained_weights tf_bert-base-uncased_0247911.pth")
    assert extracted["student"] == {"model": "bert-base-uncased", "layers": [0, 2, 4, 7, 9, 11]}


def test_texts_are_as_long_as_the_teachers_tokenizer_allowed(tmp_path: Path) -> None:
    assert loaded(TRAIN, tmp_path).data.max_length == 1024
    for family in ("bert", "roberta"):
        assert loaded(f"{TRAIN} --teacher_type {family}", tmp_path).data.max_length == 512


def test_a_weaker_loss_on_logits_is_said(tmp_path: Path) -> None:
    command = f"{TRAIN} --alpha_mse 0.01 --n_gpu 0"
    distillation = loaded(command, tmp_path).distillation
    assert distillation is not None
    assert distillation.logits_weight == 0.01
    assert "# --alpha_mse 0.01: weaker here: raypp takes the mean" in comments(command)
    assert "alpha_mse" not in comments(f"{TRAIN} --alpha_mse 0")


# The files that lie beside the script, in full.
DISTILBERT = {
    "activation": "gelu",
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "n_heads": 12,
    "n_layers": 6,
    "sinusoidal_pos_embds": True,
    "tie_weights_": True,
    "vocab_size": 30522,
}
DISTILGPT2 = {
    "initializer_range": 0.02,
    "layer_norm_epsilon": 0.00001,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 6,
    "n_positions": 1024,
    "vocab_size": 50257,
}
DISTILROBERTA = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "initializer_range": 0.02,
    "layer_norm_eps": 0.00001,
}


@pytest.mark.parametrize(
    ("family", "values"), [("distilbert", DISTILBERT), ("gpt2", DISTILGPT2), ("roberta", DISTILROBERTA)]
)
def test_a_students_configuration_is_one_that_transformers_takes(
    family: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "student.json").write_text(json.dumps(values))
    monkeypatch.setenv("HERE", str(tmp_path))
    command = f"{TRAIN} --student_type {family} --student_config $HERE/student.json"
    config = loaded(command, tmp_path).student.config
    kept = {name: value for name, value in values.items() if name != "tie_weights_"}
    assert config == {**kept, "model_type": family}
    made = student_config(None, StudentSettings(model="teacher", config=config))
    assert made.model_type == family
    assert made.num_hidden_layers == 6
    assert "# --student_config ${HERE}/student.json: its values are in student.config" in comments(command)


def test_a_students_configuration_that_is_not_there_stays_a_path(tmp_path: Path) -> None:
    command = f"{TRAIN} --student_type distilbert --student_config $NOT_SET_HERE/student.json"
    assert settings(command)["student"] == {"model": "gpt2", "config": "${NOT_SET_HERE}/student.json"}
    said = 'cannot be read here; it must contain "model_type": "distilbert" and no "tie_weights_"'
    assert f"# --student_config ${{NOT_SET_HERE}}/student.json: {said}" in comments(command)
    (tmp_path / "student.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"^--from-original: student\.config: .* holds no JSON object"):
        translate(f"{TRAIN} --student_config {tmp_path}/student.json")


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            f"{GLUE} --final_treshold 0.1",
            "masked_run_glue.py has no option --final_treshold; did you mean --final_threshold?",
        ),
        (f"{GLUE} stray", "takes no argument 'stray'"),
        (f"{GLUE} --final_threshold much", "argument --final_threshold: invalid float value: 'much'"),
        (f"{GLUE} --pruning_method movement", "must be one of topk, magnitude, sigmoid_threshold, threshold, l0"),
        ("masked_run_glue.py --task_name mrpc", "masked_run_glue.py needs --model_name_or_path"),
        (f"{GLUE} --teacher_type bert", "--teacher_type needs --teacher_name_or_path"),
        (f"torchrun --nproc_per_node=$N {GLUE}", "--nproc_per_node: must be a number of at least 1, got '${N}'"),
        (f"torchrun --nproc-per-node gpu {GLUE}", "--nproc-per-node: must be a number of at least 1, got 'gpu'"),
        (f"torchrun --nnodes=1:4 --nproc_per_node=8 {GLUE}", "--nnodes: must be a number of at least 1, got '1:4'"),
        (TRAIN.replace("--teacher_type gpt2", ""), "train.py needs --teacher_type"),
        (f"{TRAIN} --teacher_type t5", "argument --teacher_type: invalid choice: 't5'"),
        (f"{GLUE} --learning_rate 3", "--from-original: experiment: train.learning_rate: must be less than or equal"),
        (f"{GLUE} --mask_init uniform --mask_scale -1", "scale must be greater than 0 for uniform, got -1.0"),
        (f"{GLUE} --initial_threshold 0", "pruning.initial_density: must be greater than 0, got 0.0"),
        (f"{GLUE} --regularization l2", "pruning.penalty.kind: must be 'l1' or 'l0', got 'l2'"),
        (GLUE.replace("mrpc", "mrcp"), "task: there is no task 'mrcp'; did you mean 'mrpc'"),
        ("bertarize.py --pruning_method topK", "trains nothing; use `raypp export RUN`"),
        ("run_glue.py --task_name mrpc", "the command line has none of the scripts masked_run_glue.py, "),
        (f"{GLUE} 'open", "not a command line: No closing quotation"),
    ],
)
def test_wrong_command_lines_are_refused_in_one_message(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "--from-original", command]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("--from-original: ") == 1
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_show_takes_a_file_or_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show"]) == 2
    assert main(["show", "some.yaml", "--from-original", GLUE]) == 2
    assert capsys.readouterr().err.count("give an experiment file, or --from-original and a command line") == 2


# --- the page --------------------------------------------------------------------------------------------------------


def written(option: Option) -> list[str]:
    """An option's row on the page."""
    default = "" if option.default in (None, "") else "a flag" if option.is_flag else f"`{option.default}`"
    return [f"`--{option.name}`", default, f"`{option.place}`" if option.place else "none", option.note]


@pytest.mark.parametrize("script", OPTIONS)
def test_the_page_has_a_row_for_every_option(script: str) -> None:
    section = re.search(rf"^## {re.escape(script)}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section[1].splitlines() if line[:3] == "| `"
    ]
    assert rows == [written(option) for option in OPTIONS[script]]


@pytest.mark.parametrize("script", OPTIONS)
def test_the_table_is_well_formed(script: str) -> None:
    names = [option.name for option in OPTIONS[script]]
    assert len(names) == len(set(names))
    for option in OPTIONS[script]:
        assert option.place or option.note, f"{option.name} is dropped without a word"
        assert not option.copied or re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", option.place)


def test_what_takes_an_options_place_is_a_field_or_a_command() -> None:
    for option in (option for options in OPTIONS.values() for option in options):
        for place in re.sub(r" \(.*?\)", "", option.place).split(", ") if option.place else []:
            name = place.split(" ")[0].split(":")[0]
            assert name == "raypp" or _is_field(Experiment, name.split(".")), option


def _is_field(kind: Any, path: list[str]) -> bool:
    """Whether a settings class, or one of a union, has the field."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return not path or (path[0] in kind.model_fields and _is_field(kind.model_fields[path[0]].annotation, path[1:]))
    return not path or any(_is_field(part, path) for part in get_args(kind))


def test_scripts_are_complete() -> None:
    """As many as each script's parser defines."""
    assert {script: len(options) for script, options in OPTIONS.items()} == {
        "masked_run_glue.py": 50,
        "masked_run_squad.py": 62,
        "run_squad_w_distillation.py": 49,
        "train.py": 41,
        "bertarize.py": 4,
        "counts_parameters.py": 3,
    }
