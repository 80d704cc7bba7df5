"""What raypp computes on GPUs with kernels of its own."""
