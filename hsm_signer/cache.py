"""Tokens in memory: early refresh, one request however many ask, and the last good token while a refresh fails."""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass

from hsm_signer.entra.token import AccessToken
from hsm_signer.errors import HsmSignerError

logger = logging.getLogger(__name__)

REFRESH_BEFORE = 300
"""Seconds before expiry at which a token is renewed, as azure-identity does; a short-lived one at half its life."""

RETRY_AFTER = 30
"""Seconds to leave a good token alone after its renewal failed."""


@dataclass
class _Entry:
    token: AccessToken | None = None
    failed_at: float | None = None
    in_flight: "Future[AccessToken] | None" = None


class TokenCache:
    """Keeps one access token for each key. Safe to use from several threads.

    Args:
        now: the clock, epoch seconds.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._entries: dict[Hashable, _Entry] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, acquire: Callable[[], AccessToken]) -> AccessToken:
        """Return the token for `key`, acquiring it when there is none, or it is about to expire.

        Callers who ask while an acquisition is under way share its outcome, also its failure: a wrong PIN must not be
        presented once for every thread.

        Args:
            key: what the token is for.
            acquire: gets a new one; runs in the thread of one of the callers.

        Raises:
            HsmSignerError: what `acquire` raised, unless a token that is still valid can be returned instead.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            if entry.token is not None and not self._is_due(entry, entry.token):
                return entry.token
            leads = entry.in_flight is None
            if not leads and entry.token is not None and self._is_valid(entry.token):
                return entry.token
            flight = entry.in_flight = entry.in_flight or Future()
        return self._acquire(entry, flight, acquire) if leads else flight.result()

    def put(self, key: Hashable, token: AccessToken) -> None:
        """Replace the token for `key` by one acquired past the cache."""
        with self._lock:
            self._entries.setdefault(key, _Entry()).token = token

    def _acquire(self, entry: _Entry, flight: "Future[AccessToken]", acquire: Callable[[], AccessToken]) -> AccessToken:
        try:
            token = acquire()
        except BaseException as error:
            with self._lock:
                entry.in_flight, entry.failed_at = None, self._now()
                last_good = entry.token
            if isinstance(error, HsmSignerError) and last_good is not None and self._is_valid(last_good):
                logger.warning("keeping the last token, which expires at %d: %s", last_good.expires_on, error)
                flight.set_result(last_good)
                return last_good
            # An interrupt is this thread's own; whoever shares the flight is told in other words.
            shared = error if isinstance(error, Exception) else HsmSignerError("The request for a token was abandoned.")
            flight.set_exception(shared)
            raise
        with self._lock:
            entry.token, entry.failed_at, entry.in_flight = token, None, None
        flight.set_result(token)
        return token

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
