"""What a model predicts of a split, and the metrics of it."""
