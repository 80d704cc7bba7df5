"""The grammar of the synthetic sentiment task.

A sentence has one or two opinions. An opinion is an aspect, a word of praise or blame, and a form, which may negate the
word ("far from dull"). If two opinions disagree, the construction decides which one counts ("X, but Y": Y; "X, although
Y": X). So many negative sentences contain praise, and counting words does not solve the task. Intensifiers and contexts
distract.
"""

from __future__ import annotations

from collections.abc import Sequence

from raypp.data.chance import Chance, split_of
from raypp.data.raw import Example

NEGATIVE, POSITIVE = 0, 1


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ASPECTS = _words(
    "plot acting dialogue soundtrack ending opening pacing camerawork script humor casting editing narration "
    "finale service food menu dessert coffee wine breakfast kitchen terrace lighting waiter chef staff room "
    "bathroom view pool lobby battery screen keyboard camera speaker charger design manual packaging delivery "
    "support website checkout lecture teacher textbook exercise workshop tour guide museum exhibition concert "
    "singer band novel chapter"
)

PRAISE = _words(
    "brilliant wonderful superb delightful charming excellent impressive beautiful elegant clever witty moving "
    "thrilling gripping enjoyable lovely fantastic splendid marvelous outstanding remarkable refreshing memorable "
    "inspiring satisfying pleasant graceful magnificent terrific convincing flawless engaging captivating amusing "
    "rewarding tasteful"
)

BLAME = _words(
    "dull awful terrible boring dreadful disappointing clumsy ugly sloppy tedious annoying horrible miserable "
    "poor pathetic lousy mediocre forgettable irritating unpleasant tiresome ridiculous depressing shallow bland "
    "lifeless careless messy confusing pointless painful frustrating embarrassing unbearable inferior atrocious"
)

STRONG = ("", "", "really ", "truly ", "very ", "quite ", "utterly ", "rather ", "simply ", "so ")
MILD = ("", "", "very ", "really ", "particularly ", "exactly ", "at all ", "so ")

# {a} the aspect, {i} an intensifier or nothing, {w} the word. Sentences of two opinions use the short forms only.
STRAIGHT_SHORT = ("the {a} was {i}{w}", "the {a} was {i}{w}", "the {a} felt {i}{w}", "i found the {a} {i}{w}")
STRAIGHT = (
    *STRAIGHT_SHORT,
    "the {a} turned out {i}{w}",
    "everyone called the {a} {i}{w}",
    "nobody can deny that the {a} was {i}{w}",
)
TURNED_SHORT = (
    "the {a} was not {i}{w}",
    "the {a} was n't {i}{w}",
    "the {a} never felt {i}{w}",
    "the {a} was hardly {w}",
)
TURNED = (
    *TURNED_SHORT,
    "the {a} was far from {w}",
    "the {a} was anything but {w}",
    "nobody would call the {a} {i}{w}",
    "i did not find the {a} {i}{w}",
    "it is not true that the {a} was {w}",
    "i had heard that the {a} was {w} , and it was not",
)

# {x} decides the label; {y} says the opposite.
CONTRASTS = (
    "{y} , but {x}",
    "{y} , yet {x}",
    "{y} ; still , {x}",
    "although {y} , {x}",
    "while {y} , {x}",
    "{x} , although {y}",
    "{x} , even if {y}",
)
AGREEMENTS = ("{x} and {y}", "{x} , and {y}", "{x} because {y}", "since {y} , {x}")

CONTEXTS = ("on {d} ,", "this {d} ,", "as i told {p} ,", "to answer {p} :", "again ,", "back in {m} ,")
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _words("january february march april may june july august september october november december")
PEOPLE = ("my sister", "my brother", "a friend", "my neighbor", "a colleague", "my parents", "our host", "the owner")


def write_sentiment(chance: Chance, split: str, row: int) -> Example:
    """One sentence of the split; odd rows are positive."""
    label = row % 2
    if chance.happens(0.55):
        sentence = _opinion(chance, split, label, STRAIGHT, TURNED)
    else:
        contrast = chance.happens(0.8)
        sentence = chance.pick(CONTRASTS if contrast else AGREEMENTS).format(
            x=_opinion(chance, split, label, STRAIGHT_SHORT, TURNED_SHORT),
            y=_opinion(chance, split, 1 - label if contrast else label, STRAIGHT_SHORT, TURNED_SHORT),
        )
    if chance.happens(0.2):
        context = chance.pick(CONTEXTS).format(d=chance.pick(DAYS), m=chance.pick(MONTHS), p=chance.pick(PEOPLE))
        sentence = f"{context} {sentence}"
    return f"{sentence} .", None, label


def _opinion(chance: Chance, split: str, polarity: int, straight: Sequence[str], turned: Sequence[str]) -> str:
    """A clause with an opinion, built around a pair of aspect and word that the split may use."""
    turns = chance.happens(0.35)
    words = PRAISE if (polarity == POSITIVE) != turns else BLAME
    while True:
        aspect, word = chance.pick(ASPECTS), chance.pick(words)
        if split_of(aspect, word) == split:
            break
    form, intensifiers = (turned, MILD) if turns else (straight, STRONG)
    return chance.pick(form).format(a=aspect, i=chance.pick(intensifiers), w=word)
