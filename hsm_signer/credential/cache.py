"""Keep tokens in memory, renew them early with one request for all callers, and use them until they expire.

If Entra would refuse a request again, its refusal is kept for a while too, because every request costs a signature.
"""

import copy
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass

from hsm_signer.entra.aadsts import is_lasting
from hsm_signer.entra.token import AccessToken
from hsm_signer.errors import EntraError, HsmSignerError
from hsm_signer.system.fork import reset_after_fork
from hsm_signer.system.threads import NO_THREAD_HINT

logger = logging.getLogger(__name__)

REFRESH_BEFORE = 300
"""Seconds before expiry at which a token is renewed, as in azure-identity. A short-lived one: at half its lifetime."""

RETRY_AFTER = 30
"""Seconds after a failed renewal before the next attempt, while the token is valid."""

FIRST_PAUSE, LONGEST_PAUSE = 5, 60
"""Seconds for which a lasting refusal is raised again without a request: the first time, and at most. They double."""

MAXIMUM = 500
"""How many tokens, and how many refusals, are kept. The least recently used is dropped."""


@dataclass
class _Entry:
    """A token, and when its last renewal failed (epoch seconds)."""

    token: AccessToken
    failed_at: float | None = None

    def is_valid(self, now: float) -> bool:
        return now < self.token.expires_on

    def is_due(self, now: float) -> bool:
        """Return whether to renew the token."""
        token = self.token
        if now >= token.expires_on:
            return True
        if self.failed_at is not None and now < self.failed_at + RETRY_AFTER:
            return False
        # A token that lives shorter than REFRESH_BEFORE would always be due, so it is used for half its lifetime.
        early = min(REFRESH_BEFORE, token.expires_in // 2)
        return now >= min(token.expires_on - early, token.refresh_on or token.expires_on)


@dataclass(frozen=True)
class _Refusal:
    """A lasting refusal.

    Attributes:
        error: a copy without a traceback, whose frames would keep the assertion in memory.
        at: epoch seconds.
        pause: seconds for which it is raised again.
    """

    error: EntraError
    at: float
    pause: float

    def is_recent(self, now: float, more: float = 0) -> bool:
        """Return whether fewer than the pause plus `more` seconds have passed. False if the clock was set back."""
        return 0 <= now - self.at < self.pause + more


_Request = tuple[Hashable, str | None]
"""The key of a token, and the claims challenge that the new token must meet, or None."""


class TokenCache:
    """Keeps one access token for each key. Safe to use from several threads.

    Args:
        now: the clock, epoch seconds.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        # Least recently used first.
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._refusals: OrderedDict[_Request, _Refusal] = OrderedDict()
        self._pending: dict[_Request, Future[AccessToken]] = {}
        reset_after_fork(self, TokenCache.reset_after_fork)

    def get(self, key: Hashable, acquire: Callable[[], AccessToken], challenge: str | None = None) -> AccessToken:
        """Return the token for `key`. Acquire one if there is none, or if it expires soon.

        Callers that ask during an acquisition share its outcome. They share a failure too: a wrong PIN must not be sent
        once for every thread. A lasting refusal is raised again for a while without an acquisition.

        Args:
            key: identifies the token.
            acquire: gets a new token; runs in the thread of one of the callers.
            challenge: the claims challenge with which an API refused the cached token. A new token replaces it.

        Raises:
            HsmSignerError: the error of `acquire`, unless the cached token is still valid and can be returned.
        """
        request = key, challenge
        with self._lock:
            if (token := self._recall(request)) is not None:
                return token
            pending, first = self._join(request)
        if first:
            self._acquire(request, acquire, pending)
        return pending.result()

    def submit(
        self, key: Hashable, acquire: Callable[[], AccessToken], challenge: str | None = None
    ) -> "Future[AccessToken]":
        """Do what `get` does, but return at once: an acquisition runs in a new thread."""
        request = key, challenge
        with self._lock:
            try:
                token = self._recall(request)
            except EntraError as error:
                return _failed(error.with_traceback(None))
            if token is not None:
                return _succeeded(token)
            pending, first = self._join(request)
        if first:
            arguments = request, acquire, pending
            thread = threading.Thread(target=self._acquire, args=arguments, name="hsm-signer-token", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # Callers that share the acquisition would wait forever.
                self._acquire(request, _report_no_thread, pending)
        return pending

    def reset_after_fork(self) -> None:
        """Keep the tokens in a forked child, but not the parent's pending acquisitions."""
        self._lock = threading.Lock()
        self._pending = {}

    def _recall(self, request: _Request) -> AccessToken | None:
        """Return the token that answers a request without an acquisition, or None. Called under the lock.

        Raises:
            EntraError: the same request was refused a moment ago.
        """
        key, challenge = request
        now = self._now()
        entry = self._entries.get(key) if challenge is None else None
        if entry is not None:
            self._entries.move_to_end(key)
            if not entry.is_due(now):
                return entry.token
        is_pending = request in self._pending
        refusal = self._refusals.get(request)
        if refusal is not None and not refusal.is_recent(now):
            refusal = None
        if entry is not None and entry.is_valid(now) and (is_pending or refusal is not None):
            return entry.token
        if refusal is not None and not is_pending:
            self._refusals.move_to_end(request)
            # A copy for each caller: raising an error adds to its traceback.
            raise copy.copy(refusal.error)
        return None

    def _join(self, request: _Request) -> "tuple[Future[AccessToken], bool]":
        """Return the pending token, and whether this caller is the first and must acquire it. Called under the lock."""
        pending = self._pending.get(request)
        if pending is not None:
            return pending, False
        pending = self._pending[request] = Future()
        return pending, True

    def _acquire(self, request: _Request, acquire: Callable[[], AccessToken], pending: "Future[AccessToken]") -> None:
        key, challenge = request
        try:
            token = acquire()
        except BaseException as error:
            with self._lock:
                now = self._now()
                self._pending.pop(request, None)  # missing in a child that was forked meanwhile
                if isinstance(error, EntraError) and is_lasting(error):
                    self._remember(request, error, now)
                entry = self._entries.get(key) if challenge is None else None
                if entry is not None:
                    entry.failed_at = now
            if isinstance(error, HsmSignerError) and entry is not None and entry.is_valid(now):
                seconds = entry.token.expires_on - now
                logger.warning(
                    "Renewing the token failed. The current token is valid for another %d s. %s", seconds, error
                )
                pending.set_result(entry.token)
            elif isinstance(error, Exception):
                pending.set_exception(error)
            else:
                # Only this thread was interrupted. The callers that share the acquisition get another error.
                pending.set_exception(HsmSignerError("The request for a token was interrupted.", hint="Try again."))
                raise
        else:
            with self._lock:
                self._pending.pop(request, None)  # missing in a child that was forked meanwhile
                for answered in (request, (key, None)):
                    self._refusals.pop(answered, None)
                self._keep(key, token, self._now())
            pending.set_result(token)

    def _keep(self, key: Hashable, token: AccessToken, now: float) -> None:
        for old in [old for old, entry in self._entries.items() if not entry.is_valid(now)]:
            del self._entries[old]
        self._entries[key] = _Entry(token)
        self._entries.move_to_end(key)
        if len(self._entries) > MAXIMUM:
            self._entries.popitem(last=False)

    def _remember(self, request: _Request, error: EntraError, now: float) -> None:
        # Refusals are kept longer than they are raised, so that we recognize a repeated one.
        for old in [old for old, each in self._refusals.items() if not each.is_recent(now, LONGEST_PAUSE)]:
            del self._refusals[old]
        last = self._refusals.pop(request, None)
        pause = FIRST_PAUSE if last is None else min(2 * last.pause, LONGEST_PAUSE)
        self._refusals[request] = _Refusal(copy.copy(error), now, pause)
        if len(self._refusals) > MAXIMUM:
            self._refusals.popitem(last=False)


def _report_no_thread() -> AccessToken:
    raise HsmSignerError("No thread could be started to get a token.", hint=NO_THREAD_HINT)


def _succeeded(token: AccessToken) -> "Future[AccessToken]":
    future: Future[AccessToken] = Future()
    future.set_result(token)
    return future


def _failed(error: EntraError) -> "Future[AccessToken]":
    future: Future[AccessToken] = Future()
    future.set_exception(error)
    return future
