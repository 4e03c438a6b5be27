"""Settings: read from options, variables and a TOML file into a `Profile`; and the key file."""
