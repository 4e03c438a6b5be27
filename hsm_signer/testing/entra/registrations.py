"""`Registrations`: the certificates of each application, and when the token endpoint sees a change made through Graph.

Graph and the token endpoint are replicas of one directory. Graph shows a change at once. The token endpoint may refuse
a new certificate, and accept a removed one, until the `delay` has passed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from hsm_signer.errors import ConfigError
from hsm_signer.testing.entra.directory import Applications, DirectoryObject, Kind, RegisteredCertificate
from hsm_signer.testing.entra.token_rules import MANY_TENANTS


@dataclass(frozen=True)
class Delay:
    """How long the token endpoint does not see a change: until both limits have passed.

    Args:
        token_requests: number of decisions of the token endpoint.
        seconds: on the emulator's clock.
    """

    token_requests: int = 0
    seconds: float = 0


@dataclass(frozen=True)
class _Moment:
    """A moment, by the clock and by the number of token requests."""

    time: float
    request: int


_ALWAYS = _Moment(-math.inf, 0)


@dataclass
class _Entry:
    """A certificate in the directory, and when the token endpoint sees that it was added and removed."""

    credential: RegisteredCertificate
    added: _Moment
    removed: _Moment | None = None


class Registrations:
    """The applications and service principals of all tenants.

    Args:
        clock: the time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.delay = Delay()
        self._clock = clock
        self._tenants: dict[str, dict[str, dict[Kind, list[_Entry]]]] = {}
        self._token_requests = 0

    def __contains__(self, tenant: str) -> bool:
        return tenant in self._tenants

    def register(self, tenant: str, app_id: str, kind: Kind, credential: RegisteredCertificate) -> None:
        """Create tenant and application if they do not exist, and add a certificate, without delay.

        Raises:
            ConfigError: `tenant` is not one tenant.
        """
        if tenant in MANY_TENANTS or not tenant.replace("-", "").replace(".", "").isalnum():
            raise ConfigError(
                f"'{tenant}' is not the name of one tenant.", hint="Use a GUID, a domain, or 'adfs' for AD FS."
            )
        holders = self._tenants.setdefault(tenant, {}).setdefault(app_id, {kind: [] for kind in Kind})
        holders[kind].append(_Entry(credential, _ALWAYS))

    def credentials(self, tenant: str, app_id: str, kind: Kind) -> tuple[RegisteredCertificate, ...]:
        """Return the certificates of one of `objects`, or nothing if there is no such object."""
        for found in self.objects(tenant):
            if (found.app_id, found.kind) == (app_id, kind):
                return found.credentials
        return ()

    def objects(self, tenant: str) -> list[DirectoryObject]:
        """Return a tenant's applications and service principals, as Graph sees them."""
        return [
            DirectoryObject(kind, tenant, app_id, tuple(entry.credential for entry in entries if entry.removed is None))
            for app_id, holders in self._tenants.get(tenant, {}).items()
            for kind, entries in holders.items()
        ]

    def add(self, holder: DirectoryObject, credential: RegisteredCertificate) -> None:
        """Add a certificate, as Graph does."""
        self._entries(holder).append(_Entry(credential, self._arrival()))

    def remove(self, holder: DirectoryObject, credential: RegisteredCertificate) -> None:
        """Take a certificate away, as Graph does."""
        for entry in self._entries(holder):
            if entry.credential is credential:
                entry.removed = self._arrival()

    def look_up(self, tenant: str) -> Applications | None:
        """Return a tenant's applications as the token endpoint sees them, or None when there is no such tenant.

        Each call is one decision of the token endpoint, and counts toward `Delay.token_requests`. A certificate of the
        service principal serves the application as well as one of its own.
        """
        self._token_requests += 1
        now = _Moment(self._clock(), self._token_requests)
        if tenant not in self._tenants:
            return None
        return {
            app_id: [
                entry.credential
                for entries in holders.values()
                for entry in entries
                if _reached(entry.added, now) and not (entry.removed and _reached(entry.removed, now))
            ]
            for app_id, holders in self._tenants[tenant].items()
        }

    def _entries(self, holder: DirectoryObject) -> list[_Entry]:
        return self._tenants[holder.tenant][holder.app_id][holder.kind]

    def _arrival(self) -> _Moment:
        return _Moment(self._clock() + self.delay.seconds, self._token_requests + self.delay.token_requests)


def _reached(moment: _Moment, now: _Moment) -> bool:
    return now.time >= moment.time and now.request > moment.request
