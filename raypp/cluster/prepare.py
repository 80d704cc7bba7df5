"""What Ray Data prepares for training: features of a split, and a teacher's logits on them, both kept in the store.

Workers write their parts straight to the store and answer with name, size, checksum and row count; no example passes
through the driver again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raypp.cluster.parts import Progress, answer, collect, mark_last, run_windows, tokenizer_here
from raypp.data.batches import plan_tokens
from raypp.data.features import Features
from raypp.data.tokenization import tokenizer_fingerprint
from raypp.errors import ConfigError
from raypp.evaluation.predictions import without_padding
from raypp.storage import Location
from raypp.store import Artifact, Store, StoredFile, content_key, write_part

# Ray is imported where it is used, after the session has set the environment that it reads; torch too, since workers
# that only tokenize do without it.
if TYPE_CHECKING:
    import ray

    from raypp.data.sources import RawData
    from raypp.kinds import TaskKind

# Rows of a part, which is a task's work: few enough to keep many nodes busy, and so many that a task of Ray Data's,
# which costs about as much as tokenizing 1024 rows, pays.
PART_ROWS = (1024, 8192)
PARTS_PER_CPU = 8  # of a window: the last tasks of the last one leave CPUs idle
# Rows in memory at a time; of the first window, so that work begins soon; and how fast the windows grow.
WINDOW_ROWS, FIRST_WINDOW_ROWS, WINDOW_GROWTH = 524_288, 32_768, 4
WINDOW_BYTES = 1 << 28  # … and of long texts, so that they take no more than short ones
MAX_ACTOR_CPUS = 4
TOKENS_PER_BATCH = 8192
LOGITS_FORMAT = 1  # raised when the same teacher and features would give other logits than before


def featurize(
    raw: RawData, split: str, kind: TaskKind, tokenizer_folder: str, store: Store, progress: Progress
) -> Artifact:
    """Makes the features of a split for the store: tokenized on all nodes of the cluster.

    Raises ConfigError where a row cannot be read or the store cannot be written, and RunFailed where a worker fails.
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

        windows = ((_parts(window, cpus), is_last) for window, is_last in _windows(raw.read(split)))
        for told in run_windows(windows, tokenized, progress, f"features of {task} {split}"):
            files.append(StoredFile(**told["file"]))
            rows += told["made"]
        return build.finish(rows, {"max_length": max_length, "pad_token_id": tokenizer.pad_token_id}, files)


def _windows(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[pa.Table, bool]]:
    """The rows in growing tables of at most WINDOW_ROWS and about WINDOW_BYTES, each with whether it is the last: input
    of any size takes the memory of a few."""
    held: list[pa.Table] = []
    size = FIRST_WINDOW_ROWS
    for batch, nothing_follows in mark_last(batches):
        held.append(pa.Table.from_batches([batch]))
        while _are_full(held, size):
            table = pa.concat_tables(held)
            yield table.slice(0, size), nothing_follows and table.num_rows <= size
            held = [table.slice(size)] if table.num_rows > size else []
            size = min(size * WINDOW_GROWTH, WINDOW_ROWS)
    if held:
        yield pa.concat_tables(held), True


def _are_full(held: Sequence[pa.Table], rows: int) -> bool:
    size = sum(int(table.nbytes) for table in held)
    return size >= WINDOW_BYTES or sum(int(table.num_rows) for table in held) >= rows


def _parts(window: pa.Table, cpus: int) -> list[pa.Table]:
    """The rows in `PARTS_PER_CPU` tables for each CPU, as far as those become neither too small nor too large."""
    least, most = PART_ROWS
    size = min(most, max(least, -(-window.num_rows // (PARTS_PER_CPU * cpus))))
    return [window.slice(start, size) for start in range(0, window.num_rows, size)]


def logits_key(features: Artifact, teacher_fingerprint: str, output_order: Sequence[int], precision: str) -> str:
    """Content key of a teacher's logits: everything that determines them."""
    parts = {"features": features.key, "teacher": teacher_fingerprint, "label_permutation": list(output_order)}
    return content_key(format=LOGITS_FORMAT, precision=precision, **parts)


def teacher_logits(
    features: Artifact,
    kind: TaskKind,
    model_folder: str,
    teacher_fingerprint: str,
    store: Store,
    progress: Progress,
    *,
    precision: str = "float32",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    gpus: bool = False,
) -> Artifact:
    """Makes a fine-tuned teacher's logits on features of its own tokenizer for the store: row and logits, float32 in
    the task's order.

    Args:
        kind: of the task that it was fine-tuned for.
        precision: arithmetic of the forward pass (float32, bfloat16, float16); the weights are float32.
        tokens_per_batch: padded tokens of one forward pass.
        gpus: one actor a GPU where the cluster has any; otherwise one a few CPUs.

    Raises ConfigError where the folder holds no model that is fine-tuned for the task, a logit is not finite or the
    store cannot be written, and RunFailed where a worker fails.
    """
    from raypp.models.loading import load_finetuned, load_model_config

    order = kind.output_order(load_model_config(Path(model_folder), "teacher.model", kind), "teacher.model")
    key = logits_key(features, teacher_fingerprint, order, precision)
    model = load_finetuned(Path(model_folder), kind, "teacher.model")

    import ray.data

    size, resources = _actors(len(features.parts), gpus)
    with store.build("logits", key, {"teacher": model_folder, "features": features.description}) as build:
        work = {"model": ray.put(model), "features": features, "folder": build.location, "precision": precision}
        work |= {"kind": kind, "output_order": order, "tokens_per_batch": tokens_per_batch}
        work |= {"threads": resources.get("num_cpus")}
        pool = ray.data.ActorPoolStrategy(size=size)
        parts = [{"part": name} for name in features.parts]
        answers = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
            _Teacher, batch_size=1, batch_format="pyarrow", compute=pool, fn_constructor_kwargs=work, **resources
        )
        told = list(collect(answers, features.rows, progress, "teacher logits"))
        files = [StoredFile(**each["file"]) for each in told]
        return build.finish(sum(each["made"] for each in told), {"precision": precision}, files)


def _tokenize_part(
    part: pa.Table, tokenizer: ray.ObjectRef, fingerprint: str, kind: TaskKind, folder: Location
) -> pa.Table:
    known = tokenizer_here(tokenizer, fingerprint)
    return answer(lambda: _written(folder, kind.tokenize(part, known), part.num_rows))


def _written(folder: Location, table: pa.Table, given: int | None = None) -> dict[str, Any]:
    """Writes a part.

    Args:
        given: rows that it is made of; None: as many as it has.
    """
    rows = table.num_rows
    return {"file": asdict(write_part(folder, table)), "rows": rows if given is None else given, "made": rows}


def _actors(num_parts: int, gpus: bool) -> tuple[int, dict[str, int]]:
    """How many actors the cluster has room for, and what each takes. One, if there is no room yet."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if gpus and (num_gpus or not cpus):
        return min(max(1, num_gpus), num_parts), {"num_gpus": 1}
    if not cpus:
        return 1, {"num_cpus": 1}
    each = min([MAX_ACTOR_CPUS, *cpus])
    return min(sum(count // each for count in cpus), num_parts), {"num_cpus": each}


@dataclass
class _Teacher:
    """An actor with the teacher in memory: a part of the features in, a part of the logits out."""

    model: Any
    features: Artifact
    folder: Location
    kind: TaskKind
    output_order: list[int]
    precision: str
    tokens_per_batch: int
    threads: int | None  # of a CPU actor; None: on a GPU

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
        return answer(lambda: _written(self.folder, self.logits_table(self.features.read_part(part))))

    def logits_table(self, table: pa.Table) -> pa.Table:
        """row, logits of a features table. Rows of similar length share a forward pass."""
        import torch

        features, extra = Features.from_table(table.sort_by("row")), self.features.extra
        per_token = self.kind.outputs_per_token
        ends = features.offsets[:: features.sequences] if per_token else np.arange(len(features) + 1)
        logits = np.empty((ends[-1], len(self.output_order)), np.float32)
        half = None if self.precision == "float32" else getattr(torch, self.precision)
        with torch.inference_mode(), torch.autocast(self.device.type, half, enabled=half is not None):
            for indices in plan_tokens(features.lengths, self.tokens_per_batch):
                batch = features.collate(indices, extra["pad_token_id"], max_padded=extra["max_length"])
                inputs = {name: value.to(self.device) for name, value in batch.items()}
                answered = self.kind.outputs(self.kind.run(self.model, inputs), inputs)
                outputs = without_padding(answered, inputs, per_token)
                logits[features.places(indices, per_token)] = outputs[:, self.output_order]
        if len(broken := np.flatnonzero(~np.isfinite(logits).all(axis=1))):
            row = features.rows[np.searchsorted(ends, broken[0], side="right") - 1]
            raise ConfigError(f"teacher.model: its logits for row {row} are not finite in {self.precision}")
        offsets = (ends * logits.shape[1]).astype(np.int32)
        return pa.table({"row": features.rows, "logits": pa.ListArray.from_arrays(offsets, logits.ravel())})
