"""List the devices of this machine, and what they hold."""
