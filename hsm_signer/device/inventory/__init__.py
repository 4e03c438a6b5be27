"""What is on the devices of this machine."""
