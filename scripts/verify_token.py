"""Verify an access token as any API would: with the keys its issuer publishes.

verify_token.py CA_FILE AUTHORITY TENANT < TOKEN
"""

import json
import ssl
import sys
import urllib.request

from joserfc import jwt
from joserfc.jwk import KeySet


def main(ca_file: str, authority: str, tenant: str) -> None:
    """Fetch the issuer's configuration and keys, and check the token on stdin."""
    trust = ssl.create_default_context(cafile=ca_file)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))

    def fetch(url: str) -> dict[str, str]:
        with opener.open(url, timeout=10) as response:
            document: dict[str, str] = json.load(response)
            return document

    configuration = fetch(f"{authority}/{tenant}/v2.0/.well-known/openid-configuration")
    keys = KeySet.import_key_set(fetch(configuration["jwks_uri"]))  # type: ignore[arg-type]  # joserfc judges it
    token = jwt.decode(sys.stdin.read().strip(), keys, algorithms=["RS256"])
    registry = jwt.JWTClaimsRegistry(iss={"essential": True, "value": configuration["issuer"]})
    registry.validate(token.claims)
    print(f"verified with the keys of {configuration['jwks_uri']}")
    print(f"issuer    {token.claims['iss']}")
    print(f"audience  {token.claims['aud']}")


main(*sys.argv[1:])
