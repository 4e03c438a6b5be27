"""What serves other programs on this machine."""
