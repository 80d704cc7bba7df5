"""Movement pruning of any Hugging Face encoder, for raypp's training loop or the user's own. Needs torch but no Ray.

pruner = Pruner(model, settings)                       # replaces the encoder's linear layers in place
schedule = PruningSchedule(settings, total_steps, warmup_steps)
for step in range(total_steps):
    pruner.refresh(schedule.at(step), noise_seed=step)  # once per optimizer step
    …forward, backward, step…
pruner.refresh(schedule.at(total_steps))
model = pruner.fold()                                  # the plain model again, pruned weights 0
"""

from raypp.pruning.pruner import Pruner
from raypp.pruning.schedule import PruningSchedule

__all__ = ["Pruner", "PruningSchedule"]
