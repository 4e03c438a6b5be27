"""The local stand-in for Entra and Graph."""
