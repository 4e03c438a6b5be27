"""Changes to a device: keys and certificates made, stored, deleted."""
