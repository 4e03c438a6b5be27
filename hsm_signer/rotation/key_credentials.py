"""Read, add and remove the key credentials of an application through Graph, and wait until each change takes effect.

A change takes effect at the token endpoint and at Graph at different times. We wait for the one that we need next.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from hsm_signer.config.profile import Profile
from hsm_signer.credential.client import resolve_client
from hsm_signer.credential.identity import Identity
from hsm_signer.entra.graph import Graph, Holder, Registration
from hsm_signer.entra.graph_service import resolve_graph
from hsm_signer.entra.http import HttpClient
from hsm_signer.entra.token import AccessToken, request_token, token_form
from hsm_signer.entra.waiting import Slow, log_waiting
from hsm_signer.errors import ConfigError, EntraError
from hsm_signer.jwt.assertion import DEFAULT_LIFETIME, MAXIMUM_LIFETIME
from hsm_signer.jwt.proof import PROOF_LIFETIME, build_proof
from hsm_signer.rotation.clock import Clock
from hsm_signer.rotation.plan import Step
from hsm_signer.rotation.request import Report
from hsm_signer.system.secret import Secret

POLL = 5.0
"""Seconds between two checks whether a change has taken effect at Entra."""

# AADSTS700027: no registered key verifies the assertion.
_KEY_UNKNOWN = 700027
# Graph answers this to a proof by a key that it does not know, or does not know yet.
_PROOF_REFUSED = "Authentication_MissingOrMalformed"
_NO_SUCH_CREDENTIAL = "Request_ResourceNotFound"


class KeyCredentials:
    """The key credentials of one application: the certificates that Entra accepts from it.

    Args:
        profile: names the application and the cloud.
        propagation: seconds to wait for a change to take effect.
        report: called once when a wait begins.
        clock: the time.
        slow: shows that a request takes long.

    Attributes:
        client: the application.

    Raises:
        ConfigError: a setting is missing, or there is no Graph for the profile's authority.
    """

    def __init__(
        self, profile: Profile, propagation: float, report: Report, clock: Clock, slow: Slow = log_waiting
    ) -> None:
        self._object_id = profile.object_id
        self._propagation, self._report, self._clock = propagation, report, clock
        # The profile's audience may be for another server. Tokens for Graph come from Entra.
        self.client = resolve_client(replace(profile, audience=None))
        service = resolve_graph(self.client.endpoint, profile.graph)
        self._scope = service.scope
        self._http = HttpClient(timeout=profile.network_timeout, ca_bundle=profile.ca_bundle, slow=slow)
        holder = Holder.SERVICE_PRINCIPAL if profile.service_principal else Holder.APPLICATION
        self._graph = Graph(service, self.client.client_id, holder, self._http, self._bearer)
        self._token: AccessToken | None = None

    def authenticate(self, identity: Identity) -> None:
        """Get a token for Graph with this identity, unless the last token is still valid for long enough."""
        if self._token is None or self._token.expires_on < self._clock.now() + self._propagation + 60:
            self._token = self._exchange(Secret(identity.assertion(self.client.endpoint.audience)))

    def read_registration(self) -> Registration | None:
        """Return what is registered, or None if Graph does not allow this application to read it.

        addKey and removeKey work without that permission.
        """
        try:
            return self._graph.registration()
        except EntraError as error:
            if error.error != "Authorization_RequestDenied":
                raise
            return None

    def add(self, added: Identity, object_id: str, prover: Identity) -> str | None:
        """Register a key's certificate, with a proof by a key that is registered already.

        Returns:
            The ID of its key credential, or None if it was registered before and Graph does not return the ID.
        """
        try:
            return self._graph.add_key(added.certificates.certificate().der, self._proof(object_id, prover)).key_id
        except EntraError:
            # An interrupted run, or an earlier attempt of this request, may have registered it already. Graph's
            # documentation does not say which error it returns then.
            if not self.is_accepted(added):
                raise
            return None

    def wait_until_accepted(self, identity: Identity) -> None:
        """Get a token with a key that was just registered, as soon as Entra accepts the key.

        Raises:
            EntraError: Entra does not accept the key in time, or refuses the request for another reason.
        """
        # The same assertion for each attempt: the key may require a touch.
        lifetime = min(max(DEFAULT_LIFETIME, int(self._propagation) + 60), MAXIMUM_LIFETIME)
        assertion = Secret(identity.assertion(self.client.endpoint.audience, lifetime))

        def accepted() -> bool:
            try:
                self._token = self._exchange(assertion)
            except EntraError as error:
                if error.aadsts != _KEY_UNKNOWN:
                    raise
                return False
            return True

        if not self._wait_until(Step.PROVE, accepted):
            raise EntraError(
                f"After {self._propagation:g} s Entra still does not accept the next key. The current key stays in "
                "use.",
                hint="A change can take some minutes to take effect. Run rotate again: it continues here.",
                aadsts=_KEY_UNKNOWN,
            )

    def remove(self, key_id: str, object_id: str, prover: Identity, removed: Callable[[], Identity | None]) -> None:
        """Remove a key credential, with a proof by a key that stays registered.

        Args:
            removed: returns the identity of the key whose credential is removed, or None if that key can no longer be
                used. If Graph refuses, we check with it whether Entra still accepts the key.

        Raises:
            EntraError: the proof is not accepted in time, or there is no such credential.
        """
        proof, signed = Secret(""), -math.inf

        def done() -> bool:
            nonlocal proof, signed
            # The same proof while it is valid: the key may require a touch.
            if self._clock.now() > signed + PROOF_LIFETIME - 60:
                proof, signed = self._proof(object_id, prover), self._clock.now()
            try:
                self._graph.remove_key(key_id, proof)
            except EntraError as error:
                if error.error == _PROOF_REFUSED:  # Graph does not know the new key yet
                    return False
                # An interrupted run, or an earlier attempt, may have removed it already.
                identity = removed()
                known = error.error != _NO_SUCH_CREDENTIAL if identity is None else self.is_accepted(identity)
                if known:
                    raise
            return True

        if not self._wait_until(Step.UNREGISTER, done):
            raise EntraError(
                f"After {self._propagation:g} s Graph still does not accept the new key's proof. The new key is in "
                "use, and the old one is still registered.",
                hint="Run rotate again: it continues here. If you see this error again, check --object-id.",
                error=_PROOF_REFUSED,
            )

    def restore(self, lost: Identity, object_id: str, prover: Identity) -> str | None:
        """Register a certificate again, after it was removed by mistake.

        Args:
            lost: the key whose certificate may have been removed.
            prover: the key whose certificate should have been removed. If it was removed, Graph refuses this proof.

        Returns:
            The ID of the new key credential, or None if Graph refuses.
        """
        try:
            return self._graph.add_key(lost.certificates.certificate().der, self._proof(object_id, prover)).key_id
        except EntraError:
            return None

    def object_id(self, noted: str | None, listed: Registration | None) -> str:
        """Return the application's object ID: from the profile, the key file or Graph, in this order.

        Args:
            noted: the object ID in the key file, or None.
            listed: what Graph returned, or None.

        Raises:
            ConfigError: none of them has it.
        """
        found = self._object_id or noted or (listed.object_id if listed else None)
        if found is None:
            raise ConfigError(
                "The proof for Graph needs the object ID of the application, but Graph does not allow us to read it.",
                hint='Add --object-id ID. It is "Object ID" on the app\'s Overview page, or run: '
                f"az ad app show --id {self.client.client_id} --query id",
            )
        return found

    def is_accepted(self, identity: Identity) -> bool:
        """Return whether Entra issues tokens for a key."""
        try:
            self._exchange(Secret(identity.assertion(self.client.endpoint.audience)))
        except EntraError as error:
            if error.aadsts != _KEY_UNKNOWN:
                raise
            return False
        return True

    def _wait_until(self, step: Step, done: Callable[[], bool]) -> bool:
        """Call `done` until it returns True. Return False if it did not within the propagation time."""
        deadline = self._clock.monotonic() + self._propagation
        reported = False
        while not done():
            if self._clock.monotonic() + POLL > deadline:
                return False
            if not reported:
                self._report(step, "Waiting for Entra to apply the change…")
                reported = True
            self._clock.sleep(POLL)
        return True

    def _proof(self, object_id: str, prover: Identity) -> Secret:
        return Secret(build_proof(object_id, prover.signer, prover.certificates.certificate(), self._clock.now()))

    def _exchange(self, assertion: Secret) -> AccessToken:
        form = token_form(client_id=self.client.client_id, scope=self._scope, assertion=assertion)
        return request_token(self.client.endpoint, form, self._http, now=self._clock.now)

    def _bearer(self) -> Secret:
        if self._token is None:
            raise RuntimeError("call authenticate first")
        return Secret(self._token.token)
