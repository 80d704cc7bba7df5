"""Featurizing into the store with Ray Data, against encode_batch of the tokenizers library on all cores, with the same
rows; and whether memory stays flat with more rows.

The rows are those of SST-2, repeated; `featurization.py 10000000` streams ten million. The reference cuts texts at the
same length and pads nothing, as raypp does. It gets its texts as Python strings, while raypp reads Parquet and writes
it. The reference is measured before Ray starts and after Ray has ended, because Ray's idle processes would slow it
down. Memory is the peak of this process and all its children, less what they held when Ray's workers had started.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from workload import ENCODER, MAX_LENGTH, raw_table, report

from raypp.cluster.prepare import featurize
from raypp.cluster.session import Session
from raypp.config import ClusterSettings, DataSettings, FilesSource
from raypp.data.sources import open_source
from raypp.kinds import kind_of
from raypp.models.loading import resolve_model
from raypp.storage import Location
from raypp.store import Store
from raypp.tasks import TASKS

TASK = TASKS["sst2"]
ROWS = [100_000, 1_000_000, 3_000_000]
WARM_ROWS = 8192  # eight parts, so that the workers of up to eight CPUs start before the clock does
REFERENCE_ROWS = 10_000  # in one call of encode_batch


class PeakMemory:
    """A context in which the memory of this process and its children is sampled: at both ends, and in between."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self._held()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._sample()

    @property
    def mebibytes(self) -> float:
        return (self.peak - self.before) / 2**20

    def _watch(self) -> None:
        wait = 0.25  # a short featurization needs frequent samples at first
        while not self._done.wait(wait):
            self._sample()
            wait = min(2 * wait, 2.0)  # a sample takes a tenth of a second of a core

    def _sample(self) -> None:
        self.peak = max(self.peak, self._held())

    def _held(self) -> int:
        held = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                held += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return held


def reference_seconds(table: pa.Table) -> float:
    """Seconds that encode_batch takes for all rows."""
    tokenizer = Tokenizer.from_file(str(resolve_model(ENCODER, None, "model") / "tokenizer.json"))
    tokenizer.no_padding()  # its file says: pad all texts to 128 tokens
    tokenizer.enable_truncation(MAX_LENGTH)
    seconds = 0.0
    for start in range(0, table.num_rows, REFERENCE_ROWS):
        texts = table["sentence1"].slice(start, REFERENCE_ROWS).to_pylist()
        began = time.perf_counter()
        tokenizer.encode_batch(texts)
        seconds += time.perf_counter() - began
    return seconds


def featurization(table: pa.Table, scratch: Path) -> tuple[float, float]:
    """Seconds to featurize all rows, and the peak of memory for it in MiB."""
    with Session(ClusterSettings.model_validate({"workers": 0})) as session:
        session.start()
        _featurize(table.slice(0, WARM_ROWS), scratch / "warm")  # starts Ray's workers
        return _featurize(table, scratch / "all")


def _featurize(table: pa.Table, scratch: Path) -> tuple[float, float]:
    scratch.mkdir()
    file = str(scratch / "rows.parquet")
    pq.write_table(table, file)
    kind, folder = kind_of(TASK, DataSettings(max_length=MAX_LENGTH)), resolve_model(ENCODER, None, "model")
    source = open_source(kind, FilesSource(kind="files", train=file, dev=file))
    store = Store(Location.of(scratch / "store"))
    with PeakMemory() as memory:
        began = time.perf_counter()
        featurize(source, "train", kind, str(folder), store, lambda done, total: None)
        seconds = time.perf_counter() - began
    return seconds, memory.mebibytes


def main(sizes: list[int]) -> None:
    table = raw_table(TASK, "train")
    peaks: list[float] = []
    for rows in sizes:
        repeated = pa.concat_tables([table] * -(-rows // table.num_rows)).slice(0, rows)  # copies nothing
        before = reference_seconds(repeated)
        with tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch:
            seconds, peak = featurization(repeated, Path(scratch))
        reference = (before + reference_seconds(repeated)) / 2
        report(f"featurization, {rows:,} rows of SST-2", rows / seconds, rows / reference, "rows/s", "target >= 0.85")
        peaks.append(peak)
    for rows, peak in zip(sizes[1:], peaks[1:], strict=True):
        report(f"its memory, {rows:,} rows against {sizes[0]:,}", peak, peaks[0], "MiB", "target: flat")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or ROWS)
