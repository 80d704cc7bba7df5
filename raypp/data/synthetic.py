"""Examples that seeded grammars write: offline, free, and the same on every machine and Python version.

There are three tasks: `sentiment` (sentiment.py), `paraphrase` and `similarity` (pairs.py). Labels depend on how a
sentence is built and not on single words, so a model has to compose meanings, which pruning may destroy.

Splits share no content: every clause is built around a combination of content words, and a checksum of the combination,
not the seed, decides whether train, dev or test may use it. So no dev sentence is in train, whatever the seeds and the
sizes are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from raypp.config import SyntheticSource
from raypp.data.chance import Chance
from raypp.data.pairs import write_paraphrase, write_similarity
from raypp.data.raw import Example, RawData
from raypp.data.sentiment import write_sentiment
from raypp.errors import ConfigError

if TYPE_CHECKING:
    from raypp.kinds import TaskKind

GRAMMAR_VERSION = 1
"""Part of every fingerprint. It must be raised with any change of words or rules."""

ATTEMPTS = 1000
"""Number of consecutive repeated sentences after which a grammar counts as exhausted."""

Writer = Callable[[Chance, str, int], Example]

WRITERS: dict[str, Writer] = {
    "sentiment": write_sentiment,
    "paraphrase": write_paraphrase,
    "similarity": write_similarity,
}


class SyntheticData(RawData):
    """The splits of a synthetic task: `train`, `dev` and `test` (as long as dev). All have labels."""

    def __init__(self, kind: TaskKind, source: SyntheticSource, max_train_rows: int | None) -> None:
        super().__init__(kind, ("train", "dev", "test"), max_train_rows)
        self.source = source

    def rows(self, split: str) -> int:
        """Number of examples of the split."""
        return self.source.train_rows if split == "train" else self.source.dev_rows

    def examples(self, split: str) -> Iterator[Example]:
        """Distinct examples. Labels alternate, so a classification split is balanced."""
        write = WRITERS[self.task.name]
        chance = Chance(f"{self.task.name}/{split}/{self.source.seed}")
        seen: set[tuple[str, str | None]] = set()
        for row in range(self.rows(split)):
            for _ in range(ATTEMPTS):
                example = write(chance, split, row)
                if example[:2] not in seen:
                    break
            else:
                field = "train_rows" if split == "train" else "dev_rows"
                raise ConfigError(
                    f"data.source.{field}: the grammar of {self.task.name} ran out of new sentences for {split} "
                    f"after {row} rows, got {self.rows(split)}; ask for fewer"
                )
            seen.add(example[:2])
            yield example

    def identity(self, split: str) -> dict[str, object]:
        return {"grammar": GRAMMAR_VERSION, "split": split, "seed": self.source.seed, "rows": self.rows(split)}

    def describe(self, split: str) -> str:
        return f"{split} of the synthetic task {self.task.name} (seed {self.source.seed})"
