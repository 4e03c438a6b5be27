"""Warnings and logs, on stderr, for people or for machines."""

import json
import logging
import os
import sys
from datetime import UTC, datetime


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"hsm-signer: {record.levelname.lower()}: {record.getMessage()}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps(
            {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        )


def configure_logging(*, verbose: bool, as_json: bool) -> None:
    """Send this package's log to stderr: warnings, and with `verbose` every step."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    logger = logging.getLogger("hsm_signer")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)


def hush_modules() -> None:
    """Keep what PKCS#11 modules print off stderr: it stays ours, and what is written to descriptor 2 is dropped.

    tpm2-pkcs11 and the libraries below it report there what they also return; p11-kit's proxy loads it for everybody.
    """
    if sys.stderr is None:
        return
    try:
        kept = os.dup(sys.stderr.fileno())
    except (OSError, ValueError):
        return
    sys.stderr = open(kept, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
