"""Build, parse and verify client assertions, and build proofs of possession."""
