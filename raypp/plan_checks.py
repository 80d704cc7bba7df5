"""Checks that concern several sections of an experiment, its task or its models. All raise ConfigError."""

from __future__ import annotations

from raypp.config import Experiment, Texts
from raypp.errors import ConfigError
from raypp.kinds import TaskKind, kind_of
from raypp.kinds.kind import KIND_SETTINGS
from raypp.models.loading import load_model_config
from raypp.models.model_input import ModelInput, meta_model
from raypp.tasks import Task


def check_sections(experiment: Experiment, task: Task | None) -> None:
    """Refuses sections that contradict each other."""
    problems = []
    if experiment.sweep is not None:
        problems.append("sweep: run an experiment with a sweep by `raypp sweep`; for one run, leave sweep out")
    if experiment.distillation is not None and experiment.teacher is None:
        problems.append("distillation: needs a teacher, but teacher is null; give one, or set distillation to null")
    if experiment.student.start == "teacher" and experiment.teacher is None:
        problems.append(
            "student.start: teacher needs a teacher, but teacher is null; give one, or set student.start to pretrained"
        )
    pruning = experiment.pruning
    if pruning is not None and pruning.requested_density is None and experiment.evaluation.select == "best":
        problems.append(
            f"evaluation.select: best compares evaluations at the final density, but {pruning.method} without "
            "pruning.target_density has no final density before its last step; give one, or set evaluation.select to "
            "last"
        )
    cluster, source = experiment.cluster, experiment.data.source
    if 0 < cluster.gpus_per_worker <= 0.5 and cluster.max_workers > 1 and cluster.placement != "strict_spread":
        # NCCL, which sums their gradients, refuses two processes on one GPU.
        problems.append(
            f"cluster.gpus_per_worker: workers of one run cannot share a GPU, got {cluster.gpus_per_worker} with "
            f"{cluster.max_workers} workers; allowed: 1 or 0, one worker, or placement: strict_spread"
        )
    if isinstance(source, Texts):
        own = {"dev_files": getattr(source, "dev_files", ()), "dev_split": getattr(source, "dev_split", None)}
        usual = Texts.model_fields["held_out_fraction"].default
        problems += [
            f"data.source.held_out_fraction: has no effect with {name}, got {source.held_out_fraction}; leave it out"
            for name, given in own.items()
            if given and source.held_out_fraction != usual
        ]
    if task is not None and kind_of(task).cuts_texts and experiment.train.batch_tokens is not None:
        problems.append("train.batch_tokens: plain text comes in blocks of similar size; give batch_size instead")
    problems += _idle_workers(experiment)
    if problems:
        raise ConfigError(problems)


def check_device(experiment: Experiment) -> None:
    """Refuses a run in this process on a GPU if this machine has none.

    Raises:
        ConfigError: torch sees no GPU.
    """
    import torch

    gpus = experiment.cluster.gpus_per_worker
    if experiment.cluster.max_workers == 0 and gpus and not torch.cuda.is_available():
        raise ConfigError(
            f"cluster.gpus_per_worker: {gpus:g} with workers: 0 needs a GPU in this machine, and torch sees none; "
            "allowed: 0, or workers on a cluster that has one"
        )


def _idle_workers(experiment: Experiment) -> list[str]:
    """Problems of settings that divide a global batch into fewer parts than there may be workers."""
    workers, teacher = experiment.cluster.max_workers, experiment.teacher
    trained = {"train": experiment.train}
    if teacher is not None and teacher.train is not None:
        trained["teacher.train"] = teacher.train
    problems = []
    for section, settings in trained.items():
        shares, rows = settings.micro_batches, settings.batch_size
        if shares != "auto" and shares < workers:
            problems.append(
                f"{section}.micro_batches: {shares} would leave some of {workers} workers (cluster.workers) without "
                f"work; allowed: auto, {workers} or more"
            )
        if rows is not None and rows < workers:
            problems.append(
                f"{section}.batch_size: {rows} would leave some of {workers} workers (cluster.workers) without work; "
                f"allowed: {workers} or more"
            )
    return problems


def check_kind_settings(experiment: Experiment, kind: TaskKind) -> None:
    """Refuses settings that only other kinds of task use."""
    problems = []
    for name in sorted(KIND_SETTINGS - kind.own_settings):
        section, field = name.split(".")
        given = getattr(experiment, section)
        # The recorded experiment of a run has all settings, so only a value other than the default is a problem.
        if given is not None and getattr(given, field) != type(given).model_fields[field].get_default():
            problems.append(
                f"{name}: {kind.task.name} is a {kind.task.kind} task, which does not use this setting; leave it out"
            )
    threshold = experiment.evaluation.answers.null_threshold
    if kind.task.kind == "question_answering" and threshold and not kind.task.unanswerable:
        problems.append(
            f"evaluation.answers.null_threshold: every question of {kind.task.name} has an answer, so {threshold:g} "
            "has no effect; leave it out"
        )
    if problems:
        raise ConfigError(problems)


def check_start(kind: TaskKind, student: ModelInput, teacher: ModelInput, given: bool) -> None:
    """Refuses a student that cannot take the teacher's weights, or a teacher whose outputs are in another order.

    Args:
        given: whether the teacher is a given model, and not one that is trained first.
    """
    # The shape of the whole student.model counts: student.layers selects from the whole teacher.
    configs = load_model_config(student.folder, "student.model"), teacher.config
    shapes = [
        {name: list(tensor.shape) for name, tensor in meta_model(config, kind).base_model.state_dict().items()}
        for config in configs
    ]
    if shapes[0] != shapes[1]:
        different = sorted(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        name = different[0]
        raise ConfigError(
            f"student.start: teacher needs a teacher of the student's shape, but {len(different)} tensors differ: "
            f"{name} is {shapes[0].get(name, 'absent')} in the student and {shapes[1].get(name, 'absent')} in the "
            "teacher; allowed: pretrained"
        )
    if given:  # a teacher that is trained first has the task's labels in the task's order
        order = kind.output_order(teacher.config, "teacher.model")
        if order != sorted(order):
            raise ConfigError(
                f"student.start: teacher takes the teacher's head as it is, but its labels "
                f"{list(teacher.config.id2label.values())} are not in the order of {kind.task.name}, "
                f"{list(kind.task.labels)}; allowed: pretrained"
            )


def check_tokens(experiment: Experiment, kind: TaskKind, student: ModelInput, teacher: ModelInput) -> None:
    """Refuses a teacher with another tokenizer or vocabulary than the student's, if something requires the same."""
    needs = []  # (what requires the same tokenizer, what is allowed instead)
    if experiment.student.start == "teacher":
        needs.append(("student.start: teacher takes the teacher's weights", "pretrained"))
    if (settings := experiment.distillation) is not None and (settings.hidden_weight or settings.cosine_weight):
        field = "hidden_weight" if settings.hidden_weight else "cosine_weight"
        compares = f"distillation.{field}: {getattr(settings, field):g} compares states token by token"
        needs.append((compares, "0, or a teacher with the student's tokenizer"))
    if kind.outputs_per_token or not kind.stores_teacher_logits:
        needs.append(("teacher: the student follows it token by token", "one with the student's"))
    if needs and teacher.tokenizer != student.tokenizer:
        raise ConfigError(
            [
                f"{need}, but the teacher in {teacher.folder} has another tokenizer than the student in "
                f"{student.folder}; allowed: {allowed}"
                for need, allowed in needs
            ]
        )
    if not kind.stores_teacher_logits and teacher.config.vocab_size != student.config.vocab_size:
        raise ConfigError(
            f"teacher: the student follows the teacher's probabilities of each token, but the teacher in "
            f"{teacher.folder} has {teacher.config.vocab_size} tokens, the student in {student.folder} has "
            f"{student.config.vocab_size}; give a teacher with the student's vocabulary"
        )
