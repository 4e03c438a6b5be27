"""Everything that touches PKCS#11. Nothing outside this package does."""
