"""THE loop: fine-tuning with pruning and distillation, read from top to bottom in `fit`.

It runs unchanged in this process, in a Tune trial and on every TorchTrainer worker; what differs is its `Worker`.
Nothing in it depends on how many workers there are: a global batch is cut into fixed shares, each with a seed of its
own, and whatever a step needs (batch, learning rates, threshold, dropout) is a function of its number, so that a run
goes on from a checkpoint as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raypp.attention import use_cpu_attention
from raypp.checkpoint import Checkpoints, capture, restore
from raypp.config import Experiment
from raypp.data.tokenization import Vocabulary
from raypp.deliver import deliver
from raypp.distillation.objective import Objective
from raypp.distillation.teacher import HiddenStateTerm, OnlineTeacher, load_teacher
from raypp.dropout import replace_dropout, set_dropout
from raypp.errors import Interrupted, RunFailed, StorageFailed
from raypp.evaluate import evaluate, headline_key
from raypp.events import Message, PhaseAdvanced
from raypp.freezing import freeze
from raypp.inputs import step_inputs
from raypp.kinds import TaskKind, kind_of
from raypp.models import max_positions, pad_with, require_tokenizer, resolve_model
from raypp.optim import build_optimizer, learning_rates, rate_factor, set_learning_rates
from raypp.predictions import Predictions
from raypp.pruning.controller import build_controller
from raypp.pruning.dense import build_pruning
from raypp.pruning.weight_statistics import measure
from raypp.recording import LogMeans, Recorder, RunProgress
from raypp.steps import StepPlan, plan_steps
from raypp.stopwatch import Stopwatch, forget_peak_memory, peak_memory
from raypp.storage import Location
from raypp.store import Artifact
from raypp.student import initial_student
from raypp.tasks import Task
from raypp.worker import Worker

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Below this the float16 scaler has halved its scale so often that the run itself is broken.
SMALLEST_LOSS_SCALE = 2.0**-14


@dataclass(frozen=True)
class Job:
    """One run, ready to train: everything is resolved, checked and in the store."""

    experiment: Experiment
    task: Task
    run: Location
    """The run's folder."""
    phase: str
    """What the display calls it: student or teacher."""
    micro_batches: int
    """Shares of a global batch."""
    vocabulary: Vocabulary
    """The student's."""
    train: Artifact
    """Features of the training split."""
    evaluation: Mapping[str, Artifact]
    """Features of every evaluation split."""
    teacher_logits: Artifact | None = None
    """Teacher logits of the training split, joined by row."""
    hidden_state_terms: Mapping[str, HiddenStateTerm] = field(default_factory=dict)
    """The terms on both models' hidden states, by name."""
    trained_teacher: Location | None = None
    """Model folder of a teacher that was trained first; a given one is found as the student is."""
    group: str | None = None
    """What W&B groups it under; None: the experiment's name."""
    started_at: float = field(default_factory=time.time)
    """When the command began, in seconds of Unix time: a start takes until the first optimizer step."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the result records besides: versions, teacher metrics, content keys."""

    @property
    def kind(self) -> TaskKind:
        """The task's kind."""
        return kind_of(self.task, self.experiment.data, self.experiment.evaluation)


def fit(job: Job, worker: Worker) -> dict[str, Any]:
    """Trains a run to its end, from its last checkpoint if it has one, and delivers its model.

    Returns:
        The run's result (as in result.json), the same on every worker.

    Raises:
        Interrupted: the worker was asked to leave; the step it was at is done and saved.
        RunFailed: a loss or gradient is not finite, the storage fails for good, the folded model disagrees.
    """
    with Recorder(job.run, job.experiment, worker, job.group) as recorder:
        try:
            return _fit(job, worker, recorder)
        except FloatingPointError as error:
            # Every worker has the same scores and the same predictions, so every worker is here.
            raise RunFailed(str(error)) from error
        except OSError as error:
            raise StorageFailed(f"{job.run} cannot be written to, or what it reads cannot be read: {error}") from error


def _fit(job: Job, worker: Worker, recorder: Recorder) -> dict[str, Any]:
    experiment, settings, task, kind = job.experiment, job.experiment.train, job.task, job.kind
    watch = Stopwatch()
    forget_peak_memory(worker.device)
    folder = resolve_model(experiment.student.model, experiment.student.revision, "student.model")
    require_tokenizer(folder, "student.model")  # it is delivered with the model, after hours perhaps
    with watch("data"):
        data = kind.training_data(experiment, job.micro_batches, job.vocabulary, job.train, job.teacher_logits)
        splits = {
            name: kind.evaluation_data(features.read_table(), job.vocabulary)
            for name, features in job.evaluation.items()
        }
    steps = plan_steps(settings, experiment.evaluation, data.batch_counter(), experiment.cluster.checkpoint_every_steps)

    model = initial_student(experiment, kind, folder, job.trained_teacher).to(worker.device)
    pad_with(model, kind, job.vocabulary.pad_id)
    freeze(model, experiment)
    if settings.dropout is not None:
        set_dropout(model, settings.dropout)
    if worker.device.type == "cpu":
        replace_dropout(model)
        use_cpu_attention(model)
    pruner, schedule = build_pruning(model, experiment.pruning, steps.total, steps.warmup, settings.seed)
    controller = build_controller(experiment.pruning, steps.total, steps.warmup)
    teacher = _online_teacher(job, model.config, worker.device)
    objective = Objective.build(kind, experiment.distillation, teacher)
    learned = nn.ModuleList([model, objective.projections])
    optimizer = build_optimizer(learned, [scores for _, scores in pruner.scores()], settings, experiment.pruning)
    parameters = [parameter for parameter in learned.parameters() if parameter.requires_grad]
    autocast, scaler = _precision(settings.precision, worker.device)
    longest = min(max_positions(each.config) for each in (model, *([teacher.model] if teacher else [])))

    checkpoints = Checkpoints(job.run / "checkpoints", experiment.cluster.keep_checkpoints)
    selects_best = experiment.evaluation.select == "best"
    latest = checkpoints.latest(with_best=selects_best)
    progress, devices = RunProgress(), worker.devices(experiment.cluster.gpus_per_worker)
    if latest is not None:
        restore(latest, model, optimizer, beside=objective.projections)
        scaler.load_state_dict(latest.state["scaler"])
        controller.load_state_dict(latest.state["controller"])
        state = latest.state["progress"]
        # One that an older raypp has written does not say what trained: as much as now.
        progress = RunProgress(**{"device_seconds": state["seconds"] * devices, **state})
        worker.on_event(Message(f"{job.phase}: goes on after step {latest.step}"))
    elif checkpoints.steps():
        worker.on_event(Message(f"{job.phase}: none of its checkpoints can be used; starts over"))
    before, start = replace(progress), progress.steps
    if len(found := set(worker.gather(start))) > 1:
        raise StorageFailed(f"the workers see different checkpoints in {checkpoints.location}: steps {sorted(found)}")
    scaler.scale(torch.zeros((), device=worker.device))  # makes its scale, also where the first step has no share
    recorder.start(start if latest else None)
    # A run that was killed while it delivered its model has no step left to measure.
    perf = recorder.recorded("perf/") if start == steps.total else {}
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
            counted = [inputs.tokens, inputs.computed_tokens, worker.is_interrupted()]
            numbers = torch.tensor(counted, dtype=torch.float64).to(worker.device)
            sums = worker.sum_gradients(parameters, torch.cat([sums, numbers]))
            scaler.unscale_(optimizer)
            norm = optimizer.clip_gradients(settings.max_gradient_norm, at_once=records)
            if not (scaler.is_enabled() or (math.isfinite(norm) and bool(sums.isfinite().all()))):
                raise RunFailed(_not_finite(step, sums, norm, optimizer, inputs.rows))
            scaler.step(optimizer, rows=inputs.counts.rows)
            scaler.update()
            if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:
                raise RunFailed(_not_finite(step, sums, norm, optimizer, inputs.rows))

        if step == start:
            # The clock of another node, or one that was set back, may be behind.
            perf["perf/seconds_to_first_step"] = max(0.0, time.time() - job.started_at)
        *totals, leaving = sums.tolist()  # one worker that is interrupted is enough
        means.add(totals, counts, norm, time.perf_counter() - began)
        saving = steps.saves_after(done) or leaving
        if done % settings.log_every_steps == 0 or saving:
            progress.tokens += means.tokens
            progress.computed_tokens += means.computed_tokens
            metrics = means.values(objective.weights) | pruner.describe(point) | _rates(optimizer)
            means = LogMeans(means.terms)
            if penalty is not None:
                metrics["train/penalty"] = float(penalty)
            metrics["train/epoch"] = steps.epochs_after(done)
            perf |= _speed(watch, done - start, progress, before, worker.device)
            recorder.log(done, metrics | perf)
            worker.on_event(_advanced(job, done, steps, metrics))
        if records:
            recorder.log_parameters(done, model)
        if steps.evaluates_after(done):
            point = controller.at(schedule.at(done))
            with watch("evaluation"):
                worker.follow_first(parameters)
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
                    state = {
                        "total_steps": steps.total,
                        "warmup_steps": steps.warmup,
                        "progress": asdict(progress),
                        "scaler": scaler.state_dict(),
                        "controller": controller.state_dict(),
                    }
                    best_step = int(progress.best["step"]) if progress.best else None
                    captured = capture(done, model, optimizer, state, beside=objective.projections)
                    # The log goes first: what is too new is cut on resume, what is missing is lost.
                    checkpoints.write(captured, best_step, before=recorder.save_metrics)
        if steps.evaluates_after(done):
            if worker.may_be_stopped:
                with watch("checkpoint"):
                    checkpoints.wait()
            worker.on_report({"step": done, **metrics})
        if leaving:
            checkpoints.wait()
            raise Interrupted(done)

    with watch("checkpoint"):
        checkpoints.wait()
    if start < steps.total:
        # What the log has so far lacks the last evaluation and checkpoint.
        perf |= _speed(watch, steps.total - start, progress, before, worker.device)
        recorder.log(steps.total, perf)
        recorder.save_metrics()
    perf["perf/loop_seconds"] = time.monotonic() - loop_began
    worker.barrier()  # the first worker writes, all may read now
    best = progress.best if selects_best else None
    if best is not None and best["step"] != steps.total:
        chosen = checkpoints.read(int(best["step"]))
        if not all(worker.gather(chosen is not None)):
            raise RunFailed(f"the checkpoint of the best evaluation, step {best['step']:.0f}, is damaged")
        assert chosen is not None
        restore(chosen, model)
        predictions = None
    pruner.refresh(schedule.at(steps.total), noise_seed=None)
    if predictions is None:
        _, predictions = evaluate(model, splits, kind, job.vocabulary.pad_id, worker)
    density = pruner.density()
    if worker.is_first and experiment.pruning is not None:
        initial = initial_student(experiment, kind, folder, job.trained_teacher)
        recorder.statistics = measure(model, density, initial)
    plain = pruner.fold()
    return deliver(job, worker, plain, folder, splits, predictions, density, progress, perf, recorder)


def seed_of(*parts: int) -> int:
    """A seed for torch from numbers such as (seed, step, share): far apart for near numbers, the same everywhere."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


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


def _precision(
    name: str, device: torch.device
) -> tuple[Callable[[], contextlib.AbstractContextManager[Any]], torch.amp.GradScaler]:
    """The context of a forward pass, and the scaler that keeps float16's small gradients."""
    scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")
    if name == "float32":
        return contextlib.nullcontext, scaler
    return lambda: torch.autocast(device.type, AUTOCAST[name]), scaler


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    rates = {f"train/{name}_learning_rate": rate for name, rate in learning_rates(optimizer).items()}
    return {name.replace("weights_", ""): rate for name, rate in rates.items()}


def _speed(
    watch: Stopwatch, steps: int, progress: RunProgress, before: RunProgress, device: torch.device
) -> dict[str, float]:
    """What this session has done until now, in so many steps, of its time and memory."""
    tokens, computed = progress.tokens - before.tokens, progress.computed_tokens - before.computed_tokens
    return watch.speed(steps, tokens, computed) | peak_memory(device)


def _advanced(job: Job, done: int, steps: StepPlan, metrics: Mapping[str, float]) -> PhaseAdvanced:
    """What the display shows of a report."""
    headline = headline_key(job.task)
    return PhaseAdvanced(
        job.phase,
        done,
        total=steps.total,
        step=done,
        epoch=steps.epochs_after(done),
        loss=metrics.get("train/loss"),
        density=metrics.get("prune/density"),
        metric=(headline, metrics[headline]) if headline in metrics else None,
    )


def _not_finite(step: int, sums: Tensor, norm: float, optimizer: torch.optim.Optimizer, rows: np.ndarray) -> str:
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in learning_rates(optimizer).items())
    return (
        f"step {step}: the loss or the gradient is not finite (sums of the loss terms {sums[:-3].tolist()}, gradient "
        f"norm {norm}); learning rates: {rates}; rows of the batch: {', '.join(map(str, sorted(rows.tolist())))}"
    )
