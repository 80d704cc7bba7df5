"""One run: the loop, what it reads and changes at each step, and what it records, saves and leaves."""
