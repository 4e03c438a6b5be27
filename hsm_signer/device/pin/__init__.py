"""One secret: the PIN, its sources, its state, and the record of refusals."""
