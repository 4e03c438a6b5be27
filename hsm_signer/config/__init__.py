"""Read settings from options, variables and a TOML file into a `Profile`, and read and write the key file."""
