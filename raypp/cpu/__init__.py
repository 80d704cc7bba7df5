"""Faster versions of what torch does slowly on a CPU: attention, dropout, and passes over all weights."""
