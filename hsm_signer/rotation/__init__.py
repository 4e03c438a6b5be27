"""Replace the key without downtime."""
