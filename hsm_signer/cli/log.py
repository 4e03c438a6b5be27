"""The log on stderr, as text for people or as JSON for programs."""

import json
import logging
import select
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

from hsm_signer.cli.output import sentences
from hsm_signer.system.systemd import is_journal

_DONE = logging.getLogger("hsm_signer.done")


def report_done(text: str) -> None:
    """Say in a line what the command did: on a terminal and in the journal always, elsewhere with --verbose.

    Args:
        text: a sentence.
    """
    _DONE.info("%s", text)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == _DONE.name:
            return "\n".join(sentences(record.getMessage()))
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
    _DONE.setLevel(logging.INFO if sys.stderr is not None and (sys.stderr.isatty() or is_journal(sys.stderr)) else 0)


def request_logger() -> Callable[[str], None]:
    """Return a function that logs a line about a request, with or without --verbose; as text, it has no prefix."""
    logger = logging.getLogger("hsm_signer.requests")
    handler = _NeverWaiting(sys.stderr)
    if any(isinstance(each.formatter, _Json) for each in logging.getLogger("hsm_signer").handlers):
        handler.setFormatter(_Json())
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return lambda line: logger.info("%s", line)


class _NeverWaiting(logging.StreamHandler[TextIO]):
    """Drops lines while stderr takes none: a program that does not read our pipe must not stop our answers."""

    _dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            poll = select.poll()
            poll.register(self.stream.fileno(), select.POLLOUT)
            ready = bool(poll.poll(0))
        except (AttributeError, OSError, ValueError):  # stderr is closed
            return
        if not ready:
            self._dropped += 1
            return
        if self._dropped:
            text = f"{self._dropped} requests are missing here, because nothing read this log"
            missing = logging.LogRecord(record.name, logging.WARNING, __file__, 0, text, None, None)
            self._dropped = 0
            super().emit(missing)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore that the reader is gone."""
