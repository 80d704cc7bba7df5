"""Following a teacher: the losses of logits."""
