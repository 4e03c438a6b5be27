"""Tokens in memory: early refresh, one request however many ask, and the last good token while a refresh fails.

A refusal that a repeat would not change is remembered for a while, too: each repeat would cost a signature.
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

logger = logging.getLogger(__name__)

REFRESH_BEFORE = 300
"""Seconds before expiry at which a token is renewed, as azure-identity does; a short-lived one at half its life."""

RETRY_AFTER = 30
"""Seconds to leave a good token alone after its renewal failed."""

FIRST_PAUSE, LONGEST_PAUSE = 5, 60
"""Seconds for which a lasting refusal is raised again without a request: the first, then twice as long each time."""

MAXIMUM = 500
"""Tokens that are kept, and refusals that are remembered; beyond that, the least recently used is dropped."""


@dataclass
class _Kept:
    """A token, and when its last renewal failed."""

    token: AccessToken
    failed_at: float | None = None


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
        """Return whether the pause, and `more` seconds, are not over. A clock that was set back ends it."""
        return 0 <= now - self.at < self.pause + more


class TokenCache:
    """Keeps one access token for each key. Safe to use from several threads.

    Args:
        now: the clock, epoch seconds.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        # Least recently used first.
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        # By key and challenge.
        self._refusals: OrderedDict[tuple[Hashable, str | None], _Refusal] = OrderedDict()
        self._pending: dict[tuple[Hashable, str | None], Future[AccessToken]] = {}
        reset_after_fork(self, TokenCache.reset_after_fork)

    def get(self, key: Hashable, acquire: Callable[[], AccessToken], challenge: str | None = None) -> AccessToken:
        """Return the token for `key`, acquiring it when there is none, or it is about to expire.

        Callers who ask while an acquisition is under way share its outcome, also its failure: a wrong PIN must not be
        presented once for every thread. A lasting refusal is raised again for a while, and nothing is acquired.

        Args:
            key: what the token is for.
            acquire: gets a new one; runs in the thread of one of the callers.
            challenge: why the token that is here will not do; a new one is then acquired, and kept in its place.

        Raises:
            HsmSignerError: what `acquire` raised, unless a token that is still valid can be returned instead.
        """
        if challenge is None and (token := self._fresh(key)) is not None:
            return token
        pending, first = self._find(key, challenge)
        if first:
            self._acquire(key, challenge, acquire, pending)
        return pending.result()

    def submit(
        self, key: Hashable, acquire: Callable[[], AccessToken], challenge: str | None = None
    ) -> "Future[AccessToken]":
        """Do what `get` does, and return at once: what has to be acquired is acquired in a thread of its own."""
        pending, first = self._find(key, challenge)
        if first:
            arguments = key, challenge, acquire, pending
            thread = threading.Thread(target=self._acquire, args=arguments, name="hsm-signer-token", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # Whoever shares the acquisition would wait forever.
                self._acquire(key, challenge, _report_no_thread, pending)
        return pending

    def reset_after_fork(self) -> None:
        """Keep the tokens in a forked child, and nothing of what the parent's threads are doing."""
        self._lock = threading.Lock()
        self._pending = {}

    def _fresh(self, key: Hashable) -> AccessToken | None:
        """Return the token that is asked for most often: one that is not due. It costs no future."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or _is_due(kept, self._now()):
                return None
            self._kept.move_to_end(key)
            return kept.token

    def _find(self, key: Hashable, challenge: str | None) -> "tuple[Future[AccessToken], bool]":
        """Return where the token is or will arrive, and whether this caller is the first, who has to acquire it."""
        asked = key, challenge
        with self._lock:
            now = self._now()
            pending = self._pending.get(asked)
            refusal = self._refusals.get(asked)
            if refusal is not None and not refusal.is_recent(now):
                refusal = None
            kept = self._kept.get(key) if challenge is None else None
            if kept is not None:
                self._kept.move_to_end(key)
                if not _is_due(kept, now) or ((pending or refusal) and _is_valid(kept.token, now)):
                    return _completed(kept.token), False
            if pending is not None:
                return pending, False
            if refusal is not None:
                self._refusals.move_to_end(asked)
                return _completed(refusal.error), False
            pending = self._pending[asked] = Future()
            return pending, True

    def _acquire(
        self,
        key: Hashable,
        challenge: str | None,
        acquire: Callable[[], AccessToken],
        pending: "Future[AccessToken]",
    ) -> None:
        asked = key, challenge
        try:
            token = acquire()
        except BaseException as error:
            with self._lock:
                now = self._now()
                self._pending.pop(asked, None)  # none in a child that was forked meanwhile
                if isinstance(error, EntraError) and is_lasting(error):
                    self._remember(asked, error, now)
                kept = self._kept.get(key) if challenge is None else None
                if kept is not None:
                    kept.failed_at = now
            if isinstance(error, HsmSignerError) and kept is not None and _is_valid(kept.token, now):
                logger.warning("keeping the last token, which expires at %d: %s", kept.token.expires_on, error)
                pending.set_result(kept.token)
            elif isinstance(error, Exception):
                pending.set_exception(error)
            else:
                # An interrupt is this thread's own; whoever shares the acquisition is told in other words.
                pending.set_exception(HsmSignerError("The request for a token was interrupted.", hint="Try again."))
                raise
        else:
            with self._lock:
                self._pending.pop(asked, None)  # none in a child that was forked meanwhile
                for answered in (asked, (key, None)):
                    self._refusals.pop(answered, None)
                self._keep(key, token, self._now())
            pending.set_result(token)

    def _keep(self, key: Hashable, token: AccessToken, now: float) -> None:
        for old in [old for old, kept in self._kept.items() if not _is_valid(kept.token, now)]:
            del self._kept[old]
        self._kept[key] = _Kept(token)
        self._kept.move_to_end(key)
        if len(self._kept) > MAXIMUM:
            self._kept.popitem(last=False)

    def _remember(self, asked: tuple[Hashable, str | None], error: EntraError, now: float) -> None:
        # A while longer than it is raised: a repeat must be known for one.
        for old in [old for old, each in self._refusals.items() if not each.is_recent(now, LONGEST_PAUSE)]:
            del self._refusals[old]
        last = self._refusals.pop(asked, None)
        pause = FIRST_PAUSE if last is None else min(2 * last.pause, LONGEST_PAUSE)
        self._refusals[asked] = _Refusal(copy.copy(error), now, pause)
        if len(self._refusals) > MAXIMUM:
            self._refusals.popitem(last=False)


def _report_no_thread() -> AccessToken:
    raise HsmSignerError(
        "No thread could be started to get a token.",
        hint="Raise the limit on processes and threads (`ulimit -u`, TasksMax= of the service, pids of the container).",
    )


def _completed(outcome: AccessToken | EntraError) -> "Future[AccessToken]":
    completed: Future[AccessToken] = Future()
    if isinstance(outcome, AccessToken):
        completed.set_result(outcome)
    else:
        # Each caller gets an error of its own: raising one adds to its traceback.
        completed.set_exception(copy.copy(outcome))
    return completed


def _is_valid(token: AccessToken, now: float) -> bool:
    return now < token.expires_on


def _is_due(kept: _Kept, now: float) -> bool:
    token = kept.token
    if now >= token.expires_on:
        return True
    if kept.failed_at is not None and now < kept.failed_at + RETRY_AFTER:
        return False
    # Half of its life is left to a token that never has REFRESH_BEFORE: else each caller would ask for a new one.
    early = min(REFRESH_BEFORE, token.expires_in // 2)
    return now >= min(token.expires_on - early, token.refresh_on or token.expires_on)
