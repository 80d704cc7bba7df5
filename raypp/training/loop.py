"""THE loop: fine-tuning with pruning and distillation, read from top to bottom in `train_loop`.

It runs unchanged in this process, in a Tune trial and on every TorchTrainer worker; what differs is its `Worker`.
Nothing in it depends on how many workers there are: a global batch is cut into fixed shares, each with a seed of its
own, and whatever a step needs (batch, learning rates, threshold, dropout) is a function of its number, so that a run
goes on from a checkpoint as if nothing had happened.
"""

from __future__ import annotations

import hashlib
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
from raypp.cpu.dropout import replace_dropout, set_dropout
from raypp.distillation.objective import Objective
from raypp.distillation.teacher import OnlineTeacher, load_teacher
from raypp.errors import Interrupted, RunFailed, StorageFailed
from raypp.evaluation.evaluate import evaluate, headline_key
from raypp.evaluation.predictions import Predictions
from raypp.events import Message, PhaseAdvanced
from raypp.models.freezing import freeze
from raypp.models.loading import max_positions, pad_with, require_tokenizer, resolve_model
from raypp.models.student import initial_student
from raypp.pruning.controller import build_controller
from raypp.pruning.dense import build_pruning
from raypp.training.checkpoint import Checkpoints, restore
from raypp.training.deliver import deliver
from raypp.training.inputs import step_inputs
from raypp.training.job import Job
from raypp.training.optim import build_optimizer, learning_rates, rate_factor, set_learning_rates
from raypp.training.peak_memory import PeakMemory
from raypp.training.precision import build_precision, slow_precision
from raypp.training.recording import LogMeans, Recorder, RunProgress, StepSums
from raypp.training.steps import StepPlan, plan_steps
from raypp.training.stopwatch import Stopwatch
from raypp.training.training_state import TrainingState
from raypp.training.worker import Worker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Below this the float16 scaler has halved its scale so often that the run itself is broken.
SMALLEST_LOSS_SCALE = 2.0**-14


def fit(job: Job, worker: Worker) -> dict[str, Any]:
    """Trains a run to its end, from its last checkpoint if it has one, and delivers its model.

    Returns:
        The run's result (as in result.json), the same on every worker.

    Raises:
        Interrupted: the worker was asked to leave; the step it was at is done and saved.
        RunFailed: a loss or gradient is not finite, the storage fails for good, the folded model disagrees.
    """
    with (
        Recorder(job.run, job.experiment, worker, job.group) as recorder,
        Checkpoints(job.run / "checkpoints", job.experiment.cluster.keep_checkpoints) as checkpoints,
    ):
        try:
            return train_loop(job, worker, recorder, checkpoints)
        except FloatingPointError as error:
            # Every worker has the same scores and the same predictions, so every worker is here.
            raise RunFailed(str(error)) from error
        except OSError as error:
            raise StorageFailed(f"{job.run} cannot be written to, or what it reads cannot be read: {error}") from error


def train_loop(job: Job, worker: Worker, recorder: Recorder, checkpoints: Checkpoints) -> dict[str, Any]:
    """The whole run, as `fit` describes it."""
    experiment, settings, task, kind = job.experiment, job.experiment.train, job.task, job.kind
    watch, memory = Stopwatch(), PeakMemory(worker.device)
    folder = resolve_model(experiment.student.model, experiment.student.revision, "student.model")
    require_tokenizer(folder, "student.model")  # it is delivered with the model, after hours perhaps
    if (slow := slow_precision(settings.precision, worker.device)) is not None:
        worker.on_event(Message(f"{job.phase}: {slow}"))
    with watch("data"):
        data = kind.training_data(experiment, job.micro_batches, job.vocabulary, job.train, job.teacher_logits)
        splits = {
            name: kind.evaluation_data(features.read_table(), job.vocabulary)
            for name, features in job.evaluation.items()
        }
    steps = plan_steps(settings, experiment.evaluation, data.batch_counter(), experiment.cluster.checkpoint_every_steps)

    model = _student(job, folder, worker.device)
    pruner, schedule = build_pruning(model, experiment.pruning, steps.total, steps.warmup, settings.seed)
    controller = build_controller(experiment.pruning, steps.total, steps.warmup)
    teacher = _online_teacher(job, model.config, worker.device)
    objective = Objective.build(kind, experiment.distillation, teacher)
    learned = nn.ModuleList([model, objective.projections])
    optimizer = build_optimizer(learned, [scores for _, scores in pruner.scores()], settings, experiment.pruning)
    parameters = [parameter for parameter in learned.parameters() if parameter.requires_grad]
    autocast, scaler = build_precision(settings.precision, worker.device)
    longest = min(max_positions(each.config) for each in (model, *([teacher.model] if teacher else [])))

    state = TrainingState(model, objective.projections, optimizer, scaler, controller)
    progress = state.resume(job, checkpoints, worker)
    before, start = replace(progress), progress.steps
    devices = worker.num_devices(experiment.cluster.gpus_per_worker)
    scaler.scale(torch.zeros((), device=worker.device))  # makes its scale, also where the first step has no share
    recorder.start(start or None)
    # The first step is timed once in a run. A run that was killed while it delivered its model has no step to measure.
    perf = recorder.recorded("perf/" if start == steps.total else "perf/seconds_to_first_step")
    means = LogMeans(tuple(objective.weights))
    predictions: dict[str, Predictions] | None = None
    stream = step_inputs(data, steps, start, job.micro_batches, job.vocabulary.pad_id, longest, worker)
    with watch("data"):
        upcoming = next(stream, None)
    every = experiment.tracking.statistics_every_steps
    loop_began = time.monotonic()

    for step in range(start, steps.total):
        began = time.perf_counter()
        assert upcoming is not None, "there is a batch for every step"
        done = step + 1
        inputs, counts = upcoming, objective.counts(upcoming.counts)
        records = every is not None and done % every == 0
        point = schedule.at(step)
        set_learning_rates(optimizer, rate_factor(step, steps.warmup, steps.total))
        with watch("masks"):
            pruner.refresh(point, noise_seed=seed_of(settings.seed, step))
        controller.observe(step, pruner.level)
        point = controller.at(point)

        # A share's loss is its part of the global batch's mean; the sums of the terms ride along for the log.
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
            # The penalty is the whole model's and not a share's: once, on one worker.
            with watch("backward"):
                factor = torch.tensor(point.penalty_lambda, device=worker.device)
                penalty = pruner.add_penalty(scaler.scale(factor))

        with watch("data"):
            # A GPU is still busy with this step while the host makes the next one's batch.
            upcoming = next(stream, None)

        with watch("optimizer"):
            packed = StepSums.pack(sums, inputs.tokens, inputs.computed_tokens, worker.is_interrupted())
            packed = worker.all_reduce_gradients(parameters, packed)
            scaler.unscale_(optimizer)
            norm = optimizer.clip_gradients(settings.max_gradient_norm, at_once=records)
            if not (scaler.is_enabled() or (math.isfinite(norm) and bool(packed.isfinite().all()))):
                raise RunFailed(_not_finite(step, packed, norm, optimizer, inputs.rows))
            scaler.step(optimizer, rows=inputs.counts.rows)
            scaler.update()
            if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:
                raise RunFailed(_not_finite(step, packed, norm, optimizer, inputs.rows))

        if step == 0:
            # The clock of another node, or one that was set back, may be behind.
            perf["perf/seconds_to_first_step"] = max(0.0, time.time() - job.started_at)
        summed = StepSums.unpack(packed)
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
        if records:
            recorder.log_parameters(done, model)
        if steps.evaluates_after(done):
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
            progress.device_seconds = before.device_seconds + watch.elapsed_seconds * devices
            if worker.is_first:
                with watch("checkpoint"):
                    best_step = int(progress.best["step"]) if progress.best else None
                    # The log goes first: what is too new is cut on resume, what is missing is lost.
                    checkpoints.write(state.capture(steps, progress), best_step, before=recorder.save_metrics)
        if steps.evaluates_after(done):
            if worker.may_be_stopped:
                with watch("checkpoint"):
                    checkpoints.wait()
            worker.on_report({"step": done, **metrics})
        if summed.interrupted:
            checkpoints.wait()
            raise Interrupted(done)

    with watch("checkpoint"):
        checkpoints.wait()
    if start < steps.total:
        # What the log has so far lacks the last evaluation and checkpoint.
        perf |= _speed(watch, steps.total - start, progress, before) | memory.metrics()
        perf["perf/loop_seconds"] = time.monotonic() - loop_began
        recorder.log(steps.total, perf)
        recorder.save_metrics()
    perf.setdefault("perf/loop_seconds", time.monotonic() - loop_began)  # killed before it was written down
    worker.barrier()  # the first worker writes, all may read now
    if _went_back_to_best(job, worker, checkpoints, model, progress):
        predictions = None
    pruner.refresh(schedule.at(steps.total), noise_seed=None)
    if predictions is None:
        _, predictions = evaluate(model, splits, kind, job.vocabulary.pad_id, worker)
    return deliver(job, worker, recorder, model, pruner, folder, splits, predictions, progress, perf)


def seed_of(*parts: int) -> int:
    """A seed for torch from numbers such as (seed, step, share): far apart for near numbers, the same everywhere."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _student(job: Job, folder: Path, device: torch.device) -> PreTrainedModel:
    """The model that is trained, dense as yet."""
    model = initial_student(job.experiment, job.kind, folder, job.trained_teacher).to(device)
    pad_with(model, job.kind, job.vocabulary.pad_id)
    freeze(model, job.experiment)
    if job.experiment.train.dropout is not None:
        set_dropout(model, job.experiment.train.dropout)
    if device.type == "cpu":
        replace_dropout(model)
        use_cpu_attention(model)
    return model


def _online_teacher(job: Job, student: Any, device: torch.device) -> OnlineTeacher | None:
    """The teacher beside the student of this configuration, if a loss needs it."""
    experiment = job.experiment
    followed = experiment.distillation
    with_logits = not job.kind.stores_teacher_logits and bool(
        followed and (followed.soft_weight or followed.logits_weight)
    )
    if not job.hidden_state_terms and not with_logits:
        return None
    assert experiment.teacher is not None
    model = load_teacher(experiment.teacher, job.trained_teacher, job.kind)
    pad_with(model, job.kind, job.vocabulary.pad_id)
    terms, width, seed = job.hidden_state_terms, student.hidden_size, experiment.train.seed
    return OnlineTeacher(model, job.kind, terms, width, seed, device, with_logits=with_logits)


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    rates = {f"train/{name}_learning_rate": rate for name, rate in learning_rates(optimizer).items()}
    return {name.replace("weights_", ""): rate for name, rate in rates.items()}


def _went_back_to_best(
    job: Job, worker: Worker, checkpoints: Checkpoints, model: nn.Module, progress: RunProgress
) -> bool:
    """Puts the model of the best evaluation back, where it is to be delivered and is not the last."""
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
    """What the display shows of a report."""
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


def _not_finite(step: int, packed: Tensor, norm: float, optimizer: torch.optim.Optimizer, rows: np.ndarray) -> str:
    terms = list(StepSums.unpack(packed).terms)
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in learning_rates(optimizer).items())
    return (
        f"step {step}: the loss or the gradient is not finite (sums of the loss terms {terms}, gradient norm {norm}); "
        f"learning rates: {rates}; rows of the batch: {', '.join(map(str, sorted(rows.tolist())))}"
    )
