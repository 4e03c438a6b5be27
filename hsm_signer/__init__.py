"""Microsoft Entra ID tokens from a private key that never leaves its PKCS#11 device."""

__version__ = "0.1.0"
