"""A model's predictions on a split, and their metrics."""
