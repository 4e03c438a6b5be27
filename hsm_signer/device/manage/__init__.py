"""Changes to a device: generating and deleting keys, storing and deleting certificates."""
