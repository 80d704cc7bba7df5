"""The grammars of the synthetic pair tasks: `paraphrase` (same meaning or not) and `similarity` (how much is shared).

A sentence says who did what to whom and when; in `paraphrase` also how many people there were, and in `similarity` also
where it was. The second sentence uses synonyms, the passive or another order. In a paraphrase nothing else changes. In
a pair that is none, one thing changes (roles, number, negation, a person, the deed or the time), and most words stay.
Similarity is the number of the five parts that the sentences share; a related part counts half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from raypp.data.chance import Chance, split_of
from raypp.data.raw import Example

Concepts = tuple[tuple[str, ...], ...]


def _concepts(text: str) -> Concepts:
    """Concepts are separated by commas and their synonyms by slashes; neighbors (0, 1), (2, 3), … are related."""
    return tuple(tuple(concept.strip().split("/")) for concept in text.split(","))


PEOPLE = _concepts(
    "doctor/physician, nurse/caregiver, lawyer/attorney, judge/magistrate, teacher/instructor, "
    "student/pupil, author/writer, reporter/journalist, actor/performer, singer/vocalist, chief/manager, "
    "worker/employee, detective/investigator, burglar/robber, farmer/grower, gardener/landscaper, sailor/mariner, "
    "pilot/aviator, tourist/traveler, stranger/outsider"
)
# All of these verbs have the same word as past tense and past participle.
DEEDS = _concepts(
    "helped/assisted, rescued/saved, attacked/assaulted, arrested/detained, praised/commended, comforted/consoled, "
    "blamed/accused, mocked/ridiculed, hired/employed, invited/welcomed, fired/dismissed, ignored/disregarded, "
    "phoned/called, visited/called on, followed/trailed, watched/observed, questioned/interrogated, "
    "interviewed/talked to, warned/alerted, frightened/scared"
)
PLACES = _concepts(
    "in the shop/in the store, at the market/at the bazaar, in the woods/in the forest, in the garden/in the yard, "
    "on the street/on the road, on the sidewalk/on the pavement, at the airport/at the airfield, "
    "in the harbor/in the port, near the church/near the chapel, near the castle/near the fortress, "
    "in the hotel/in the inn, in the restaurant/in the diner"
)
TIMES = _concepts(
    "on monday/last monday, on friday/last friday, in the morning/early in the day, at noon/at midday, "
    "at midnight/at twelve at night, at dusk/at nightfall, in autumn/in the fall, in winter/in the cold season, "
    "a year ago/twelve months ago, a week ago/seven days ago, before lunch/before the midday meal, "
    "after dinner/after the evening meal"
)
NUMBERS = _concepts("two/2, three/3, four/4, five/5, six/6, seven/7, nine/9, ten/10")

# {t} time, {a} agent, {v} deed, {p} patient, {l} place, {w} was or were (by the patient's number).
FRAMES = ("{a} {v} {p}{l} {t}", "{t} , {a} {v} {p}{l}", "it was {a} who {v} {p}{l} {t}", "{p} {w} {v} by {a}{l} {t}")

PARTS = {"agent": PEOPLE, "deed": DEEDS, "patient": PEOPLE, "time": TIMES, "place": PLACES}
# Swapped roles are rare, because a small encoder needs far more than some thousand pairs to tell them apart.
CHANGES = ("roles", *3 * ("negation", "agent", "patient", "deed", "time"), *4 * ("number",))


@dataclass(frozen=True)
class Fact:
    """Who did what to whom: indices into the tables above; None for a part that is not told."""

    agent: int
    deed: int
    patient: int
    time: int
    place: int | None = None
    number: int | None = None
    many_agents: bool = False
    negated: bool = False

    def belongs_to(self, split: str) -> bool:
        """Whether the split may tell this fact. Who of the two acted does not matter, so that roles can be swapped."""
        if self.agent == self.patient:
            return False
        people = sorted((PEOPLE[self.agent][0], PEOPLE[self.patient][0]))
        return split_of(*people, DEEDS[self.deed][0]) == split


def write_paraphrase(chance: Chance, split: str, row: int) -> Example:
    """One pair of sentences of the split; odd rows are paraphrases."""
    label = row % 2
    first = replace(
        _fact(chance, split),
        place=None,
        number=_index(chance, NUMBERS),
        many_agents=chance.happens(0.5),
        negated=chance.happens(0.2),
    )
    second = first if label == 1 else _changed(chance, split, first)
    return _say(chance, first), _say(chance, second), label


def write_similarity(chance: Chance, split: str, row: int) -> Example:
    """One pair of sentences of the split, and the number of parts they share, from 0 to 5 in steps of 0.5."""
    first = _fact(chance, split)
    shared_on_average = (row % 6) / 5
    while True:
        score = 0.0
        parts: dict[str, Any] = {}
        for part, table in PARTS.items():
            here = getattr(first, part)
            if chance.happens(shared_on_average):
                parts[part], score = here, score + 1.0
            elif chance.happens(0.3):
                parts[part], score = here ^ 1, score + 0.5
            else:
                parts[part] = _unrelated(chance, table, here)
        second = replace(first, **parts)
        if second.belongs_to(split):
            return _say(chance, first), _say(chance, second), score


def _fact(chance: Chance, split: str) -> Fact:
    while True:
        parts: dict[str, Any] = {part: _index(chance, table) for part, table in PARTS.items()}
        fact = Fact(**parts)
        if fact.belongs_to(split):
            return fact


def _changed(chance: Chance, split: str, fact: Fact) -> Fact:
    """The fact with one thing changed."""
    change = chance.pick(CHANGES)
    if change == "roles":
        # The number stays in its place ("three doctors" become one) or, the hardest change of all, moves with its noun.
        many_agents = fact.many_agents if chance.happens(0.7) else not fact.many_agents
        return replace(fact, agent=fact.patient, patient=fact.agent, many_agents=many_agents)
    if change == "negation":
        return replace(fact, negated=not fact.negated)
    if change == "number":
        assert fact.number is not None
        return replace(fact, number=(fact.number + 1 + _index(chance, NUMBERS[1:])) % len(NUMBERS))
    while True:
        changes: dict[str, Any] = {change: _unrelated(chance, PARTS[change], getattr(fact, change))}
        changed = replace(fact, **changes)
        if changed.belongs_to(split):
            return changed
        if change in ("agent", "patient", "deed") and chance.happens(0.05):
            change = "time"  # this split may have no other fact with that part changed


def _say(chance: Chance, fact: Fact) -> str:
    """The fact as a sentence, in a random frame with random synonyms."""

    def person(index: int, many: bool) -> str:
        noun = chance.pick(PEOPLE[index])
        if many and fact.number is not None:
            return f"{chance.pick(NUMBERS[fact.number])} {noun}s"
        return f"the {noun}"

    sentence = chance.pick(FRAMES).format(
        a=person(fact.agent, fact.many_agents),
        p=person(fact.patient, not fact.many_agents),
        v=("never " if fact.negated else "") + chance.pick(DEEDS[fact.deed]),
        l="" if fact.place is None else f" {chance.pick(PLACES[fact.place])}",
        t=chance.pick(TIMES[fact.time]),
        w="were" if fact.number is not None and not fact.many_agents else "was",
    )
    return f"{sentence} ."


def _index(chance: Chance, table: Concepts) -> int:
    return chance.pick(range(len(table)))


def _unrelated(chance: Chance, table: Concepts, index: int) -> int:
    """Another concept of the table that is not related to this one."""
    while True:
        other = _index(chance, table)
        if other // 2 != index // 2:
            return other
