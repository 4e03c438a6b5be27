"""A device served by another process, which may hang or crash alone."""
