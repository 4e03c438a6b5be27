"""The whole path: a key in SoftHSM signs, the emulator answers, joserfc verifies both."""

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
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from joserfc import jws, jwt
from joserfc.jwk import KeySet, RSAKey

from hsm_signer import AsyncHsmCredential, HsmCredential
from hsm_signer.credential.azure import Options, ProfileKeywords
from hsm_signer.credential.cache import TokenCache
from hsm_signer.errors import ConfigError, EntraError, NetworkError, PinIncorrect, PinUnavailable, ScopeError
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.entra.answers import Refused, Unavailable
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.counted_pin import CountedPin
from tests.support.names import CLIENT, GRAPH, OTHER_TENANT, TENANT, VAULT
from tests.support.processes import workers_of_this_process

UNKNOWN = "https://unknown.example/.default"


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
        for tenant in (TENANT, OTHER_TENANT, "adfs"):
            entra.register(CLIENT, hsm_key.certificate, tenant=tenant)
        yield entra


@pytest.fixture(autouse=True)
def _forget_requests(entra: EntraEmulator) -> None:
    entra.requests.clear()


Connect = Callable[..., HsmCredential]


@pytest.fixture
def connect(softhsm: SoftHsm, hsm_key: SoftHsmKey, entra: EntraEmulator) -> Iterator[Connect]:
    """Return a function that creates a credential for the emulator; all are closed after the test."""
    made: list[HsmCredential] = []

    def connect(
        *, tenant: str = TENANT, key: str | list[str] = hsm_key.uri, pin: CountedPin | None = None, **settings: object
    ) -> HsmCredential:
        defaults: ProfileKeywords = {
            "module": softhsm.module,
            "module_environment": softhsm.environment,
            "authority": entra.authority,
            "ca_bundle": str(entra.ca_file),
        }
        merged: ProfileKeywords = {**defaults, **settings}  # type: ignore[typeddict-item]  # checked at run time
        credential = HsmCredential(tenant, CLIENT, key, prompt=pin or CountedPin(softhsm.pin, attended=False), **merged)
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
    def test_a_token_verifies_with_the_published_keys(self, connect: Connect, entra: EntraEmulator) -> None:
        token = connect().get_token(GRAPH)
        trust = ssl.create_default_context(cafile=str(entra.ca_file))
        with httpx.Client(verify=trust, trust_env=False) as client:
            published = client.get(f"{entra.authority}/{TENANT}/discovery/v2.0/keys").json()
        claims = jwt.decode(token.token, KeySet.import_key_set(published), algorithms=["RS256"]).claims
        assert claims["aud"] == "https://graph.microsoft.com"
        assert abs(token.expires_on - claims["exp"]) <= 2

    def test_the_second_token_comes_from_the_cache(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect()
        assert credential.get_token(GRAPH).token == credential.get_token(GRAPH).token
        assert len(entra.requests) == 1

    def test_thirty_threads_cause_one_request(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect()
        with ThreadPoolExecutor(30) as pool:
            tokens = set(pool.map(lambda _: credential.get_token(GRAPH).token, range(30)))
        assert len(tokens) == 1
        assert len(entra.requests) == 1

    def test_each_resource_gets_its_own_token(self, connect: Connect) -> None:
        credential = connect()
        assert credential.get_token(GRAPH).token != credential.get_token(VAULT).token

    def test_a_claims_challenge_bypasses_the_cache_and_replaces_the_cached_token(
        self, connect: Connect, entra: EntraEmulator
    ) -> None:
        credential = connect()
        old = credential.get_token(GRAPH)
        new = credential.get_token(GRAPH, claims='{"access_token": {}}')
        assert new.token != old.token
        assert entra.requests[1].form["claims"] == '{"access_token": {}}'
        assert credential.get_token(GRAPH).token == new.token

    def test_tokens_for_continuous_access_evaluation_are_cached_separately(
        self, connect: Connect, entra: EntraEmulator
    ) -> None:
        credential = connect()
        assert credential.get_token(GRAPH).token != credential.get_token(GRAPH, enable_cae=True).token
        assert "cp1" in entra.requests[1].form["claims"].lower()

    @pytest.mark.parametrize(
        "scopes", [(), (GRAPH, VAULT), ("https://graph.microsoft.com/User.Read",)], ids=["none", "two", "a permission"]
    )
    def test_anything_but_scopes_of_one_resource_is_refused_like_in_the_sdks(
        self, scopes: tuple[str, ...], connect: Connect, entra: EntraEmulator
    ) -> None:
        credential = connect()
        for ask in (credential.get_token, credential.get_token_info):
            with pytest.raises(ValueError, match="scope") as caught:
                ask(*scopes)
            assert isinstance(caught.value, ScopeError)
            assert caught.value.hint
        assert entra.requests == []

    def test_ad_fs_issues_a_token(self, connect: Connect, entra: EntraEmulator) -> None:
        assert connect(tenant="adfs", algorithm="auto").get_token(GRAPH).token
        assert jws.extract_compact(only_assertion(entra).encode()).headers()["alg"] == "RS256"

    def test_ps256_with_ad_fs_is_refused_before_a_request(self, connect: Connect, entra: EntraEmulator) -> None:
        with pytest.raises(ConfigError, match="AD FS"):
            connect(tenant="adfs", algorithm="PS256")
        assert entra.requests == []


class TestAnotherTenant:
    @pytest.mark.parametrize("allowed", [[OTHER_TENANT], ["*"], ["Fabrikam.Example"]])
    def test_an_allowed_tenant_gets_an_assertion_for_its_own_audience(
        self, allowed: list[str], connect: Connect, entra: EntraEmulator, hsm_key: SoftHsmKey
    ) -> None:
        connect(additionally_allowed_tenants=allowed).get_token(GRAPH, tenant_id=OTHER_TENANT)
        claims = jwt.decode(only_assertion(entra), public_key(hsm_key), algorithms=["RS256"]).claims
        assert claims["aud"] == entra.token_endpoint(OTHER_TENANT)
        assert [request.tenant for request in entra.requests] == [OTHER_TENANT]

    def test_tokens_of_another_tenant_are_cached_separately(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect(additionally_allowed_tenants=["*"])
        asked = [None, OTHER_TENANT, TENANT, OTHER_TENANT]
        tokens = [credential.get_token(GRAPH, tenant_id=tenant).token for tenant in asked]
        assert [request.tenant for request in entra.requests] == [TENANT, OTHER_TENANT]
        assert tokens[:2] == tokens[2:]

    @pytest.mark.parametrize("allowed", [[], ["another.example"]])
    def test_a_tenant_that_is_not_allowed_is_refused_with_a_hint(
        self, allowed: list[str], connect: Connect, entra: EntraEmulator
    ) -> None:
        with pytest.raises(ConfigError, match="is for the tenant contoso") as caught:
            connect(additionally_allowed_tenants=allowed).get_token(GRAPH, tenant_id=OTHER_TENANT)
        assert "additionally_allowed_tenants" in str(caught.value.hint)
        assert entra.requests == []

    def test_an_invalid_tenant_is_refused_even_if_all_are_allowed(self, connect: Connect) -> None:
        with pytest.raises(ConfigError, match="neither a GUID nor a domain"):
            connect(additionally_allowed_tenants=["*"]).get_token(GRAPH, tenant_id="../evil")

    def test_the_credentials_own_tenant_is_recognized_in_any_spelling(
        self, connect: Connect, entra: EntraEmulator
    ) -> None:
        connect().get_token(GRAPH, tenant_id=TENANT.upper())
        assert [request.tenant for request in entra.requests] == [TENANT]

    def test_ad_fs_ignores_another_tenant(self, connect: Connect, entra: EntraEmulator) -> None:
        connect(tenant="adfs").get_token(GRAPH, tenant_id=OTHER_TENANT)
        assert [request.tenant for request in entra.requests] == ["adfs"]

    def test_another_tenant_is_refused_if_the_token_endpoint_is_set(
        self, connect: Connect, entra: EntraEmulator
    ) -> None:
        credential = connect(token_endpoint=entra.token_endpoint(TENANT), additionally_allowed_tenants=["*"])
        with pytest.raises(ConfigError, match="gets tokens only from"):
            credential.get_token(GRAPH, tenant_id=OTHER_TENANT)


class TestTokenInfo:
    def test_the_token_info_has_the_type_and_the_time_to_renew(self, connect: Connect, hsm_key: SoftHsmKey) -> None:
        assert hsm_key.certificate is not None
        with EntraEmulator(refresh_in=1800) as entra:
            entra.register(CLIENT, hsm_key.certificate, tenant=TENANT)
            info = connect(authority=entra.authority, ca_bundle=entra.ca_file).get_token_info(GRAPH)
        assert info.token_type == "Bearer"
        assert info.refresh_on is not None
        assert info.expires_on - info.refresh_on == 3599 - 1800

    def test_get_token_and_get_token_info_return_the_same_token(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect()
        assert credential.get_token_info(GRAPH, options={}).token == credential.get_token(GRAPH).token
        assert len(entra.requests) == 1

    def test_known_options_are_used_and_others_ignored(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect(additionally_allowed_tenants=["*"])
        options: Any = {"claims": '{"id_token": {}}', "tenant_id": OTHER_TENANT, "enable_cae": True, "pop": {}}
        credential.get_token_info(GRAPH, options=options)
        (request,) = entra.requests
        assert request.tenant == OTHER_TENANT
        assert json.loads(request.form["claims"]) == {
            "id_token": {},
            "access_token": {"xms_cc": {"values": ["CP1"]}},
        }


class TestIsolated:
    def test_a_separate_process_signs(self, connect: Connect, entra: EntraEmulator) -> None:
        connect(isolated=True).get_token(GRAPH)
        assert len(workers_of_this_process()) == 1
        assert [request.status for request in entra.requests] == [200]

    def test_the_certificate_can_be_a_file(
        self, connect: Connect, softhsm: SoftHsm, hsm_key: SoftHsmKey, tmp_path: Path
    ) -> None:
        file = tmp_path / "certificate.der"
        file.write_bytes(softhsm.issue_certificate(hsm_key.public_key))
        assertion = connect(isolated=True, certificate=file).assertion()
        thumbprint = hashlib.sha1(file.read_bytes()).digest()  # noqa: S324  # what x5t is
        header = jws.extract_compact(assertion.encode()).headers()
        assert header["x5t"] == base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()

    def test_the_pin_is_asked_for_once_in_the_callers_process(self, connect: Connect, softhsm: SoftHsm) -> None:
        pin = CountedPin(softhsm.pin, attended=False)
        credential = connect(isolated=True, pin=pin)
        for _ in range(3):
            credential.assertion()
        assert pin.times == 1

    def test_a_refused_pin_is_sent_once(self, connect: Connect) -> None:
        pin = CountedPin("not-the-pin", attended=False)
        credential = connect(isolated=True, pin=pin)
        for _ in range(3):
            with pytest.raises(PinIncorrect):
                credential.assertion()
        assert pin.times == 1

    def test_warnings_of_the_separate_process_are_logged_in_this_one(
        self, connect: Connect, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(PinIncorrect):
            connect(isolated=True, pin=CountedPin("not-the-pin", attended=False), pin_record=False).assertion()
        caplog.clear()
        connect(isolated=True).assertion()
        assert "A wrong PIN was entered since the last login" in caplog.text
        assert capfd.readouterr().err == ""

    def test_the_next_key_signs_if_the_first_is_missing(
        self, connect: Connect, hsm_key: SoftHsmKey, entra: EntraEmulator
    ) -> None:
        connect(isolated=True, key=["pkcs11:token=nowhere", hsm_key.uri]).get_token(GRAPH)
        assert [request.status for request in entra.requests] == [200]

    def test_closing_ends_the_process_and_the_next_assertion_starts_a_new_one(self, connect: Connect) -> None:
        credential = connect(isolated=True)
        credential.assertion()
        (first,) = workers_of_this_process()
        credential.close()
        assert workers_of_this_process() == []
        credential.assertion()
        assert workers_of_this_process() != [first]


class TestConstruction:
    @pytest.fixture
    def variables(
        self, softhsm: SoftHsm, hsm_key: SoftHsmKey, entra: EntraEmulator, monkeypatch: pytest.MonkeyPatch
    ) -> dict[str, str]:
        """Environment variables that describe a complete credential."""
        variables = {
            "HSM_SIGNER_KEY": hsm_key.uri,
            "HSM_SIGNER_MODULE": str(softhsm.module),
            "HSM_SIGNER_PIN_SOURCE": "env:DEVICE_PIN",
            "HSM_SIGNER_CA_BUNDLE": str(entra.ca_file),
            "DEVICE_PIN": softhsm.pin,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": CLIENT,
            "AZURE_AUTHORITY_HOST": entra.authority,
            **softhsm.environment,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return variables

    @pytest.fixture
    def config(self, softhsm: SoftHsm, hsm_key: SoftHsmKey, entra: EntraEmulator, tmp_path: Path) -> Path:
        """A configuration with the profile "prod"."""
        (tmp_path / "pin").write_text(softhsm.pin)
        (tmp_path / "pin").chmod(0o600)
        file = tmp_path / "config.toml"
        file.write_text(
            f"""[profile.prod]
tenant = "{TENANT}"
client_id = "{CLIENT}"
key = "{hsm_key.uri}"
module = "{softhsm.module}"
module_environment = {{ SOFTHSM2_CONF = "{softhsm.configuration}" }}
pin_source = "file:pin"
authority = "{entra.authority}"
ca_bundle = "{entra.ca_file}"
"""
        )
        return file

    def test_a_credential_is_created_from_a_profile_in_a_file(self, config: Path, entra: EntraEmulator) -> None:
        with HsmCredential.from_profile("prod", config=config) as credential:
            credential.get_token(GRAPH)
        assert [request.status for request in entra.requests] == [200]

    def test_a_credential_is_created_from_a_profile_in_the_default_file(
        self, config: Path, entra: EntraEmulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HSM_SIGNER_CONFIG", str(config))
        with HsmCredential.from_profile("prod") as credential:
            credential.get_token(GRAPH)
        assert [request.status for request in entra.requests] == [200]

    def test_a_missing_profile_is_named(self, config: Path) -> None:
        with pytest.raises(ConfigError, match=r"no profile 'dev'\. It has prod"):
            HsmCredential.from_profile("dev", config=str(config))

    def test_arguments_of_the_program_complete_a_profile(self, config: Path) -> None:
        options: Options = {"additionally_allowed_tenants": ["*"], "isolated": True}
        with HsmCredential.from_profile("prod", config=config, **options) as credential:
            credential.get_token(GRAPH, tenant_id=OTHER_TENANT)
            assert len(workers_of_this_process()) == 1

    def test_a_credential_is_created_from_the_environment(
        self, variables: dict[str, str], entra: EntraEmulator
    ) -> None:
        with HsmCredential.from_environment() as credential:
            credential.get_token(GRAPH)
        assert [request.status for request in entra.requests] == [200]

    def test_from_environment_reads_no_file(
        self, variables: dict[str, str], config: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HSM_SIGNER_CONFIG", str(config))
        monkeypatch.setenv("HSM_SIGNER_PROFILE", "prod")
        monkeypatch.delenv("HSM_SIGNER_KEY")
        with pytest.raises(ConfigError, match="No key is set") as caught:
            HsmCredential.from_environment()
        assert "HSM_SIGNER_KEY" in str(caught.value.hint)

    @pytest.mark.parametrize("kind", [HsmCredential, AsyncHsmCredential])
    def test_both_credential_classes_can_be_created_in_each_way(
        self, kind: type[HsmCredential | AsyncHsmCredential], variables: dict[str, str], config: Path
    ) -> None:
        made = [kind(TENANT, CLIENT, "pkcs11:"), kind.from_profile("prod", config=config), kind.from_environment()]
        assert [type(credential) for credential in made] == [kind] * 3


class TestAssertion:
    def test_an_assertion_is_exactly_what_entra_documents(
        self, connect: Connect, entra: EntraEmulator, hsm_key: SoftHsmKey
    ) -> None:
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
    def test_an_assertion_with_ps256_has_the_sha256_thumbprint(
        self, algorithm: str, connect: Connect, entra: EntraEmulator, hsm_key: SoftHsmKey
    ) -> None:
        connect(algorithm=algorithm).get_token(GRAPH)
        header = jwt.decode(only_assertion(entra), public_key(hsm_key), algorithms=["PS256"]).header
        assert hsm_key.certificate is not None
        digest = hashlib.sha256(hsm_key.certificate).digest()
        assert header["x5t#S256"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        assert "x5t" not in header

    def test_an_assertion_carries_the_chain_on_request(
        self, connect: Connect, entra: EntraEmulator, hsm_key: SoftHsmKey
    ) -> None:
        connect(send_chain=True).get_token(GRAPH)
        # joserfc reads a header this long only if it is allowed to.
        encoded = only_assertion(entra).split(".")[0]
        header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        assert [base64.b64decode(entry) for entry in header["x5c"]] == [hsm_key.certificate]

    def test_a_retry_while_entra_is_unavailable_sends_the_same_assertion(
        self, connect: Connect, entra: EntraEmulator
    ) -> None:
        entra.answer_next(Unavailable(retry_after="0"))
        connect().get_token(GRAPH)
        first, second = entra.requests
        assert first.form["client_assertion"] == second.form["client_assertion"]

    def test_each_token_request_has_a_new_assertion(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect()
        credential.get_token(GRAPH)
        credential.get_token(VAULT)
        assert entra.requests[0].form["client_assertion"] != entra.requests[1].form["client_assertion"]

    def test_building_an_assertion_needs_no_network(
        self, connect: Connect, entra: EntraEmulator, hsm_key: SoftHsmKey
    ) -> None:
        assertion = connect(authority="https://login.example", lifetime=60).assertion()
        claims = jwt.decode(assertion, public_key(hsm_key), algorithms=["RS256"]).claims
        assert claims["aud"] == f"https://login.example/{TENANT}/oauth2/v2.0/token"
        assert claims["exp"] - claims["nbf"] == 60
        assert entra.requests == []

    def test_an_assertion_follows_a_renewed_certificate_file(
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
    def test_a_refused_pin_is_sent_once_for_all_resources(self, connect: Connect, entra: EntraEmulator) -> None:
        pin = CountedPin("not-the-pin", attended=False)
        credential = connect(pin=pin)
        for scope in (GRAPH, VAULT, GRAPH):
            with pytest.raises(PinIncorrect):
                credential.get_token(scope)
        assert pin.times == 1
        assert entra.requests == []

    def test_a_refused_pin_is_sent_once_by_twenty_threads(self, connect: Connect) -> None:
        pin = CountedPin("not-the-pin", attended=False)
        credential = connect(pin=pin)

        def attempt(number: int) -> bool:
            try:
                credential.get_token(GRAPH if number % 2 else VAULT)
            except PinIncorrect:
                return True
            return False

        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(attempt, range(20)))
        assert pin.times == 1

    def test_the_error_without_a_pin_source_lists_the_possible_sources(
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
        assert "Upload the certificate" in str(caught.value.hint)

    def test_no_message_and_no_log_contains_the_assertion(
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
        credential = connect(network_timeout=5)
        good = credential.get_token(GRAPH)
        # Due for renewal, but not expired yet.
        set_expiry(credential, int(time.time()) + 100)
        entra.answer_next(Unavailable(retry_after="60"))
        assert credential.get_token(GRAPH).token == good.token
        assert "The current token is valid" in caplog.text

    def test_an_expired_token_is_never_returned(self, connect: Connect, entra: EntraEmulator) -> None:
        credential = connect(network_timeout=5)
        set_expiry(credential, int(time.time()) - 1)
        entra.answer_next(Unavailable(retry_after="60"))
        with pytest.raises(NetworkError):
            credential.get_token(GRAPH)

    def test_a_credential_can_be_used_again_after_close(self, connect: Connect) -> None:
        credential = connect()
        credential.assertion()
        credential.close()
        credential.assertion()


@pytest.fixture
def signatures(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """Count the device's signatures since the test began."""
    caplog.set_level(logging.DEBUG, "hsm_signer.device.signer")
    return lambda: sum(record.getMessage().startswith("signed ") for record in caplog.records)


class TestRefusedScope:
    def test_a_refused_scope_costs_one_signature_and_one_request(
        self, connect: Connect, entra: EntraEmulator, signatures: Callable[[], int]
    ) -> None:
        credential = connect()
        assert [refused_number(credential, UNKNOWN) for _ in range(20)] == [500011] * 20
        assert (signatures(), len(entra.requests)) == (1, 1)

    def test_a_refusal_is_remembered_separately_for_each_tenant_challenge_and_kind_of_token(
        self, connect: Connect, entra: EntraEmulator, signatures: Callable[[], int]
    ) -> None:
        credential = connect(additionally_allowed_tenants=["*"])
        asked: list[dict[str, Any]] = [
            {},
            {"tenant_id": OTHER_TENANT},
            {"enable_cae": True},
            {"claims": "{}"},
            {"claims": '{"access_token": {}}'},
        ]
        for options in [*asked, *asked]:
            refused_number(credential, UNKNOWN, **options)
        assert (signatures(), len(entra.requests)) == (5, 5)

    def test_a_refused_scope_does_not_affect_another(self, connect: Connect) -> None:
        credential = connect()
        refused_number(credential, UNKNOWN)
        assert credential.get_token(GRAPH).token

    def test_a_refused_scope_is_requested_again_after_some_seconds(
        self, connect: Connect, entra: EntraEmulator
    ) -> None:
        now = time.time()
        credential = connect()
        credential._tokens._cache = TokenCache(lambda: now)
        entra.answer_next(Refused(7000112, "unauthorized_client", "Application is disabled."))
        assert [refused_number(credential, GRAPH) for _ in range(2)] == [7000112] * 2
        now += 5
        assert credential.get_token(GRAPH).token
        assert [request.status for request in entra.requests] == [400, 200]

    def test_a_certificate_that_is_not_registered_yet_is_tried_on_each_request(
        self, connect: Connect, entra: EntraEmulator, signatures: Callable[[], int]
    ) -> None:
        credential = connect()
        entra.answer_next(Refused(700027, "invalid_client", "The key was not found."))
        assert refused_number(credential, GRAPH) == 700027
        assert credential.get_token(GRAPH).token
        assert signatures() == 2


def refused_number(credential: HsmCredential, scope: str, **options: Any) -> int | None:
    """Ask for a token that Entra refuses, and return the number of its error."""
    with pytest.raises(EntraError) as caught:
        credential.get_token(scope, **options)
    return caught.value.aadsts


def set_expiry(credential: HsmCredential, expires_on: int) -> None:
    """Set when the credential's cached token expires."""
    tokens = credential._tokens
    wanted = tokens.build_query((GRAPH,))
    aged = replace(tokens.get(wanted), expires_on=expires_on)
    tokens._cache.get(wanted, lambda: aged, "another expiry")


def only_assertion_parts(entra: EntraEmulator) -> str:
    return entra.requests[0].form["client_assertion"].split(".")[2]
