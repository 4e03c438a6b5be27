"""Replacing the key without downtime."""
