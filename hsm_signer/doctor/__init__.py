"""Checks from the module to the token endpoint, each with what was found and how to fix it."""
