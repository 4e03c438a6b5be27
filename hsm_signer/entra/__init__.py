"""Exchange an assertion for a token at Entra's token endpoint, call Microsoft Graph, and explain their errors."""
