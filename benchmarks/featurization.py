"""Featurizing with Ray Data into the store, against the tokenizers library's own encode_batch on all cores, same rows.

The rows are SST-2's, repeated. Memory is the most that this process and all its children hold, less what they held
before.
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
from workload import ENCODER, raw_table

from raypp.cluster.prepare import featurize
from raypp.cluster.session import Session
from raypp.config import ClusterSettings, DataSettings, FilesSource
from raypp.data.sources import open_source
from raypp.kinds import kind_of
from raypp.models import load_tokenizer, resolve_model
from raypp.storage import Location
from raypp.store import Store
from raypp.tasks import TASKS

ROWS = [20_000, 200_000]
MAX_LENGTH = 128


class PeakMemory:
    """Samples the memory of this process and its children while it is entered."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self._held()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def mebibytes(self) -> float:
        return (self.peak - self.before) / 2**20

    def _watch(self) -> None:
        while not self._done.wait(2.0):  # a sample takes a tenth of a second of a core
            self.peak = max(self.peak, self._held())

    def _held(self) -> int:
        held = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                held += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return held


def main(sizes: list[int]) -> None:
    task, folder = TASKS["sst2"], resolve_model(ENCODER, None, "model")
    tokenizer = load_tokenizer(folder, "model")
    table = raw_table(task, "train")
    with (
        tempfile.TemporaryDirectory(prefix="raypp-benchmark-") as scratch,
        Session(ClusterSettings.model_validate({"workers": 0})) as session,
    ):
        session.start()
        for rows in [1000, *sizes]:  # the first starts Ray's workers and counts for nothing
            repeated = pa.concat_tables([table] * -(-rows // table.num_rows)).slice(0, rows)
            file = Path(scratch, f"{rows}.parquet")
            pq.write_table(repeated, file)
            source = FilesSource(kind="files", train=str(file), dev=str(file))
            store = Store(Location.of(f"{scratch}/store-{rows}"))
            began = time.perf_counter()
            with PeakMemory() as memory:
                raw = open_source(task, source)
                featurize(
                    raw,
                    "train",
                    kind_of(task, DataSettings(max_length=MAX_LENGTH)),
                    str(folder),
                    store,
                    lambda done, total: None,
                )
            ours = rows / (time.perf_counter() - began)
            texts = repeated["sentence1"].to_pylist()
            began = time.perf_counter()
            for start in range(0, rows, 10_000):
                tokenizer.backend_tokenizer.encode_batch(texts[start : start + 10_000])
            reference = rows / (time.perf_counter() - began)
            if rows != 1000:
                ratio = f"ratio {ours / reference:.3f} (target >= 0.85)"
                print(
                    f"featurization, {rows} rows: {ours:,.0f} rows/s, reference {reference:,.0f} rows/s, {ratio}; "
                    f"{memory.mebibytes:,.0f} MiB more at its peak"
                )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or ROWS)
