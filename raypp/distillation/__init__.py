"""Distillation: the losses on a teacher's logits and hidden states."""
