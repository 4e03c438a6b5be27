"""Asks Entra whether it accepts the certificate yet, again and again, with as few signatures as possible."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hsm_signer.credential.identity import Identity
from hsm_signer.entra.http import HttpClient
from hsm_signer.entra.token import request_token, token_form
from hsm_signer.errors import EntraError, NetworkError
from hsm_signer.system.secret import Secret

INTERVAL = 5.0
"""Seconds between two requests."""

# The certificate is not registered, or the app does not exist, in the part of Entra that was asked.
_NOT_YET = frozenset({700016, 700027})

_RESERVE = 30.0
"""Seconds before an assertion expires in which it is not used any more: clocks differ."""


@dataclass
class Registration:
    """The certificate of an identity, as Entra knows it.

    Args:
        identity: with its device open.
        scope: what a token is requested for.
        http: to Entra.
        lifetime: of an assertion, seconds. One is used until it expires: a key may require a touch for each.
        now: the clock, epoch seconds.
        sleep: waits for that many seconds.
    """

    identity: Identity
    scope: str
    http: HttpClient
    lifetime: int
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    _assertion: Secret | None = field(default=None, init=False, repr=False)
    _expires: float = field(default=0.0, init=False, repr=False)

    def is_accepted(self) -> bool:
        """Ask once. False if the app or its certificate is unknown.

        Raises:
            EntraError: it refuses for another reason.
            NetworkError: it does not answer.
            HsmSignerError: the device does not sign.
        """
        client = self.identity.client
        form = token_form(client_id=client.client_id, scope=self.scope, assertion=self._current())
        try:
            request_token(client.endpoint, form, self.http, now=self.now)
        except EntraError as error:
            if error.aadsts in _NOT_YET:
                return False
            raise
        return True

    def wait(self) -> None:
        """Return once it is accepted. A network that fails for a while is waited for, too.

        Raises:
            EntraError: it refuses for another reason.
            HsmSignerError: the device does not sign.
        """
        while True:
            self.sleep(INTERVAL)
            try:
                if self.is_accepted():
                    return
            except NetworkError:
                continue

    def _current(self) -> Secret:
        if self._assertion is None or self.now() >= self._expires:
            endpoint = self.identity.client.endpoint
            self._expires = self.now() + max(0.0, self.lifetime - _RESERVE)
            self._assertion = Secret(self.identity.assertion(endpoint.audience, self.lifetime))
        return self._assertion
