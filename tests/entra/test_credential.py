"""The whole way: a key in SoftHSM signs, the emulator answers, joserfc judges both."""

import base64
import hashlib
import json
import logging
import re
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from joserfc import jws, jwt
from joserfc.jwk import KeySet, RSAKey

from hsm_signer import HsmCredential
from hsm_signer.credential import Settings
from hsm_signer.device.pin import Login, Pin, PinRequest
from hsm_signer.errors import ConfigError, EntraError, NetworkError, PinIncorrect, PinUnavailable
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.answers import Refused, Unavailable
from hsm_signer.testing.softhsm import SoftHsmKey

TENANT = "contoso.example"
CLIENT = "0f7b4d5e-9c1a-4c3b-8f70-3b1f6a0f9d11"
GRAPH = "https://graph.microsoft.com/.default"
VAULT = "https://vault.azure.net/.default"


@pytest.fixture(scope="module")
def softhsm() -> Iterator[SoftHsm]:
    with SoftHsm(label="credential tests") as softhsm:
        yield softhsm


@pytest.fixture(scope="module")
def hsm_key(softhsm: SoftHsm) -> SoftHsmKey:
    return softhsm.add_identity()


@pytest.fixture(scope="module")
def entra(hsm_key: SoftHsmKey) -> Iterator[EntraEmulator]:
    assert hsm_key.certificate is not None
    with EntraEmulator() as entra:
        for tenant in (TENANT, "adfs"):
            entra.register(CLIENT, hsm_key.certificate, tenant=tenant)
        yield entra


@pytest.fixture(autouse=True)
def _forget_requests(entra: EntraEmulator) -> None:
    entra.requests.clear()


class CountingPin:
    """Gives one PIN and counts how often it was asked."""

    description = identity = "a test"
    attended = False

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked = 0

    def __call__(self, request: PinRequest) -> Login:
        self.asked += 1
        return Pin(self.text)


Connect = Callable[..., HsmCredential]


@pytest.fixture
def connect(softhsm: SoftHsm, hsm_key: SoftHsmKey, entra: EntraEmulator) -> Iterator[Connect]:
    """Make a credential for the emulator; closed after the test."""
    made: list[HsmCredential] = []

    def connect(*, tenant: str = TENANT, pin: CountingPin | None = None, **settings: object) -> HsmCredential:
        defaults: Settings = {
            "module": softhsm.module,
            "module_environment": softhsm.environment,
            "authority": entra.authority,
            "ca_bundle": str(entra.ca_file),
        }
        merged: Settings = {**defaults, **settings}  # type: ignore[typeddict-item]  # checked at run time
        credential = HsmCredential(tenant, CLIENT, hsm_key.uri, prompt=pin or CountingPin(softhsm.pin), **merged)
        made.append(credential)
        return credential

    yield connect
    for credential in made:
        credential.close()


def public_key(key: SoftHsmKey) -> RSAKey:
    pem = key.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return RSAKey.import_key(pem)


def only_assertion(entra: EntraEmulator) -> str:
    (request,) = entra.requests
    return request.form["client_assertion"]


class TestToken:
    def test_verifies_with_the_published_keys(self, connect: Connect, entra: EntraEmulator) -> None:
        token = connect().get_token(GRAPH)
        trust = ssl.create_default_context(cafile=str(entra.ca_file))
        with httpx.Client(verify=trust, trust_env=False) as client:
            published = client.get(f"{entra.authority}/{TENANT}/discovery/v2.0/keys").json()
        claims = jwt.decode(token.token, KeySet.import_key_set(published), algorithms=["RS256"]).claims
        assert claims["aud"] == "https://graph.microsoft.com"
        assert abs(token.expires_on - claims["exp"]) <= 2

    def test_comes_from_the_cache_the_second_time(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect()
        assert credential.get_token(GRAPH) is credential.get_token(GRAPH)
        assert len(entra.requests) == 1

    def test_is_asked_for_once_by_thirty_threads(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect()
        with ThreadPoolExecutor(30) as pool:
            tokens = set(pool.map(lambda _: credential.get_token(GRAPH).token, range(30)))
        assert len(tokens) == 1
        assert len(entra.requests) == 1

    def test_for_each_resource_is_its_own(self, connect: Connect) -> None:
        credential = connect()
        assert credential.get_token(GRAPH).token != credential.get_token(VAULT).token

    def test_with_a_claims_challenge_passes_the_cache_and_replaces_it(
        self, connect: Connect, entra: EntraEmulator
    ) -> None:
        credential = connect()
        old = credential.get_token(GRAPH)
        new = credential.get_token(GRAPH, claims='{"access_token": {}}')
        assert new.token != old.token
        assert entra.requests[1].form["claims"] == '{"access_token": {}}'
        assert credential.get_token(GRAPH) is new

    def test_for_continuous_access_evaluation_is_cached_apart(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect()
        assert credential.get_token(GRAPH).token != credential.get_token(GRAPH, enable_cae=True).token
        assert "cp1" in entra.requests[1].form["claims"].lower()

    def test_for_another_tenant_is_refused(self, connect: Connect) -> None:
        with pytest.raises(ConfigError, match="is for the tenant contoso"):
            connect().get_token(GRAPH, tenant_id="fabrikam.example")

    def test_from_ad_fs(self, connect: Connect, entra: EntraEmulator) -> None:
        assert connect(tenant="adfs", algorithm="auto").get_token(GRAPH).token
        assert jws.extract_compact(only_assertion(entra).encode()).headers()["alg"] == "RS256"

    def test_from_ad_fs_with_ps256_is_refused_before_anything_is_sent(
        self, connect: Connect, entra: EntraEmulator
    ) -> None:
        with pytest.raises(ConfigError, match="AD FS"):
            connect(tenant="adfs", algorithm="PS256")
        assert entra.requests == []


class TestAssertion:
    def test_is_exactly_what_entra_documents(self, connect: Connect, entra: EntraEmulator, hsm_key: SoftHsmKey) -> None:
        before = int(time.time())
        connect().get_token(GRAPH)
        token = jwt.decode(only_assertion(entra), public_key(hsm_key), algorithms=["RS256"])
        assert hsm_key.certificate is not None
        certificate = x509.load_der_x509_certificate(hsm_key.certificate)
        thumbprint = certificate.fingerprint(hashes.SHA1())  # noqa: S303  # what x5t is
        assert token.header == {
            "alg": "RS256",
            "typ": "JWT",
            "x5t": base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode(),
        }
        claims = dict(token.claims)
        issued = claims["nbf"]
        assert before <= issued <= time.time()
        assert uuid.UUID(claims.pop("jti")).version == 4
        assert claims == {
            "aud": entra.token_endpoint(TENANT),
            "iss": CLIENT,
            "sub": CLIENT,
            "nbf": issued,
            "iat": issued,
            "exp": issued + 600,
        }
        assert all(type(claims[name]) is int for name in ("nbf", "iat", "exp"))

    @pytest.mark.parametrize("algorithm", ["PS256", "auto"])
    def test_by_ps256_names_the_sha256_thumbprint(
        self, algorithm: str, connect: Connect, entra: EntraEmulator, hsm_key: SoftHsmKey
    ) -> None:
        connect(algorithm=algorithm).get_token(GRAPH)
        header = jwt.decode(only_assertion(entra), public_key(hsm_key), algorithms=["PS256"]).header
        assert hsm_key.certificate is not None
        digest = hashlib.sha256(hsm_key.certificate).digest()
        assert header["x5t#S256"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        assert "x5t" not in header

    def test_carries_the_chain_on_request(self, connect: Connect, entra: EntraEmulator, hsm_key: SoftHsmKey) -> None:
        connect(send_chain=True).get_token(GRAPH)
        # joserfc reads no header this long without being told to.
        encoded = only_assertion(entra).split(".")[0]
        header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        assert [base64.b64decode(entry) for entry in header["x5c"]] == [hsm_key.certificate]

    def test_is_sent_again_unchanged_when_entra_is_unwell(self, connect: Connect, entra: EntraEmulator) -> None:
        entra.answer_next(Unavailable(retry_after="0"))
        connect().get_token(GRAPH)
        first, second = entra.requests
        assert first.form["client_assertion"] == second.form["client_assertion"]

    def test_is_new_for_each_token(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect()
        credential.get_token(GRAPH)
        credential.get_token(VAULT)
        assert entra.requests[0].form["client_assertion"] != entra.requests[1].form["client_assertion"]

    def test_needs_no_network(self, connect: Connect, entra: EntraEmulator, hsm_key: SoftHsmKey) -> None:
        assertion = connect(authority="https://login.example", lifetime=60).assertion()
        claims = jwt.decode(assertion, public_key(hsm_key), algorithms=["RS256"]).claims
        assert claims["aud"] == f"https://login.example/{TENANT}/oauth2/v2.0/token"
        assert claims["exp"] - claims["nbf"] == 60
        assert entra.requests == []

    def test_follows_a_renewed_certificate_file(
        self, connect: Connect, softhsm: SoftHsm, hsm_key: SoftHsmKey, tmp_path: Path
    ) -> None:
        file = tmp_path / "certificate.der"
        thumbprints = []
        file.write_bytes(softhsm.issue_certificate(hsm_key.public_key))
        credential = connect(certificate=file)
        for _ in range(2):
            thumbprints.append(jws.extract_compact(credential.assertion().encode()).headers()["x5t"])
            renewed = tmp_path / "renewed"
            renewed.write_bytes(softhsm.issue_certificate(hsm_key.public_key))
            renewed.replace(file)
        assert thumbprints[0] != thumbprints[1]


class TestFailure:
    def test_a_refused_pin_is_presented_once_over_all_resources(self, connect: Connect, entra: EntraEmulator) -> None:
        pin = CountingPin("not-the-pin")
        credential = connect(pin=pin)
        for scope in (GRAPH, VAULT, GRAPH):
            with pytest.raises(PinIncorrect):
                credential.get_token(scope)
        assert pin.asked == 1
        assert entra.requests == []

    def test_a_refused_pin_is_presented_once_by_twenty_threads(self, connect: Connect) -> None:
        pin = CountingPin("not-the-pin")
        credential = connect(pin=pin)

        def attempt(number: int) -> bool:
            try:
                credential.get_token(GRAPH if number % 2 else VAULT)
            except PinIncorrect:
                return True
            return False

        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(attempt, range(20)))
        assert pin.asked == 1

    def test_without_anybody_to_ask_says_which_sources_there_are(
        self, softhsm: SoftHsm, hsm_key: SoftHsmKey, entra: EntraEmulator
    ) -> None:
        credential = HsmCredential(
            TENANT, CLIENT, hsm_key.uri, module=softhsm.module, module_environment=softhsm.environment
        )
        with pytest.raises(PinUnavailable) as caught:
            credential.assertion()
        assert "credential:NAME" in str(caught.value.hint)

    def test_an_unregistered_certificate_is_explained(
        self, connect: Connect, softhsm: SoftHsm, hsm_key: SoftHsmKey, tmp_path: Path
    ) -> None:
        file = tmp_path / "other.der"
        file.write_bytes(softhsm.issue_certificate(hsm_key.public_key))
        with pytest.raises(EntraError) as caught:
            connect(certificate=file).get_token(GRAPH)
        assert caught.value.aadsts == 700027
        assert caught.value.correlation_id
        assert "upload" in str(caught.value.hint)

    def test_the_assertion_is_in_no_message_and_no_log(
        self, connect: Connect, entra: EntraEmulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        credential = connect()
        token = credential.get_token(GRAPH).token
        entra.answer_next(Refused(700024, "invalid_client", f"AADSTS700024: {only_assertion(entra)}"))
        with pytest.raises(EntraError) as caught:
            credential.get_token(VAULT)
        shown = caplog.text + repr(caught.value) + str(caught.value.hint) + repr(credential.__dict__)
        for secret in (token, only_assertion_parts(entra)):
            assert secret not in shown
        assert not re.search(r"eyJ[A-Za-z0-9_-]{20}", shown)

    def test_the_last_good_token_is_kept_while_entra_is_down(
        self, connect: Connect, entra: EntraEmulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        credential = connect(network_timeout=0.2)
        good = credential.get_token(GRAPH)
        # Due for renewal, and not yet expired.
        ageing = replace(good, expires_on=int(time.time()) + 100)
        credential._cache.put((GRAPH, False), ageing)
        entra.answer_next(Unavailable(retry_after="60"))
        assert credential.get_token(GRAPH) is ageing
        assert "keeping the last token" in caplog.text

    def test_an_expired_token_is_never_returned(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect(network_timeout=0.2)
        credential._cache.put((GRAPH, False), replace(credential.get_token(GRAPH), expires_on=int(time.time()) - 1))
        entra.answer_next(Unavailable(retry_after="60"))
        with pytest.raises(NetworkError):
            credential.get_token(GRAPH)

    def test_it_can_be_used_again_after_close(self, connect: Connect) -> None:
        credential = connect()
        credential.assertion()
        credential.close()
        credential.assertion()


def only_assertion_parts(entra: EntraEmulator) -> str:
    return entra.requests[0].form["client_assertion"].split(".")[2]
