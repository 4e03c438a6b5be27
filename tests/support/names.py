"""The application of the tests, its PIN and its scopes. A test that needs another value defines it itself."""

TENANT, OTHER_TENANT = "contoso.example", "fabrikam.example"
CLIENT, OTHER_CLIENT = "8f1c1f3e-7a58-4f0a-8f1e-3f5ad2a3a001", "8f1c1f3e-7a58-4f0a-8f1e-3f5ad2a3a002"
PIN, WRONG_PIN = "orchard+4711", "meadow+0815"
AUDIENCE = "https://login.example.org/token"
GRAPH, VAULT = "https://graph.microsoft.com/.default", "https://vault.azure.net/.default"
