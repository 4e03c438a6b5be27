"""Entra's side of a rotation: which keys it knows, and how it is told of others.

What it says of an application's keys, the token endpoint and Graph come to know at times of their own. Whoever changes
something waits until the side that matters has taken notice.
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
from hsm_signer.errors import ConfigError, EntraError
from hsm_signer.jwt.assertion import DEFAULT_LIFETIME, MAXIMUM_LIFETIME
from hsm_signer.jwt.proof import PROOF_LIFETIME, build_proof
from hsm_signer.rotation.clock import Clock
from hsm_signer.rotation.plan import Step
from hsm_signer.rotation.request import Report
from hsm_signer.system.secret import Secret

POLL = 5.0
"""Seconds between two looks whether Entra has taken notice of a change."""

# AADSTS: no such key on the application, or none that verifies the assertion.
_KEY_UNKNOWN = 700027
# How Graph refuses a proof by a key it does not know, or does not know yet.
_PROOF_REFUSED = "Authentication_MissingOrMalformed"
_NO_SUCH_CREDENTIAL = "Request_ResourceNotFound"


class KeyCredentials:
    """The keys of one application at Entra.

    Attributes:
        client: the application.

    Args:
        profile: says which application, and where Entra is.
        propagation: seconds to wait for Entra to take notice of a change.
        report: called once when such a wait begins.

    Raises:
        ConfigError: a setting is missing, or the profile's server is none that knows Graph.
    """

    def __init__(self, profile: Profile, propagation: float, report: Report, clock: Clock) -> None:
        self._object_id = profile.object_id
        self._propagation, self._report, self._clock = propagation, report, clock
        # An audience of the profile may be that of another server: the tokens for Graph come from Entra.
        self.client = resolve_client(replace(profile, audience=None))
        service = resolve_graph(self.client.endpoint, profile.graph)
        self._scope = service.scope
        self._http = HttpClient(timeout=profile.network_timeout, ca_bundle=profile.ca_bundle)
        holder = Holder.SERVICE_PRINCIPAL if profile.service_principal else Holder.APPLICATION
        self._graph = Graph(service, self.client.client_id, holder, self._http, self._bearer)
        self._token: AccessToken | None = None

    def authenticate(self, identity: Identity) -> None:
        """Get a token for Graph, unless there is one that is good for a while."""
        if self._token is None or self._token.expires_on < self._clock.now() + self._propagation + 60:
            self._token = self._exchange(Secret(identity.assertion(self.client.endpoint.audience)))

    def listed(self) -> Registration | None:
        """Return what is registered, or None where Graph will not tell: keys can be rolled without being listed."""
        try:
            return self._graph.registration()
        except EntraError as error:
            if error.error != "Authorization_RequestDenied":
                raise
            return None

    def add(self, added: Identity, object_id: str, prover: Identity) -> str | None:
        """Register a key's certificate, proved by a key that is registered.

        Returns:
            The id of its key credential; None where it was registered before, and Graph does not say as what.
        """
        try:
            return self._graph.add_key(added.certificates.certificate().der, self._proof(object_id, prover)).key_id
        except EntraError:
            # A run that was cut off may have done it, or the request before this repetition. Graph's errors are not
            # documented so well that they would tell.
            if not self._is_accepted(added):
                raise
            return None

    def await_acceptance(self, identity: Identity) -> None:
        """Get a token with a key that was just registered, as soon as Entra takes it.

        Raises:
            EntraError: it does not in time, or refuses for another reason.
        """
        # The same assertion each time, for the key may want a touch.
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

        if not self._within(Step.PROVE, accepted):
            raise EntraError(
                f"After {self._propagation:g} s Entra still does not accept the next key. The current one is in use as "
                "before.",
                hint="Changes take some minutes to spread. Run rotate again: it goes on from here.",
                aadsts=_KEY_UNKNOWN,
            )

    def remove(self, key_id: str, object_id: str, prover: Identity, removed: Callable[[], Identity | None]) -> None:
        """Remove a key credential, proved by a key that stays.

        Args:
            removed: returns the identity of the key that is removed, or None where it cannot be had any more: to see
                whether Entra still knows it, when Graph refuses.

        Raises:
            EntraError: the proof is not accepted in time, or there is no such credential.
        """
        proof, signed = Secret(""), -math.inf

        def done() -> bool:
            nonlocal proof, signed
            # The same for as long as it is good, for the key may want a touch.
            if self._clock.now() > signed + PROOF_LIFETIME - 60:
                proof, signed = self._proof(object_id, prover), self._clock.now()
            try:
                self._graph.remove_key(key_id, proof)
            except EntraError as error:
                if error.error == _PROOF_REFUSED:  # Graph has not heard of the new key yet
                    return False
                # As in `add`.
                identity = removed()
                known = error.error != _NO_SUCH_CREDENTIAL if identity is None else self._is_accepted(identity)
                if known:
                    raise
            return True

        if not self._within(Step.UNREGISTER, done):
            raise EntraError(
                f"After {self._propagation:g} s Graph still does not accept the new key's proof. The new key is in "
                "use, and the old one still registered.",
                hint="Run rotate again: it goes on from here. If it stays so, see that --object-id is right.",
                error=_PROOF_REFUSED,
            )

    def restore(self, lost: Identity, object_id: str, prover: Identity) -> str | None:
        """Register a certificate again that was removed in place of another.

        Args:
            lost: the key whose certificate may have been removed.
            prover: the key whose certificate should have been removed. Where it was, Graph refuses its proof.

        Returns:
            The id of the new key credential, or None where Graph refuses.
        """
        try:
            return self._graph.add_key(lost.certificates.certificate().der, self._proof(object_id, prover)).key_id
        except EntraError:
            return None

    def object_id(self, noted: str | None, listed: Registration | None) -> str:
        """Return the application's object id: the one that is known, else the one Graph tells.

        Raises:
            ConfigError: neither.
        """
        found = self._object_id or noted or (listed.object_id if listed else None)
        if found is None:
            raise ConfigError(
                "The object id of the application is needed for the proof, and Graph does not tell it.",
                hint="Give --object-id. The portal shows it beside the client id; az shows it with: "
                f"az ad app show --id {self.client.client_id} --query id",
            )
        return found

    def _is_accepted(self, identity: Identity) -> bool:
        """Whether Entra gives tokens for a key."""
        try:
            self._exchange(Secret(identity.assertion(self.client.endpoint.audience)))
        except EntraError as error:
            if error.aadsts != _KEY_UNKNOWN:
                raise
            return False
        return True

    def _within(self, step: Step, done: Callable[[], bool]) -> bool:
        """Return whether `done` comes to say yes before the time for propagation is over."""
        deadline = self._clock.monotonic() + self._propagation
        said = False
        while not done():
            if self._clock.monotonic() + POLL > deadline:
                return False
            if not said:
                self._report(step, "Waiting for Entra to take notice of the change…")
                said = True
            self._clock.sleep(POLL)
        return True

    def _proof(self, object_id: str, prover: Identity) -> Secret:
        return Secret(build_proof(object_id, prover.signer, prover.certificates.certificate(), self._clock.now()))

    def _exchange(self, assertion: Secret) -> AccessToken:
        form = token_form(client_id=self.client.client_id, scope=self._scope, assertion=assertion)
        return request_token(self.client.endpoint, form, self._http, now=self._clock.now)

    def _bearer(self) -> Secret:
        if self._token is None:
            raise RuntimeError("authenticate comes first")
        return Secret(self._token.token)
