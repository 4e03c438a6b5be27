"""Serve other programs on this machine."""
