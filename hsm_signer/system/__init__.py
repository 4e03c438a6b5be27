"""This machine: files, processes, text, systemd. Nothing here knows about keys or tokens."""
