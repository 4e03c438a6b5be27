"""The CA certificates that verify a server, and the proxy that the environment sets for it."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hsm_signer.entra.url import host_of, is_loopback
from hsm_signer.errors import ConfigError
from hsm_signer.system.trusted_path import require_trusted_path

if TYPE_CHECKING:
    import ssl


def load_trust(ca_bundle: Path | None) -> "ssl.SSLContext":
    """Return a TLS context that verifies servers with the system's CA certificates and those of a PEM file.

    Args:
        ca_bundle: the PEM file, or None.

    Raises:
        ConfigError: the file cannot be read, contains no certificate, or another user could replace it.
    """
    import ssl

    # We do not use create_default_context: it obeys SSLKEYLOGFILE, and would write our session keys to a file. This
    # context verifies certificates and host names as well.
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.load_default_certs()
    if ca_bundle is not None:
        try:
            trust.load_verify_locations(cafile=require_trusted_path(ca_bundle, "CA bundle"))
        except OSError as error:
            # An ssl.SSLError is an OSError too, but its text is about OpenSSL's internals.
            reason = "has no certificate" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
            raise ConfigError(
                f"The CA bundle {ca_bundle} {reason}.", hint="Set --ca-bundle to a PEM file of certificates."
            ) from None
    return trust


def proxy_for(url: str) -> str | None:
    """Return the URL of the proxy that the environment sets for `url`, or None. Loopback never has one.

    Raises:
        ConfigError: the variable is not an http or https URL.
    """
    from urllib.request import getproxies, proxy_bypass

    split = urlsplit(url)
    host = split.hostname or ""
    if is_loopback(host) or proxy_bypass(split.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(split.scheme) or proxies.get("all")
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    # The host first: urlsplit raises a ValueError for some malformed URLs.
    if not host_of(proxy) or urlsplit(proxy).scheme not in ("http", "https"):
        # Not shown: it may contain a password.
        raise ConfigError(
            f"The proxy in the environment for {host} is not an http or https URL.",
            hint="Set HTTPS_PROXY to a URL like http://proxy.example.com:3128, or set NO_PROXY to use none.",
        )
    return proxy
