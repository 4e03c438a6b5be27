"""X.509 certificates: read, check, issue."""
