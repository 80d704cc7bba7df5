"""Raw examples, their features and the batches of a training."""
