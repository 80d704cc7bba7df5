"""Preparation on Ray Data for language modelling: a corpus cut into blocks, in row groups, with its token counts.

The texts are divided into parts of a fixed size. So the same corpus gives the same row groups, and a run the same
batches, on a cluster of any size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raypp.cluster.parts import Progress, respond, run_windows, tokenizer_here
from raypp.cluster.windows import part_windows
from raypp.corpus.blocks import TOKEN_COUNTS, CutReport, count_tokens, cut_texts
from raypp.corpus.streamed import GROUP_BLOCKS
from raypp.data.tokenization import tokenizer_fingerprint
from raypp.errors import ConfigError
from raypp.store import Artifact, Store, StoredFile, write_part

if TYPE_CHECKING:
    import ray

    from raypp.data.raw import RawData
    from raypp.kinds import TaskKind
    from raypp.storage import Location

PART_BYTES = 1 << 20  # of text in one part, which one task cuts: about a second of tokenizing


def cut_corpus(
    raw: RawData, split: str, kind: TaskKind, tokenizer_folder: str, store: Store, progress: Progress
) -> Artifact:
    """Makes the blocks of a split for the store, on all nodes of the cluster.

    Raises:
        ConfigError: a text cannot be read, there is no block, or the store cannot be written.
        RunFailed: a worker failed.
    """
    from raypp.models.loading import load_tokenizer

    tokenizer = load_tokenizer(Path(tokenizer_folder), "tokenizer")
    tokenizer_hash = tokenizer_fingerprint(tokenizer)
    key = kind.features_key(raw_fingerprint=raw.fingerprint(split), tokenizer_fingerprint=tokenizer_hash)
    import ray.data

    task, max_length = kind.task.name, kind.data.max_length
    with store.build("features", key, {"task": task, "split": split, "max_length": max_length}) as build:
        work = {"tokenizer": ray.put(tokenizer), "fingerprint": tokenizer_hash}
        work |= {"max_length": max_length, "folder": build.location}
        responses: list[dict[str, Any]] = []
        counts = np.zeros(len(tokenizer), np.int64)

        def cut(parts: ray.data.Dataset) -> ray.data.Dataset:
            return parts.map_batches(_cut_part, batch_size=None, batch_format="pyarrow", num_cpus=1, fn_kwargs=work)

        windows = part_windows(_parts(raw.read(split)))
        for response in run_windows(windows, cut, progress, f"blocks of {task} {split}"):
            counts[np.array(response.pop("tokens"), np.int64)] += np.array(response.pop("counts"), np.int64)
            responses.append(response)
        responses.sort(key=lambda response: int(response["first_row"]))
        whole = sum((CutReport(**response["report"]) for response in responses), CutReport())
        written = [response for response in responses if response["file"]]
        if not whole.blocks:
            raise ConfigError(f"data.source: {raw.describe(split)} leaves nothing to learn from: {whole}")
        files = [StoredFile(**response["file"]) for response in written]
        extra = {
            "max_length": max_length,
            "part_blocks": [[response["file"]["name"], response["report"]["blocks"]] for response in written],
            "report": asdict(whole),
        }
        return build.finish(whole.blocks, extra, [*files, _write_counts(build.location, counts)])


def _parts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The texts in tables of about `PART_BYTES`, independent of the size of the batches."""
    held: list[pa.Table] = []
    size = 0
    for batch in batches:
        table = pa.Table.from_batches([batch])
        lengths = pa.compute.binary_length(table.column("text")).to_numpy()
        start = 0
        for stop in range(1, table.num_rows + 1):
            size += int(lengths[stop - 1])
            if size >= PART_BYTES:
                yield pa.concat_tables([*held, table.slice(start, stop - start)]).combine_chunks()
                held, size, start = [], 0, stop
        if start < table.num_rows:
            held.append(table.slice(start))
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _cut_part(
    part: pa.Table, tokenizer: ray.ObjectRef, fingerprint: str, max_length: int, folder: Location
) -> pa.Table:
    def cut() -> dict[str, Any]:
        known = tokenizer_here(tokenizer, fingerprint)
        table, report = cut_texts(part, known, max_length)
        counts = count_tokens(table, len(known))
        file = asdict(write_part(folder, table, row_group_size=GROUP_BLOCKS)) if report.blocks else None
        tokens = np.flatnonzero(counts)
        response = {"file": file, "first_row": part.column("row")[0].as_py(), "report": asdict(report)}
        return {**response, "rows": part.num_rows, "tokens": tokens.tolist(), "counts": counts[tokens].tolist()}

    return respond(cut)


def _write_counts(folder: Location, counts: np.ndarray) -> StoredFile:
    content = json.dumps(counts.tolist()).encode()
    (folder / TOKEN_COUNTS).write_bytes(content)
    return StoredFile(TOKEN_COUNTS, len(content), hashlib.sha256(content).hexdigest())
