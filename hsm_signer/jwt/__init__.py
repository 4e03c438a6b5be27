"""Client assertions and proofs: built, read, verified."""
