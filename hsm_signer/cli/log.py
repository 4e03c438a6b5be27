"""Warnings and logs, on stderr, for people or for machines."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

from hsm_signer.system.display import displayable


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"hsm-signer: {record.levelname.lower()}: {displayable(record.getMessage())}"


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


def keep_modules_apart(*, verbose: bool) -> None:
    """Keep what PKCS#11 modules print out of our output: stdout stays ours alone, and stderr unless `verbose`.

    tpm2-pkcs11 and the libraries below it report on stderr what they also return; p11-kit's proxy loads it for
    everybody.

    Args:
        verbose: let what they print be seen, on stderr; else it goes nowhere.
    """
    if verbose:
        sys.stdout = _apart(sys.stdout, 1, instead=os.dup(2))
        return
    sys.stdout = _apart(sys.stdout, 1, instead=os.open(os.devnull, os.O_WRONLY))
    sys.stderr = _apart(sys.stderr, 2, instead=os.open(os.devnull, os.O_WRONLY))


def _apart(stream: Any, descriptor: int, *, instead: int) -> Any:
    """Return a stream to where `stream` leads, while the descriptor itself is made to lead where `instead` does."""
    try:
        if stream is None or stream.fileno() != descriptor:
            return stream
        stream.flush()
        kept = os.dup(descriptor)
        os.dup2(instead, descriptor)
    except (OSError, ValueError):
        return stream
    finally:
        os.close(instead)
    return open(kept, "w", encoding=stream.encoding, errors=stream.errors)
