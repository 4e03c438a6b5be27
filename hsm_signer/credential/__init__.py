"""From a profile to assertions and tokens, and the shapes that SDKs expect."""
