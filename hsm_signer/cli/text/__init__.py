"""What the command line shows to people."""
