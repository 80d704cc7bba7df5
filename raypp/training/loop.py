"""THE loop: fine-tuning with pruning and distillation, in the single function `train_loop`.

It runs unchanged in this process, in a Tune trial and on every TorchTrainer worker; only its `Worker` differs. Its
result does not depend on the number of workers: a global batch is cut into fixed shares, each with its own seed.
Everything that a step needs (batch, learning rates, threshold, dropout) is a function of its number, so that a run that
resumes from a checkpoint gives the result of an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from raypp.cpu.attention import use_cpu_attention
from raypp.cpu.dropout import replace_dropout
from raypp.distillation.objective import Objective
from raypp.distillation.teacher import OnlineTeacher
from raypp.errors import FailsAgain, Interrupted, RunFailed, StorageFailed
from raypp.evaluation.evaluate import evaluate, headline_key
from raypp.evaluation.predictions import Predictions
from raypp.events import Message, PhaseAdvanced
from raypp.models.dropout import set_dropout
from raypp.models.freezing import freeze
from raypp.models.loading import max_positions, pad_with, resolve_planned
from raypp.models.saved_models import load_saved
from raypp.models.student import initial_student
from raypp.pruning.build import build_pruning
from raypp.pruning.controller import build_controller
from raypp.seeds import seed_of
from raypp.storage import Location
from raypp.training.checkpoint import Checkpoints, restore
from raypp.training.deliver import deliver
from raypp.training.inputs import step_inputs
from raypp.training.job import Job
from raypp.training.log_means import LogMeans, StepSums
from raypp.training.optim import build_optimizer, learning_rates, rate_factor, set_learning_rates
from raypp.training.peak_memory import PeakMemory
from raypp.training.precision import build_precision, slow_precision
from raypp.training.recording import Recorder
from raypp.training.steps import StepPlan, plan_steps
from raypp.training.stopwatch import Stopwatch
from raypp.training.training_state import RunProgress, TrainingState
from raypp.training.worker import Worker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# If float16's scaler has halved its scale so often that it is below this, the training has diverged.
SMALLEST_LOSS_SCALE = 2.0**-14


def fit(job: Job, worker: Worker) -> dict[str, Any]:
    """Trains a run to its end, from its last checkpoint if it has one, and delivers its model.

    Returns:
        The run's result (as in result.json), the same on every worker.

    Raises:
        ConfigError: the model or its tokenizer cannot be loaded, or a setting does not fit it.
        Interrupted: a worker was asked to stop; the current step is done and saved.
        FailsAgain: a loss or gradient is not finite, the checkpoint belongs to another model, or the folded model's
            logits differ from the masked model's.
        RunFailed: the checkpoint of the best evaluation is damaged; another try resumes from an earlier one.
        StorageFailed: the storage fails after all retries. Raised on one worker only.
        WorkersLost: the workers see different checkpoints, or this node lacks the model that the command found.
            Raised on one worker only.
    """
    with (
        Recorder(job.run, job.experiment, worker, job.group) as recorder,
        Checkpoints(job.run / "checkpoints", job.experiment.cluster.keep_checkpoints) as checkpoints,
    ):
        try:
            return train_loop(job, worker, recorder, checkpoints)
        except FloatingPointError as error:
            # Every worker has the same scores and the same predictions, so every worker raises this.
            raise FailsAgain(str(error)) from error
        except OSError as error:
            raise StorageFailed(f"{job.run} cannot be written to, or its input cannot be read: {error}") from error


def train_loop(job: Job, worker: Worker, recorder: Recorder, checkpoints: Checkpoints) -> dict[str, Any]:
    """The whole run, as `fit` describes it."""
    experiment, settings, task, kind = job.experiment, job.experiment.train, job.task, job.kind
    watch, memory = Stopwatch(), PeakMemory(worker.device)
    student = experiment.student
    folder = resolve_planned(student.model, student.revision, job.student_fingerprint, "student.model")
    teacher_folder = _teacher_folder(job)
    if (slow := slow_precision(settings.precision, worker.device)) is not None:
        worker.on_event(Message(f"{job.phase}: {slow}"))
    with watch("data"):
        data = kind.training_data(experiment, job.micro_batches, job.vocabulary, job.train, job.teacher_logits)
        splits = {
            name: kind.evaluation_data(features.read_table(), job.vocabulary)
            for name, features in job.evaluation.items()
        }
    steps = plan_steps(settings, experiment.evaluation, data.batch_counter(), experiment.cluster.checkpoint_every_steps)

    model = _student(job, folder, teacher_folder, worker.device)
    pruner, schedule = build_pruning(model, experiment.pruning, steps.total, steps.warmup, settings.seed)
    controller = build_controller(experiment.pruning, steps.total, steps.warmup)
    teacher = _online_teacher(job, teacher_folder, model.config, worker.device)
    objective = Objective.build(kind, experiment.distillation, teacher)
    learned = nn.ModuleList([model, objective.projections])
    optimizer = build_optimizer(learned, [scores for _, scores in pruner.scores()], settings, experiment.pruning)
    parameters = [parameter for parameter in learned.parameters() if parameter.requires_grad]
    autocast, scaler = build_precision(settings.precision, worker.device)
    longest = min(max_positions(each.config) for each in (model, *([teacher.model] if teacher else [])))

    state = TrainingState(model, objective.projections, optimizer, scaler, controller)
    progress = state.resume(job, checkpoints, worker)
    before, start = replace(progress), progress.steps
    num_devices = worker.num_devices(experiment.cluster.gpus_per_worker)
    # The scaler creates its scale at its first use, which may not come if this worker has no share of the first batch.
    scaler.scale(torch.zeros((), device=worker.device))
    recorder.start(start or None)
    # The first step is timed once in a run. A run that was killed while it delivered its model has no steps left to
    # measure.
    perf = recorder.recorded("perf/" if start == steps.total else "perf/seconds_to_first_step")
    means = LogMeans(tuple(objective.weights))
    predictions: dict[str, Predictions] | None = None
    stream = step_inputs(data, steps, start, job.micro_batches, job.vocabulary.pad_id, longest, worker)
    with watch("data"):
        upcoming = next(stream, None)
    statistics_every_steps = experiment.tracking.statistics_every_steps
    loop_began = time.monotonic()

    for step in range(start, steps.total):
        began = time.perf_counter()
        assert upcoming is not None, "there is a batch for every step"
        done = step + 1
        inputs, counts = upcoming, objective.counts(upcoming.counts)
        evaluates = steps.evaluates_after(done)
        logs_parameters = statistics_every_steps is not None and done % statistics_every_steps == 0
        point = schedule.at(step)
        set_learning_rates(optimizer, rate_factor(step, steps.warmup, steps.total))
        with watch("masks"):
            pruner.refresh(point, noise_seed=seed_of(settings.seed, step))
        controller.observe(step, pruner.level)
        point = controller.at(point)

        # A share's loss is its part of the mean over the global batch. The sums of the terms are only for the log.
        model.train()
        optimizer.zero_grad(set_to_none=True)
        penalty: Tensor | None = None
        sums = torch.zeros(len(means.terms), dtype=torch.float64, device=worker.device)
        for share, share_inputs in inputs.shares.items():
            if teacher is not None:
                with watch("teacher"), autocast():
                    share_inputs = {**share_inputs, **teacher.observe(share_inputs)}
            torch.manual_seed(seed_of(settings.seed, step, share))
            with watch("forward"), autocast():
                terms = objective(model, share_inputs)
            with watch("backward"):
                scaler.scale(objective.loss(terms, counts)).backward()
            sums += torch.stack([terms[name].detach() for name in means.terms])
        if worker.is_first and point.penalty_lambda:
            # The penalty belongs to the model and not to a share, so only one worker adds it, once.
            with watch("backward"):
                # torch.tensor would copy a number from the host, which waits for a GPU's work.
                factor = torch.full((), point.penalty_lambda, dtype=torch.float32, device=worker.device)
                penalty = pruner.add_penalty(scaler.scale(factor))

        with watch("data"):
            # The host makes the next batch while a GPU is still busy with this step.
            upcoming = next(stream, None)

        with watch("optimizer"):
            packed = StepSums.pack(sums, inputs.tokens, inputs.computed_tokens, worker.is_interrupted())
            packed = worker.all_reduce_gradients(parameters, packed)
            scaler.unscale_(optimizer)
            norm = optimizer.clip_gradients(settings.max_gradient_norm, at_once=logs_parameters)
            summed = StepSums.unpack(packed)  # now, because later the host would wait for the step, too
            # An enabled scaler skips a step that is not finite, and halves its scale (which is 1 if it is disabled).
            diverged = not (scaler.is_enabled() or all(map(math.isfinite, (norm, *summed.terms))))
            if not diverged:
                scaler.step(optimizer, rows=inputs.counts.targets)
                scaler.update()
                diverged = scaler.get_scale() < SMALLEST_LOSS_SCALE
            if diverged:
                raise FailsAgain(_not_finite(step, summed, norm, optimizer, inputs.rows))

        if step == 0:
            # The clock of another node may be behind, and a clock may have been set back.
            perf["perf/seconds_to_first_step"] = max(0.0, time.time() - job.started_at)
        means.add(summed, counts, norm, time.perf_counter() - began)
        saving = steps.saves_after(done) or summed.interrupted
        if done % settings.log_every_steps == 0 or saving:
            progress.tokens += means.tokens
            progress.computed_tokens += means.computed_tokens
            metrics = means.values(objective.weights) | pruner.describe(point) | _rates(optimizer)
            means = LogMeans(means.terms)
            if penalty is not None:
                metrics["train/penalty"] = float(penalty)
            metrics["train/epoch"] = steps.epochs_after(done)
            perf |= _speed(watch, done - start, progress, before) | memory.metrics()
            recorder.log(done, metrics | perf)
            worker.on_event(_advanced(job, done, steps, metrics))
        if logs_parameters:
            recorder.log_parameters(done, model)
        if evaluates:
            point = controller.at(schedule.at(done))
            with watch("evaluation"):
                worker.broadcast_from_first(parameters)
                pruner.refresh(point, noise_seed=None)
                metrics, predictions = evaluate(model, splits, kind, job.vocabulary.pad_id, worker)
            progress.note(done, headline_key(task), metrics, eligible=point.is_final)
            metrics |= pruner.describe(point) | {"prune/density": pruner.density().linear}
            recorder.log(done, metrics)
            worker.on_event(_advanced(job, done, steps, metrics))
        if saving:
            progress.steps, progress.seconds = done, before.seconds + watch.elapsed_seconds
            progress.device_seconds = before.device_seconds + watch.elapsed_seconds * num_devices
            if worker.is_first:
                with watch("checkpoint"):
                    best_step = int(progress.best["step"]) if progress.best else None
                    # The log is saved first: lines of later steps are cut on resume, but missing ones would be lost.
                    checkpoints.write(state.capture(steps, progress), best_step, before=recorder.save_metrics)
        if evaluates:
            if worker.may_be_stopped:
                with watch("checkpoint"):
                    # Other trials are judged by this evaluation, also after a restart of the sweep.
                    recorder.save_metrics()
            worker.on_report({"step": done, **metrics})
        if summed.interrupted:
            checkpoints.wait()
            raise Interrupted(done)

    with watch("checkpoint"):
        checkpoints.wait()
    if start < steps.total:
        # The perf metrics that are logged so far do not include the last evaluation and checkpoint.
        perf |= _speed(watch, steps.total - start, progress, before) | memory.metrics()
        perf["perf/loop_seconds"] = time.monotonic() - loop_began
        recorder.log(steps.total, perf)
        recorder.save_metrics()
    # An earlier session may have been killed after its last checkpoint and before it logged this.
    perf.setdefault("perf/loop_seconds", time.monotonic() - loop_began)
    worker.barrier()  # the first worker has written all checkpoints, and every worker may read them now
    if _restored_best(job, worker, checkpoints, model, progress):
        predictions = None
    pruner.refresh(schedule.at(steps.total), noise_seed=None)
    if predictions is None:
        _, predictions = evaluate(model, splits, kind, job.vocabulary.pad_id, worker)
    return deliver(
        job,
        worker,
        recorder,
        model=model,
        pruner=pruner,
        pretrained=folder,
        teacher=teacher_folder,
        splits=splits,
        masked=predictions,
        progress=progress,
        perf=perf,
    )


def _teacher_folder(job: Job) -> Location | None:
    """The model folder of the teacher; None if the workers do not load it.

    Raises:
        WorkersLost: this node lacks the teacher that the command found.
    """
    if not job.teacher_runs and job.experiment.student.start != "teacher":
        return None
    if job.trained_teacher is not None:
        return job.trained_teacher
    settings = job.experiment.teacher
    assert settings is not None
    assert settings.model is not None
    assert job.teacher_fingerprint is not None, "a teacher is trained first or given"
    return Location.of(resolve_planned(settings.model, settings.revision, job.teacher_fingerprint, "teacher.model"))


def _student(job: Job, folder: Path, teacher: Location | None, device: torch.device) -> PreTrainedModel:
    """The model that is trained, before any layer is replaced for pruning."""
    model = initial_student(job.experiment, job.kind, folder, teacher).to(device)
    pad_with(model, job.kind, job.vocabulary.pad_id)
    freeze(model, job.experiment)
    if job.experiment.train.dropout is not None:
        set_dropout(model, job.experiment.train.dropout)
    if device.type == "cpu":
        replace_dropout(model)
        use_cpu_attention(model)
    return model


def _online_teacher(job: Job, folder: Location | None, student: Any, device: torch.device) -> OnlineTeacher | None:
    """The teacher that runs next to the student, if a loss needs it; None otherwise.

    Args:
        folder: the teacher's.
        student: `transformers` configuration of the student.
    """
    if not job.teacher_runs:
        return None
    assert folder is not None
    model = load_saved(folder, job.kind)
    pad_with(model, job.kind, job.vocabulary.pad_id)
    terms, width, seed = job.hidden_state_terms, student.hidden_size, job.experiment.train.seed
    return OnlineTeacher(model, job.kind, terms, width, seed, device, with_logits=job.needs_online_logits)


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    rates = {f"train/{name}_learning_rate": rate for name, rate in learning_rates(optimizer).items()}
    return {name.replace("weights_", ""): rate for name, rate in rates.items()}


def _restored_best(job: Job, worker: Worker, checkpoints: Checkpoints, model: nn.Module, progress: RunProgress) -> bool:
    """Restores the model of the best evaluation, if that model is to be delivered and is not the last one.

    Returns:
        Whether it was restored.
    """
    best = progress.best if job.experiment.evaluation.select == "best" else None
    if best is None or best["step"] == progress.steps:
        return False
    chosen = checkpoints.read(int(best["step"]))
    if not all(worker.gather(chosen is not None)):
        raise RunFailed(f"the checkpoint of the best evaluation, step {best['step']:.0f}, is damaged")
    assert chosen is not None
    restore(chosen, model)
    return True


def _speed(watch: Stopwatch, steps: int, progress: RunProgress, before: RunProgress) -> dict[str, float]:
    """The speed of this session until now, after this number of its steps."""
    tokens, computed = progress.tokens - before.tokens, progress.computed_tokens - before.computed_tokens
    return watch.speed(steps, tokens, computed)


def _advanced(job: Job, done: int, steps: StepPlan, metrics: Mapping[str, float]) -> PhaseAdvanced:
    """The progress event for the display."""
    headline = headline_key(job.task)
    return PhaseAdvanced(
        job.phase,
        done,
        total=steps.total,
        epoch=steps.epochs_after(done),
        loss=metrics.get("train/loss"),
        density=metrics.get("prune/density"),
        metric=(headline, metrics[headline]) if headline in metrics else None,
    )


def _not_finite(step: int, summed: StepSums, norm: float, optimizer: torch.optim.Optimizer, rows: np.ndarray) -> str:
    """The message of a run that fails because its loss or gradient is not finite."""
    terms = list(summed.terms)
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in learning_rates(optimizer).items())
    return (
        f"step {step}: the loss or the gradient is not finite (sums of the loss terms {terms}, gradient norm {norm}); "
        f"learning rates: {rates}; rows of the batch: {', '.join(map(str, sorted(rows.tolist())))}; "
        "smaller learning rates may help, and so may another train.precision than float16"
    )
