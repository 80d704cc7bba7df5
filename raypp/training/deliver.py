"""The end of a run: the folded model is saved, loaded again as any user would load it, and evaluated again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raypp.errors import FailsAgain
from raypp.evaluation.evaluate import evaluate, headline_key
from raypp.evaluation.predictions import Predictions
from raypp.models.loading import load_tokenizer
from raypp.models.saved_models import load_saved, save_model
from raypp.models.student import initial_student
from raypp.pruning.weight_statistics import measure
from raypp.runs import model_checksums
from raypp.training.recording import Recorder
from raypp.training.training_state import RunProgress
from raypp.training.worker import Worker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raypp.data.examples import EvaluationExamples
    from raypp.pruning.dense import NoPruner
    from raypp.pruning.density import DensityReport
    from raypp.pruning.pruner import Pruner
    from raypp.storage import Location
    from raypp.training.job import Job

FOLD_TOLERANCE = 1e-5


def deliver(
    job: Job,
    worker: Worker,
    recorder: Recorder,
    *,
    model: PreTrainedModel,
    pruner: Pruner | NoPruner,
    pretrained: Path,
    teacher: Location | None,
    splits: Mapping[str, EvaluationExamples],
    masked: Mapping[str, Predictions],
    progress: RunProgress,
    perf: Mapping[str, float],
) -> dict[str, Any]:
    """Folds and saves the model, evaluates the saved model, and writes predictions, figures and, last, the result.

    Args:
        model: with the masks that it is delivered with.
        pretrained: folder of the pretrained model, whose tokenizer is delivered with the model.
        teacher: model folder of the teacher, as for `initial_student`.
        splits: of the evaluation, by name.
        masked: predictions of `model`, by split.
        perf: this session's `perf/…` metrics.

    Returns:
        The result (as in result.json), the same on every worker.

    Raises:
        FailsAgain: the saved model's logits differ from the masked model's.
    """
    density = pruner.density()
    if worker.is_first and job.experiment.pruning is not None:
        initial = initial_student(job.experiment, job.kind, pretrained, teacher)
        recorder.statistics = measure(model, density, initial)
    plain: Any = pruner.fold()
    if worker.is_first:
        save_model(plain, load_tokenizer(pretrained, "student.model"), job.run / "model")
    worker.barrier()
    saved = load_saved(job.run / "model", job.kind, worker.device)
    began = time.monotonic()
    metrics, predictions = evaluate(saved, splits, job.kind, job.vocabulary.pad_id, worker)
    perf = {**perf, "perf/final_evaluation_seconds": time.monotonic() - began}
    _check_folded(job, masked, predictions)
    result = _result(job, worker, metrics, density, progress, perf)
    if worker.is_first:
        (job.run / "predictions.tsv").write_text(job.kind.table(predictions))
        result["model_files"] = model_checksums(job.run)
        result["paths"]["wandb_sync"] = recorder.finish(result)
        (job.run / "result.json").write_json(result)
    return dict(worker.gather(result)[0])


def _check_folded(job: Job, masked: Mapping[str, Predictions], folded: Mapping[str, Predictions]) -> None:
    """Raises FailsAgain if a logit of the saved, folded model differs from the masked model's."""
    for split, predictions in folded.items():
        difference = float(np.abs(predictions.logits - masked[split].logits).max())
        if difference > FOLD_TOLERANCE:
            raise FailsAgain(
                f"a logit of the saved model in {job.run / 'model'} differs from the masked model's by "
                f"{difference:.2g}, on {split}; allowed: at most {FOLD_TOLERANCE:g}"
            )


def _result(
    job: Job,
    worker: Worker,
    metrics: Mapping[str, float],
    density: DensityReport,
    progress: RunProgress,
    perf: Mapping[str, float],
) -> dict[str, Any]:
    """The content of result.json, without what only the first worker knows."""
    pruning = job.experiment.pruning
    return {
        "name": job.experiment.name,
        "run": job.run.name,
        "task": job.task.name,
        "headline": headline_key(job.task),
        "metrics": dict(metrics),
        "requested_density": None if pruning is None else pruning.requested_density,
        "density": {"linear": density.linear, "encoder": density.encoder, "model": density.model},
        "steps": progress.steps,
        "seconds": progress.seconds,
        "device": worker.device_name,
        "device_hours": progress.device_seconds / 3600,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "perf": dict(perf),
        "best": progress.best,
        "paths": {
            "run": str(job.run),
            "model": str(job.run / "model"),
            "figures": str(job.run / "figures"),
            "metrics": str(job.run / "metrics.jsonl"),
        },
        **job.provenance,
    }
