"""`raypp show`: the experiment with all defaults, and the run folder, steps and layers that follow from it."""

from __future__ import annotations

from collections.abc import Sequence

from raypp.config import Experiment
from raypp.models.model_input import meta_model
from raypp.plan import Plan, make_plan
from raypp.pruning.linear import select_layers
from raypp.yaml_text import dump_yaml


def show(experiment: Experiment) -> str:
    """The resolved experiment as YAML, with run folder, steps and pruned layers as comments. For a sweep, the comments
    describe the experiment without the sweep."""
    plan = make_plan(experiment.model_copy(update={"sweep": None}))
    facts = _facts(plan)
    if experiment.sweep is not None:
        facts.insert(0, "the experiment without its sweep (`raypp sweep --dry-run` lists the trials):")
    resolved = plan.experiment.model_copy(update={"sweep": experiment.sweep})
    settings = dump_yaml(resolved.model_dump(mode="json"))
    return "\n".join([*(f"# {line}" for line in facts), settings.rstrip()])


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _facts(plan: Plan) -> list[str]:
    steps = plan.steps
    facts = [
        f"run folder: {plan.run}",
        f"{steps.total} steps, {_range(steps.epoch_steps)} per epoch, {steps.warmup} of warmup; "
        f"{plan.micro_batches} micro-batches per global batch",
    ]
    if plan.teacher_plan is not None:
        facts.append(f"teacher: {plan.teacher_plan.steps.total} steps in {plan.teacher_plan.run}")
    for term, compared in plan.hidden_state_terms.items():
        pairs = ", ".join(f"{student} with {teacher}" for student, teacher in compared.pairs)
        facts.append(f"{term.replace('_', ' ')}: layers of student and teacher, {pairs}")
    if plan.experiment.pruning is not None:
        layers = select_layers(meta_model(plan.student.config, plan.kind), plan.experiment.pruning.layers)
        weights = sum(layer.weight.numel() for layer in layers.values())
        facts.append(f"pruned: {len(layers)} linear layers, {weights:,} weights")
        facts += [f"  {name} {tuple(layer.weight.shape)}" for name, layer in layers.items()]
    return facts
