"""Following a teacher: the losses of its logits and of its hidden states."""
