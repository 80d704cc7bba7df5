"""Every option of Hugging Face's archived research scripts (movement-pruning and distillation), and its equivalent in
raypp.

`raypp show --from-original` translates by this table, and `docs/from-masked_run_glue.md` shows it; a test fails if they
differ.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One option of a script."""

    name: str
    """The name without dashes."""
    place: str
    """The equivalent field or command; empty if there is none."""
    note: str
    """What differs in raypp, and why."""
    default: str | int | float | bool | None = None
    """The script's default. A flag has False, or True if it switches something off. The option has the default's
    type."""
    type: type[str] | type[int] | type[float] = str
    """The type of the value, for an option without a default."""
    copied: bool = False
    """Whether the field takes the option's value unchanged."""
    needed: bool = False
    """Whether the script and the experiment require it."""
    choices: tuple[str, ...] = ()
    """The values that the script allows; empty: any, or those that the field allows."""

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value."""
        return isinstance(self.default, bool)


def _copied(
    name: str, place: str, default: str | int | float | None, note: str = "", *, needed: bool = False
) -> Option:
    return Option(name, place, note, default, copied=True, needed=needed)


_MODEL = (
    Option("model_type", "", "raypp takes any encoder family of transformers; the model's own configuration names it."),
    _copied(
        "model_name_or_path", "student.model", None, "Also `package:NAME/SUBFOLDER` of a Python package.", needed=True
    ),
    Option("config_name", "", "The configuration is the model's own.", ""),
    Option("tokenizer_name", "", "The tokenizer is the model's own.", ""),
    Option("do_lower_case", "", "The tokenizer's own configuration has this setting.", False),
    Option("cache_dir", "", "Set Hugging Face's `HF_HOME` for downloads; features are kept in `cluster.store`.", ""),
)

_TRAINING = (
    Option("do_train", "raypp train", "Trains and evaluates; a finished run is not trained again.", False),
    Option("do_eval", "raypp evaluate", "Evaluates a model alone; `raypp train` evaluates by itself.", False),
    Option(
        "evaluate_during_training",
        "evaluation.every_steps",
        "Every `logging_steps`. Without it raypp evaluates after each epoch, and the script only at the end. "
        "raypp evaluates at the density that the model has at that step, not at the final one.",
        False,
    ),
    Option(
        "per_gpu_train_batch_size",
        "train.batch_size",
        "The batch of one optimizer step over all workers: the script's value times "
        "`gradient_accumulation_steps`, times the launcher's processes.",
        8,
    ),
    Option("per_gpu_eval_batch_size", "", "Evaluation batches are cut by length; the metrics do not depend on it.", 8),
    _copied("learning_rate", "train.learning_rate", 5e-5),
    Option(
        "gradient_accumulation_steps",
        "train.micro_batches",
        "The number of fixed micro-batches of a batch. Accumulation and workers share this setting. No "
        "micro-batch is left over at the end of an epoch.",
        1,
    ),
    _copied("weight_decay", "train.weight_decay", 0.0, "Never applied to biases, LayerNorm or scores."),
    _copied("adam_epsilon", "train.adam_epsilon", 1e-8),
    _copied(
        "max_grad_norm",
        "train.max_gradient_norm",
        1.0,
        "Limits the norm of the gradients of weights and scores together, as in the script.",
    ),
    Option("num_train_epochs", "train.epochs", "May be fractional.", 3.0),
    Option(
        "max_steps",
        "train.max_steps",
        "Exactly this number; the script did one step more. With -1, `train.epochs` applies.",
        -1,
    ),
    _copied(
        "warmup_steps",
        "train.warmup_steps",
        0,
        "Or `train.warmup_fraction`. A run too short for its schedule is refused before it starts.",
    ),
)

_PRUNING = (
    Option("mask_scores_learning_rate", "pruning.mask_learning_rate", "Not for magnitude, which has no scores.", 1e-2),
    Option(
        "initial_threshold",
        "pruning.initial_density (topk, magnitude), pruning.initial_threshold (sigmoid_threshold, threshold)",
        "Two names for its two meanings; l0 has none.",
        1.0,
    ),
    Option(
        "final_threshold",
        "pruning.final_density (topk, magnitude), pruning.final_threshold (sigmoid_threshold, threshold)",
        "Two names, as for initial_threshold. sigmoid_threshold, threshold and l0 also take a density: "
        "`pruning.target_density`.",
        0.7,
    ),
    Option("initial_warmup", "pruning.initial_warmup", "Counted in warmups of the learning rate, as in the script.", 1),
    Option("final_warmup", "pruning.final_warmup", "Counted in warmups of the learning rate, as in the script.", 2),
    Option(
        "pruning_method",
        "pruning.method",
        "The script's spellings are accepted, too. raypp keeps exactly the number of weights asked for, even if "
        "scores are equal.",
        "topK",
    ),
    Option("mask_init", "pruning.score_initialization.kind", "Not for magnitude.", "constant"),
    Option(
        "mask_scale",
        "pruning.score_initialization.scale",
        "Not for magnitude. The script's kaiming ignored the scale, so it becomes 1.0; uniform with scale 0 "
        "becomes constant.",
        0.0,
    ),
    Option("regularization", "pruning.penalty.kind", "l0 or l1; `null` for none.", None),
    Option(
        "final_lambda",
        "pruning.penalty.final_lambda",
        "Lambda rises from 0 with the schedule's progress. In the script it was final_lambda * threshold / "
        "final_threshold, which is the same if the threshold starts at 0.",
        0.0,
    ),
    Option(
        "global_topk",
        "pruning.scope: global",
        "Keeps the requested fraction over all matrices together, at every step.",
        False,
    ),
    Option("global_topk_frequency_compute", "", "raypp selects again at every step, so no selection is stale.", 25),
)

_TEACHER = (
    Option(
        "teacher_type",
        "",
        "The teacher's own configuration names its family. Without this option the scripts ignored "
        "`--teacher_name_or_path` and had no teacher; the translation has none, either.",
    ),
    Option(
        "teacher_name_or_path",
        "teacher.model",
        "Its logits are computed once and kept. `teacher.train` fine-tunes one first.",
    ),
)

_DISTILLATION = (
    *_TEACHER,
    Option("alpha_ce", "distillation.hard_weight", "Weight of the labels' loss. Only with a teacher.", 0.5),
    Option("alpha_distil", "distillation.soft_weight", "Weight of the teacher's loss; in regression, the MSE.", 0.5),
    Option("temperature", "distillation.temperature", "Only with a teacher.", 2.0),
)

_PRECISION = (
    Option("fp16", "train.precision: float16", "torch's own mixed precision; bfloat16 is another choice.", False),
    Option("fp16_opt_level", "", "Apex is not used.", "O1"),
    Option("local_rank", "", "Ray starts the workers: `cluster.workers`, `cluster.gpus_per_worker`.", -1),
)


def _running(log_steps: int) -> tuple[Option, ...]:
    return (
        _copied(
            "logging_steps",
            "train.log_every_steps",
            log_steps,
            "0 or less switched the log off in the script; raypp always logs.",
        ),
        _copied(
            "save_steps",
            "cluster.checkpoint_every_steps",
            log_steps,
            "Written in the background; `cluster.keep_checkpoints` limits their number. 0 or less becomes `null`: a "
            "checkpoint at every evaluation only.",
        ),
        Option(
            "eval_all_checkpoints",
            "raypp evaluate RUN --all-checkpoints",
            "Evaluates the checkpoints that were kept. metrics.jsonl has every evaluation, too.",
            False,
        ),
        Option(
            "no_cuda",
            "cluster.gpus_per_worker: 0",
            "This is the default: raypp uses a GPU only if you ask for it.",
            False,
        ),
        Option(
            "overwrite_output_dir",
            "raypp train --fresh",
            "Without it, the same command resumes an unfinished run.",
            False,
        ),
        Option(
            "overwrite_cache",
            "",
            "The store's keys contain data, tokenizer, length and labels, so a change of any of them is noticed.",
            False,
        ),
        _copied("seed", "train.seed", 42),
        *_PRECISION,
    )


_INTERVAL = "Counted in optimizer steps; the script counted micro-batches. A value of 0 or less is left out."

_OUTPUT = _copied("output_dir", "cluster.storage", None, "A run's folder is `<experiment>/<run>` below it.")

_GLUE = (
    Option("data_dir", "data.source.directory", "With `kind: official`: the published files."),
    *_MODEL,
    Option("task_name", "task", "mnli-mm becomes mnli, which is evaluated on both of its dev sets.", needed=True),
    _OUTPUT,
    _copied("max_seq_length", "data.max_length", 128, "Batches are padded to their longest example, not to this."),
    *_TRAINING,
    *_PRUNING,
    *_DISTILLATION,
    *_running(50),
)

_QUESTION_ANSWERING = (
    *_MODEL,
    _OUTPUT,
    Option("data_dir", "data.source.directory", "With `kind: official`: the published files."),
    Option(
        "train_file",
        "data.source.directory",
        "The folder of the file. With `kind: official` the files have their published names (`train-v1.1.json`). "
        "Your own files go into `data.source.train`, with `kind: files`.",
    ),
    Option("predict_file", "data.source.directory", "As train_file; your own file goes into `data.source.dev`."),
    Option("version_2_with_negative", "task: squad_v2", "Without the flag: `task: squad`.", False),
    _copied(
        "null_score_diff_threshold",
        "evaluation.answers.null_threshold",
        0.0,
        "Only for squad_v2, whose questions may have no answer.",
    ),
    _copied(
        "max_seq_length",
        "data.max_length",
        384,
        "The length of a window. Batches are padded to their longest example, not to this.",
    ),
    _copied("doc_stride", "data.stride", 128, "The distance from the start of one window to the start of the next."),
    Option("max_query_length", "", "A question is cut only if it is longer than half of a window.", 64),
    *_TRAINING,
    _copied("n_best_size", "evaluation.answers.n_best", 20),
    _copied("max_answer_length", "evaluation.answers.max_tokens", 30),
    Option("verbose_logging", "raypp train -v", "Shows Ray's log and tracebacks.", False),
    Option("threads", "", "Ray Data featurizes on all CPUs of the cluster.", 1),
    Option("server_ip", "", "No debugger is attached.", ""),
    Option("server_port", "", "No debugger is attached.", ""),
)

OPTIONS: dict[str, tuple[Option, ...]] = {
    "masked_run_glue.py": _GLUE,
    "masked_run_squad.py": (
        *_QUESTION_ANSWERING,
        *_PRUNING,
        *_DISTILLATION,
        Option("lang_id", "", "Selects XLM's language embeddings, which raypp does not support.", 0),
        *_running(500),
    ),
    "run_squad_w_distillation.py": (
        *_QUESTION_ANSWERING,
        *_TEACHER,
        Option(
            "alpha_ce",
            "distillation.soft_weight",
            "Weight of the teacher's loss, which masked_run_squad.py calls alpha_distil. Only with a teacher.",
            0.5,
        ),
        Option("alpha_squad", "distillation.hard_weight", "Weight of the answers' loss. Only with a teacher.", 0.5),
        Option("temperature", "distillation.temperature", "Only with a teacher.", 2.0),
        *_running(50),
    ),
    "train.py": (
        Option("force", "raypp train --fresh", "Without it, the same command resumes an unfinished run.", False),
        _copied("dump_path", "cluster.storage", None, "A run's folder is `<experiment>/<run>` below it."),
        Option(
            "data_file",
            "data.source.files",
            "With `kind: text`: the text itself, which raypp tokenizes, cuts and keeps in the store. raypp does not "
            "read the script's pickles.",
            needed=True,
        ),
        Option(
            "student_type",
            "student.config",
            "It becomes `model_type` in the configuration, which the script's own files lack.",
            needed=True,
            choices=("distilbert", "roberta", "gpt2"),
        ),
        Option(
            "student_config",
            "student.config",
            "For a student that starts from random weights: the file's values, without `tie_weights_`, which "
            "transformers no longer knows.",
            needed=True,
        ),
        Option(
            "student_pretrained_weights",
            "student.model",
            "A folder. `student.layers` of the teacher's model replaces scripts/extract.py.",
        ),
        Option(
            "teacher_type",
            "data.max_length",
            "512 for bert and roberta, 1024 for gpt2: the script cut texts to the maximum length of the teacher's "
            "tokenizer.",
            needed=True,
            choices=("bert", "roberta", "gpt2"),
        ),
        _copied("teacher_name", "teacher.model", None, needed=True),
        _copied("temperature", "distillation.temperature", 2.0),
        _copied("alpha_ce", "distillation.soft_weight", 0.5, "Weight of the teacher's loss."),
        Option("alpha_mlm", "distillation.hard_weight", "With `--mlm`.", 0.0),
        Option("alpha_clm", "distillation.hard_weight", "Without `--mlm`.", 0.5),
        Option(
            "alpha_mse",
            "distillation.logits_weight",
            "raypp takes the mean over the vocabulary, the script took the sum. The script's weight times the size "
            "of the vocabulary is the same weight here.",
            0.0,
        ),
        Option("alpha_cos", "distillation.cosine_weight", "", 0.0),
        Option("mlm", "task.objective", "`masked` with the flag, `causal` without it.", False),
        Option("mlm_mask_prop", "task.masking.proportion", "With `--mlm`.", 0.15),
        Option("word_mask", "task.masking.mask_fraction", "With `--mlm`.", 0.8),
        Option("word_keep", "task.masking.keep_fraction", "With `--mlm`.", 0.1),
        Option("word_rand", "task.masking.random_fraction", "With `--mlm`.", 0.1),
        Option("mlm_smoothing", "task.masking.smoothing", "With `--mlm`.", 0.7),
        Option("token_counts", "", "raypp counts tokens while it prepares the text."),
        Option(
            "restrict_ce_to_mask",
            "distillation.soft_tokens",
            "`targets` with the flag, `all` without it.",
            False,
        ),
        Option("freeze_pos_embs", "train.freeze_position_embeddings", "", False),
        Option("freeze_token_type_embds", "train.freeze_token_type_embeddings", "", False),
        Option("n_epoch", "train.epochs", "", 3),
        Option(
            "batch_size",
            "train.batch_size",
            "The batch of one optimizer step over all workers: the script's value times "
            "`gradient_accumulation_steps`, times `n_gpu`.",
            5,
        ),
        Option(
            "group_by_size",
            "",
            "The flag switches grouping by length off. raypp always makes batches of examples of similar length.",
            True,
        ),
        Option(
            "gradient_accumulation_steps", "train.micro_batches", "The number of fixed micro-batches of a batch.", 50
        ),
        _copied("warmup_prop", "train.warmup_fraction", 0.05),
        _copied("weight_decay", "train.weight_decay", 0.0),
        _copied("learning_rate", "train.learning_rate", 5e-4),
        _copied("adam_epsilon", "train.adam_epsilon", 1e-6),
        _copied("max_grad_norm", "train.max_gradient_norm", 5.0),
        Option(
            "initializer_range",
            "student.config",
            "A field of the model's configuration (`initializer_range`), for a student that starts from random "
            "weights.",
            0.02,
        ),
        Option("n_gpu", "cluster.workers", "With `cluster.gpus_per_worker: 1`. 0 runs on the CPU.", 1),
        _copied("seed", "train.seed", 56),
        _copied("log_interval", "train.log_every_steps", 500, _INTERVAL),
        _copied("checkpoint_interval", "cluster.checkpoint_every_steps", 4000, _INTERVAL),
        *_PRECISION,
    ),
    "bertarize.py": (
        Option(
            "pruning_method",
            "",
            "`raypp export` reads the method from the run. Every run's `model/` is folded already.",
        ),
        Option("threshold", "", "`raypp export` reads it from the run, as the method.", None, float),
        Option("model_name_or_path", "raypp export RUN", "A run's folder."),
        Option("target_model_path", "raypp export --to", "A plain folder that Auto classes open."),
    ),
    "counts_parameters.py": (
        Option("pruning_method", "", "`raypp inspect` counts the weights that are not zero in the model's files."),
        Option("threshold", "", "Not needed, as the method is not: the zeros are counted.", None, float),
        Option(
            "serialization_dir",
            "raypp inspect RUN_OR_MODEL",
            "The script's number is the encoder's density. `raypp inspect` also gives the densities of the linear "
            "weights and of the model.",
        ),
    ),
}
"""All options of each script, in related groups."""
