"""Check everything from the configuration to the token endpoint, and say how to fix what fails."""
