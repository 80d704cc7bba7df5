"""Streams blocks from the store for training: one window is in memory while the next one is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa

from raypp.corpus.blocks import Blocks
from raypp.corpus.examples import BlockExamples
from raypp.corpus.stream import Span, StreamOrder
from raypp.corpus.targets import Masker
from raypp.data.batches import GlobalBatch, plan_epoch

if TYPE_CHECKING:
    from raypp.config import Experiment
    from raypp.store import Artifact

GROUP_BLOCKS = 512
"""Maximum number of blocks in a row group, which is read at once."""


class StreamedBlocks:
    """The training data of a language model, of any size (`data.training.TrainingData`)."""

    def __init__(self, experiment: Experiment, micro_batches: int, artifact: Artifact, masker: Masker | None) -> None:
        settings, distillation = experiment.train, experiment.distillation
        assert settings.batch_size is not None, "blocks are batched by number"
        self.settings, self.micro_batches, self.artifact, self.masker = settings, micro_batches, artifact, masker
        self.all_tokens = distillation is not None and distillation.soft_tokens == "all"
        # (name of the part, number in it, blocks) of each row group, in the source's order.
        self.groups = [
            (name, group, min(GROUP_BLOCKS, rows - group * GROUP_BLOCKS))
            for name, rows in artifact.extra["part_blocks"]
            for group in range(-(-rows // GROUP_BLOCKS))
        ]
        sizes = [size for *_, size in self.groups]
        self.order = StreamOrder(sizes, settings.seed, settings.batch_size, experiment.data.window_blocks)

    def batch_counter(self) -> Callable[[int], int]:
        """A function from an epoch to the number of its global batches."""
        return lambda _: self.order.num_batches

    def batches(self, epoch: int, first: int) -> Iterator[tuple[BlockExamples, GlobalBatch]]:
        """The global batches of an epoch, starting with number `first`, each with its window's examples."""
        window, skipped = divmod(first, self.order.window_batches)
        with ThreadPoolExecutor(1, thread_name_prefix="corpus") as thread:
            upcoming = thread.submit(self._window, epoch, window)
            for number in range(window, self.order.num_windows):
                examples = upcoming.result()
                if number + 1 < self.order.num_windows:
                    upcoming = thread.submit(self._window, epoch, number + 1)
                plan = plan_epoch(examples.lengths, self.settings, epoch, self.micro_batches, window=number)
                yield from ((examples, batch) for batch in plan[skipped:])
                skipped = 0

    def _window(self, epoch: int, window: int) -> BlockExamples:
        spans = self.order.spans(epoch, window)
        table = pa.concat_tables(self._read(spans))
        return BlockExamples(Blocks.from_table(table), self.masker, epoch, self.all_tokens)

    def _read(self, spans: Sequence[Span]) -> list[pa.Table]:
        """The blocks of each span, in the spans' order. Each part is opened once."""
        wanted: dict[str, list[int]] = {}
        for span in spans:
            name, group, _ = self.groups[span.group]
            wanted.setdefault(name, []).append(group)
        read = {
            (name, group): table
            for name, numbers in wanted.items()
            for group, table in zip(numbers, self.artifact.read_groups(name, numbers), strict=True)
        }
        return [read[self.groups[span.group][:2]].slice(span.start, span.stop - span.start) for span in spans]
