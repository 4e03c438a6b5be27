"""This machine: files, processes, text, systemd. Knows nothing of keys or tokens."""
