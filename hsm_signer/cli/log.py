"""The log on stderr, as text for people or as JSON for programs."""

import json
import logging
import sys
from datetime import UTC, datetime

from hsm_signer.cli.output import sentences


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(sentences(record.getMessage(), f"hsm-signer: {record.levelname.lower()}: "))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps(
            {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        )


def configure_logging(*, verbose: bool, as_json: bool) -> None:
    """Send this package's log to stderr: warnings only, or every step with `verbose`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    logger = logging.getLogger("hsm_signer")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
