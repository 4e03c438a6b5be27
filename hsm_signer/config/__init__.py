"""Settings from options, variables and TOML; the profile; the key file."""
