"""Tokens in memory: early refresh, one request however many ask, and the last good token while a refresh fails."""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

from hsm_signer.entra.token import AccessToken
from hsm_signer.errors import HsmSignerError

logger = logging.getLogger(__name__)

REFRESH_BEFORE = 300
"""Seconds before expiry at which a token is renewed, as azure-identity does; a short-lived one at half its life."""

RETRY_AFTER = 30
"""Seconds to leave a good token alone after its renewal failed."""


@dataclass
class _Entry:
    """What is known of one key: its token, and the acquisitions that are under way, by the challenge they answer."""

    token: AccessToken | None = None
    failed_at: float | None = None
    flights: "dict[str | None, Future[AccessToken]]" = field(default_factory=dict)


class TokenCache:
    """Keeps one access token for each key. Safe to use from several threads.

    Args:
        now: the clock, epoch seconds.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._entries: dict[Hashable, _Entry] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, acquire: Callable[[], AccessToken], challenge: str | None = None) -> AccessToken:
        """Return the token for `key`, acquiring it when there is none, or it is about to expire.

        Callers who ask while an acquisition is under way share its outcome, also its failure: a wrong PIN must not be
        presented once for every thread.

        Args:
            key: what the token is for.
            acquire: gets a new one; runs in the thread of one of the callers.
            challenge: why the token that is here will not do; a new one is then acquired, and kept in its place.

        Raises:
            HsmSignerError: what `acquire` raised, unless a token that is still valid can be returned instead.
        """
        found = self._find(key, challenge)
        if isinstance(found, AccessToken):
            return found
        entry, flight, leads = found
        if leads:
            self._fly(entry, flight, acquire, challenge)
        return flight.result()

    def begin(
        self, key: Hashable, acquire: Callable[[], AccessToken], challenge: str | None = None
    ) -> "Future[AccessToken]":
        """Do what `get` does, and return at once: what has to be acquired is acquired in a thread of its own."""
        found = self._find(key, challenge)
        if isinstance(found, AccessToken):
            cached: Future[AccessToken] = Future()
            cached.set_result(found)
            return cached
        entry, flight, leads = found
        if leads:
            threading.Thread(
                target=self._fly, args=(entry, flight, acquire, challenge), name="hsm-signer-token", daemon=True
            ).start()
        return flight

    def after_fork(self) -> None:
        """Make this, in a forked child, usable: it keeps the tokens, and nothing of what the parent's threads do."""
        self._lock = threading.Lock()
        for entry in self._entries.values():
            entry.flights = {}

    def _find(self, key: Hashable, challenge: str | None) -> "AccessToken | tuple[_Entry, Future[AccessToken], bool]":
        """Return the token; or where it will arrive, and whether it is up to this caller to acquire it."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            flight = entry.flights.get(challenge)
            if challenge is None and entry.token is not None:
                if not self._is_due(entry, entry.token) or (flight and self._is_valid(entry.token)):
                    return entry.token
            if flight is not None:
                return entry, flight, False
            flight = entry.flights[challenge] = Future()
            return entry, flight, True

    def _fly(
        self,
        entry: _Entry,
        flight: "Future[AccessToken]",
        acquire: Callable[[], AccessToken],
        challenge: str | None,
    ) -> None:
        try:
            token = acquire()
        except BaseException as error:
            with self._lock:
                entry.flights.pop(challenge, None)  # none in a child that was forked meanwhile
                last_good = entry.token if challenge is None else None
                if challenge is None:
                    entry.failed_at = self._now()
            if isinstance(error, HsmSignerError) and last_good is not None and self._is_valid(last_good):
                logger.warning("keeping the last token, which expires at %d: %s", last_good.expires_on, error)
                flight.set_result(last_good)
            elif isinstance(error, Exception):
                flight.set_exception(error)
            else:
                # An interrupt is this thread's own; whoever shares the flight is told in other words.
                flight.set_exception(HsmSignerError("The request for a token was abandoned."))
                raise
        else:
            with self._lock:
                entry.flights.pop(challenge, None)  # none in a child that was forked meanwhile
                entry.token, entry.failed_at = token, None
            flight.set_result(token)

    def _is_valid(self, token: AccessToken) -> bool:
        return self._now() < token.expires_on

    def _is_due(self, entry: _Entry, token: AccessToken) -> bool:
        now = self._now()
        if now >= token.expires_on:
            return True
        if entry.failed_at is not None and now < entry.failed_at + RETRY_AFTER:
            return False
        # Half of its life is left to a token that never has REFRESH_BEFORE: else each caller would ask for a new one.
        early = min(REFRESH_BEFORE, token.expires_in // 2)
        return now >= min(token.expires_on - early, token.refresh_on or token.expires_on)
