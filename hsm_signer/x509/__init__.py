"""Parse, check and create X.509 certificates."""
