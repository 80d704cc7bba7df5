"""Forms in which a trained student leaves raypp."""
