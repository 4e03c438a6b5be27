"""Programs that use a key, each in its own thread, and the exchange of their assertions at Entra."""

import json
import threading
from collections.abc import Callable
from typing import Self

import httpx
from joserfc.util import urlsafe_b64decode

from tests.support.application import Application
from tests.support.names import CLIENT, GRAPH, TENANT

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
PATIENCE = 30
"""Seconds for what takes one or two, on a machine that is busy elsewhere."""


class Busy:
    """Repeats an action in a thread until it fails or the `with` block ends.

    Attributes:
        seen: its results in order, without consecutive repetitions.
    """

    def __init__(self, act: Callable[[], str]) -> None:
        self.seen: list[str] = []
        self._act = act
        self._changed = threading.Condition()
        self._stopping = False
        self._failure: Exception | None = None
        self._rounds = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def wait_for(self, what: str) -> None:
        """Return when the action has given this result, and once more after that."""
        self._wait(lambda: what in self.seen)
        self.once_more()

    def once_more(self) -> None:
        """Return when every run that began before now has ended, and one more after it."""
        target = self._rounds + 2
        self._wait(lambda: self._rounds >= target)

    def _wait(self, over: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: over() or self._failure is not None, PATIENCE), self.seen
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while not self._stopping and self._failure is None:
            try:
                found = self._act()
            except Exception as error:  # raised in the thread that waits
                found, self._failure = "failed", error
            with self._changed:
                if self.seen[-1:] != [found]:
                    self.seen.append(found)
                self._rounds += 1
                self._changed.notify_all()


def exchange(application: Application, assertion: str) -> str:
    """Exchange an assertion at Entra, and return its thumbprint.

    Raises:
        AssertionError: Entra refused it.
    """
    form = {
        "grant_type": "client_credentials",
        "client_id": CLIENT,
        "scope": GRAPH,
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": assertion,
    }
    response = httpx.post(application.entra.token_endpoint(TENANT), data=form)
    assert response.status_code == 200, response.json()["error_codes"]
    return thumbprint(assertion)


def thumbprint(assertion: str) -> str:
    header = json.loads(urlsafe_b64decode(assertion.partition(".")[0].encode()))
    return str(header["x5t"])


def current(application: Application) -> str:
    """Return the thumbprint of the current key in the key file."""
    return application.file.current.thumbprints["x5t"]
