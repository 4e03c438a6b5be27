"""Check the URLs of servers before they are used, and shorten them for messages. Pure."""

import ipaddress
import re
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from hsm_signer.errors import ConfigError

LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
"""One label of a host name, as a regular expression."""

_HOST = re.compile(rf"(?=.{{1,253}}\Z){LABEL}(?:\.{LABEL})*")


def parse_url(text: str, what: str) -> SplitResult:
    """Return the parts of the URL of a server that an assertion or a token may be sent to.

    Args:
        what: what to call the URL in messages: "authority".

    Raises:
        ConfigError: it is malformed or unsafe.
    """
    # urlsplit silently drops tabs and newlines, and clients disagree on backslashes: refuse them first.
    if not re.fullmatch(r"[\x21-\x5b\x5d-\x7e]+", text):
        _refuse_url(text, what, "has a space, a backslash, or a character outside ASCII")
    try:
        split = urlsplit(text)
        port = split.port
    except ValueError:
        _refuse_url(text, what, "cannot be parsed")
    if split.username is not None:
        # Not shown: it may contain a password.
        raise ConfigError(f"The {what} contains a user name.", hint="Remove the user name and the @ from the URL.")
    if "#" in text:
        _refuse_url(text, what, "has a fragment")
    if split.scheme not in ("https", "http"):
        _refuse_url(text, what, "is not an https URL")
    host = split.hostname or ""
    if port == 0 or not (_HOST.fullmatch(host.removesuffix(".")) or _is_ip_address(host)):
        _refuse_url(text, what, "has no usable host name or port")
    if split.scheme == "http" and not is_loopback(host):
        raise ConfigError(
            f"The {what} uses plain http to {host}. The assertion and the token would be sent unencrypted.",
            hint="Use https. Plain http is for loopback addresses only.",
        )
    return split


def with_scheme(text: str) -> str:
    """Return a URL. `text` may be a bare host: the SDKs accept one in AZURE_AUTHORITY_HOST."""
    return text if "://" in text else f"https://{text}"


def origin_of(split: SplitResult) -> str:
    """Return the scheme, the host and any port that is not the default port of a URL."""
    host = (split.hostname or "").removesuffix(".")
    port = split.port
    shown = f"[{host}]" if ":" in host else host
    # Servers compare the audience as a string, so it must not contain a default port.
    if port is None or port == {"https": 443, "http": 80}[split.scheme]:
        return f"{split.scheme}://{shown}"
    return f"{split.scheme}://{shown}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether `host`, a name or an address without a port, is localhost, in 127.0.0.0/8, or ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(url: str) -> str:
    """Return only the host and any port of a URL, for messages. Empty if it cannot be parsed."""
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        return ""
    host = "".join(character for character in split.hostname or "" if character.isprintable())[:253]
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _refuse_url(text: str, what: str, reason: str) -> NoReturn:
    raise ConfigError(f"The {what} {reason}: {text!r}.", hint="Give a URL like https://login.example.com.")


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host
