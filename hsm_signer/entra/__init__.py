"""The exchange: where Entra listens, how it is asked, and what its refusals mean."""
