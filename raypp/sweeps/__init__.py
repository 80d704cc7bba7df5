"""Sweeps without Ray: the space, the points of a search, the trials, early stopping, the front and its figure."""
