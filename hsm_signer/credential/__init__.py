"""Make assertions and tokens from a profile, and offer them as the Azure SDKs and httpx expect them."""
