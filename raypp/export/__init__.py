"""The formats that `raypp export` writes, one module for each."""
