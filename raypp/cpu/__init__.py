"""What torch is slow at on a CPU: attention, dropout, and passes over all weights."""
