"""Preparation on Ray Data: the features of a split, and a teacher's logits on them, for the store.

Workers write their parts to the store and respond with name, size, checksum and row count. No result passes through the
driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raypp.cluster.capacity import GPU_ACTOR, workers_on
from raypp.cluster.nodes import node_resources
from raypp.cluster.parts import Progress, collect, respond, run_windows, tokenizer_here
from raypp.cluster.windows import row_windows
from raypp.data.batches import plan_tokens
from raypp.data.features import Features
from raypp.data.tokenization import tokenizer_fingerprint
from raypp.errors import ConfigError
from raypp.evaluation.predictions import without_padding
from raypp.storage import Location
from raypp.store import Artifact, Store, StoredFile, content_key, write_part

# Ray is imported where it is used, after the session has set the environment that it reads. So is torch, because
# workers that only tokenize do not need it.
if TYPE_CHECKING:
    import ray

    from raypp.data.raw import RawData
    from raypp.kinds import TaskKind

# Fewest and most rows of a part, which one task tokenizes: few enough to keep many nodes busy, but enough to be worth a
# task of Ray Data, whose overhead is about that of tokenizing 1024 rows.
PART_ROWS = (1024, 8192)
PARTS_PER_CPU = 8  # in each window: the last tasks of the last window leave CPUs idle
MAX_ACTOR_CPUS = 4
TOKENS_PER_BATCH = 8192  # of one forward pass, padding included
PRECISION = "float32"  # of the teacher's forward pass
LOGITS_FORMAT = 1  # raised when the same teacher and features would give other logits than before


def featurize(
    raw: RawData, split: str, kind: TaskKind, tokenizer_folder: str, store: Store, progress: Progress
) -> Artifact:
    """Makes the features of a split for the store, on all nodes of the cluster.

    Raises:
        ConfigError: a row cannot be read, or the store cannot be written.
        RunFailed: a worker failed.
    """
    from raypp.models.loading import load_tokenizer

    tokenizer = load_tokenizer(Path(tokenizer_folder), "tokenizer")
    raw_hash, tokenizer_hash = raw.fingerprint(split), tokenizer_fingerprint(tokenizer)
    key = kind.features_key(raw_fingerprint=raw_hash, tokenizer_fingerprint=tokenizer_hash)
    import ray.data

    task, max_length = kind.task.name, kind.data.max_length
    given = {"task": task, "split": split, "tokenizer": tokenizer_folder, "max_length": max_length}
    with store.build("features", key, given) as build:
        work = {"tokenizer": ray.put(tokenizer), "fingerprint": tokenizer_hash, "kind": kind}
        work |= {"folder": build.location}
        files: list[StoredFile] = []
        rows, cpus = 0, int(ray.cluster_resources().get("CPU", 1))

        def tokenized(parts: ray.data.Dataset) -> ray.data.Dataset:
            return parts.map_batches(
                _tokenize_part, batch_size=None, batch_format="pyarrow", num_cpus=1, fn_kwargs=work
            )

        windows = ((_parts(window, cpus), is_last) for window, is_last in row_windows(raw.read(split)))
        for response in run_windows(windows, tokenized, progress, f"features of {task} {split}"):
            files.append(StoredFile(**response["file"]))
            rows += response["made"]
        return build.finish(rows, {"max_length": max_length, "pad_token_id": tokenizer.pad_token_id}, files)


def _parts(window: pa.Table, cpus: int) -> list[pa.Table]:
    """Cuts a window into `PARTS_PER_CPU` tables for each CPU, of a size within the limits of `PART_ROWS`."""
    least, most = PART_ROWS
    size = min(most, max(least, -(-window.num_rows // (PARTS_PER_CPU * cpus))))
    return [window.slice(start, size) for start in range(0, window.num_rows, size)]


def logits_key(features: Artifact, teacher_fingerprint: str, output_order: Sequence[int]) -> str:
    """Content key of a teacher's logits: a hash of everything that determines them."""
    parts = {"features": features.key, "teacher": teacher_fingerprint, "label_permutation": list(output_order)}
    return content_key(format=LOGITS_FORMAT, precision=PRECISION, **parts)


@dataclass(frozen=True)
class TeacherLogits:
    """A fine-tuned teacher's logits on features of its own tokenizer: float32, by row, in the task's label order."""

    features: Artifact
    kind: TaskKind
    model_folder: Path
    output_order: Sequence[int]
    """The model's outputs in the task's order."""
    key: str

    @classmethod
    def of(cls, features: Artifact, kind: TaskKind, model_folder: Path, teacher_fingerprint: str) -> TeacherLogits:
        """
        Args:
            kind: of the task that the teacher was fine-tuned for.

        Raises:
            ConfigError: the folder holds no model for the task.
        """
        from raypp.models.loading import load_model_config

        order = kind.output_order(load_model_config(model_folder, "teacher.model", kind), "teacher.model")
        return cls(features, kind, model_folder, order, logits_key(features, teacher_fingerprint, order))

    def find(self, store: Store) -> Artifact | None:
        """The logits in the store, if they are there."""
        return store.find("logits", self.key)

    def make(self, store: Store, progress: Progress, *, gpus: bool = False) -> Artifact:
        """Computes the logits for the store, on all nodes of the cluster.

        Args:
            gpus: use one actor per GPU, and wait for one if the cluster has none; otherwise one actor per few CPUs.

        Raises:
            ConfigError: the model is not fine-tuned, a logit is not finite, or the store cannot be written.
            RunFailed: a worker failed.
        """
        from raypp.models.loading import load_finetuned

        features, folder = self.features, str(self.model_folder)
        model = load_finetuned(self.model_folder, self.kind, "teacher.model")

        import ray.data

        size, resources = _actors(node_resources(), len(features.parts), gpus)
        with store.build("logits", self.key, {"teacher": folder, "features": features.description}) as build:
            work = {"model": ray.put(model), "features": features, "folder": build.location, "kind": self.kind}
            work |= {"output_order": self.output_order, "threads": resources.get("num_cpus")}
            pool = ray.data.ActorPoolStrategy(size=size)
            parts = [{"part": name} for name in features.parts]
            made = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
                _Teacher, batch_size=1, batch_format="pyarrow", compute=pool, fn_constructor_kwargs=work, **resources
            )
            responses = list(collect(made, features.rows, progress, "teacher logits"))
            files = [StoredFile(**response["file"]) for response in responses]
            return build.finish(sum(response["made"] for response in responses), {"precision": PRECISION}, files)


def _tokenize_part(
    part: pa.Table, tokenizer: ray.ObjectRef, fingerprint: str, kind: TaskKind, folder: Location
) -> pa.Table:
    known = tokenizer_here(tokenizer, fingerprint)
    return respond(lambda: _write(folder, kind.tokenize(part, known), part.num_rows))


def _write(folder: Location, table: pa.Table, input_rows: int) -> dict[str, Any]:
    """Writes a part. Returns the worker's response."""
    return {"file": asdict(write_part(folder, table)), "rows": input_rows, "made": table.num_rows}


def _actors(nodes: Sequence[Mapping[str, float]], num_parts: int, gpus: bool) -> tuple[int, dict[str, int]]:
    """How many actors the nodes have capacity for, at least one, and the resources of each."""
    if gpus:
        num_gpus = sum(workers_on(node, GPU_ACTOR) for node in nodes)
        return min(max(1, num_gpus), num_parts), {"num_gpus": 1}
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        return 1, {"num_cpus": 1}
    each = min([MAX_ACTOR_CPUS, *cpus])
    return min(sum(count // each for count in cpus), num_parts), {"num_cpus": each}


@dataclass
class _Teacher:
    """An actor with the teacher in memory: it turns a part of the features into a part of the logits."""

    model: Any
    features: Artifact
    folder: Location
    kind: TaskKind
    output_order: Sequence[int]
    threads: int | None  # of an actor on CPUs; None on a GPU

    def __post_init__(self) -> None:
        import ray
        import torch

        from raypp.models.loading import pad_with

        torch.set_num_threads(self.threads or 1)
        self.device = torch.device("cpu" if self.threads else "cuda")
        self.model = ray.get(self.model).to(self.device).eval()
        pad_with(self.model, self.kind, self.features.extra["pad_token_id"])

    def __call__(self, batch: pa.Table) -> pa.Table:
        part = batch["part"][0].as_py()

        def make() -> dict[str, Any]:
            table = self.logits_table(self.features.read_part(part))
            return _write(self.folder, table, table.num_rows)

        return respond(make)

    def logits_table(self, table: pa.Table) -> pa.Table:
        """The columns `row` and `logits` for a table of features. Rows of similar length share a forward pass."""
        import torch

        from raypp.evaluation.evaluate import batched_outputs

        features, extra = Features.from_table(table.sort_by("row")), self.features.extra
        per_token = self.kind.outputs_per_token
        ends = features.offsets[:: features.sequences] if per_token else np.arange(len(features) + 1)
        logits = np.empty((ends[-1], len(self.output_order)), np.float32)
        plan = plan_tokens(features.lengths, TOKENS_PER_BATCH)
        with torch.inference_mode():
            for indices, outputs, inputs in batched_outputs(
                self.model, features, self.kind, extra["pad_token_id"], self.device, plan, extra["max_length"]
            ):
                kept = without_padding(outputs, inputs, per_token)
                logits[features.output_indices(indices, per_token)] = kept[:, self.output_order]
        if len(broken := np.flatnonzero(~np.isfinite(logits).all(axis=1))):
            row = features.rows[np.searchsorted(ends, broken[0], side="right") - 1]
            raise ConfigError(f"teacher.model: its logits for row {row} are not finite")
        offsets = (ends * logits.shape[1]).astype(np.int32)
        return pa.table({"row": features.rows, "logits": pa.ListArray.from_arrays(offsets, logits.ravel())})
