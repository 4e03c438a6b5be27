"""What Graph in the emulator refuses: one wrong thing a request."""

import base64
from collections.abc import Callable, Mapping

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import RSAKey

from hsm_signer.testing import EntraEmulator
from hsm_signer.testing.entra.graph_rules import check_caller
from hsm_signer.testing.entra.proof_rules import GraphRefused
from tests.support.certificates import PrivateKey
from tests.support.names import CLIENT, OTHER_CLIENT
from tests.testing.conftest import (
    AUDIENCE,
    EXPIRED,
    EXPIRED_KEY,
    NEW,
    NEW_KEY,
    NOW,
    OLD,
    OLD_KEY,
    STRANGE_KEY,
    TENANT,
    Caller,
    Clock,
    base64url,
    code,
    der,
    make_certificate,
    reason,
    sign,
    sign_by_hand,
    x5t,
)

SIGNING_KEY = RSAKey.generate_key(2048)


class TestAddKeyRefuses:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            pytest.param({"proof": None}, (400, "Request_BadRequest"), id="proof is null"),
            pytest.param({"keyCredential": None}, (400, "Request_BadRequest"), id="credential is null"),
            pytest.param({"keyCredential": {}}, (400, "Request_BadRequest"), id="credential is empty"),
            pytest.param({"passwordCredential": {}}, (400, "Request_BadRequest"), id="a password"),
            pytest.param({"keyId": "1"}, (400, "Request_BadRequest"), id="an unknown member"),
        ],
    )
    def test_a_wrong_member_is_refused(
        self, caller: Caller, changes: Mapping[str, object], expected: tuple[int, str]
    ) -> None:
        assert code(caller.post("addKey", {**caller.body(), **changes})) == expected
        assert caller.held() == {OLD, EXPIRED}

    @pytest.mark.parametrize("missing", ["keyCredential", "passwordCredential", "proof"])
    def test_a_missing_member_is_refused(self, caller: Caller, missing: str) -> None:
        body = {name: value for name, value in caller.body().items() if name != missing}
        response = caller.post("addKey", body)
        assert code(response) == (400, "Request_BadRequest")
        assert missing in response.json()["error"]["message"]

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"type": "X509CertAndPassword"}, id="another type"),
            pytest.param({"usage": "Sign"}, id="another usage"),
            pytest.param({"key": "MIIC"}, id="no certificate"),
            pytest.param({"key": base64url(der(NEW)) + "_"}, id="base64url"),
            pytest.param({"key": base64.encodebytes(der(NEW)).decode()}, id="base64 in lines"),
            pytest.param({"key": NEW.public_bytes(Encoding.PEM).decode()}, id="PEM"),
            pytest.param({"key": base64.b64encode(NEW.public_bytes(Encoding.PEM)).decode()}, id="base64 of PEM"),
            pytest.param({"key": base64.b64encode(der(NEW) + b"\0").decode()}, id="an octet too many"),
            pytest.param({"key": 1}, id="a number"),
            pytest.param({"displayName": None}, id="a name that is null"),
            pytest.param({"endDateTime": "2030-01-01T00:00:00Z"}, id="a date of its own"),
        ],
    )
    def test_a_wrong_credential_is_refused(self, caller: Caller, changes: Mapping[str, object]) -> None:
        body = caller.body()
        body["keyCredential"] = {**body["keyCredential"], **changes}  # type: ignore[dict-item]
        assert code(caller.post("addKey", body)) == (400, "Request_BadRequest")
        assert caller.held() == {OLD, EXPIRED}

    @pytest.mark.parametrize(
        "key",
        [
            pytest.param(rsa.generate_private_key(65537, 1024), id="RSA of 1024 bits"),  # noqa: S505 - to be refused
            pytest.param(ec.generate_private_key(ec.SECP256R1()), id="EC"),
        ],
    )
    def test_a_key_that_entra_could_not_use_is_refused(self, caller: Caller, key: PrivateKey) -> None:
        assert code(caller.add(make_certificate(key))) == (400, "Request_BadRequest")

    @pytest.mark.parametrize(
        ("days", "expected"),
        [((-9, -2), "KeyCredentialsInvalidEndDate"), ((1, 9), "KeyCredentialsInvalidStartDate")],
    )
    def test_a_certificate_that_is_not_valid_now_is_refused(
        self, caller: Caller, days: tuple[float, float], expected: str
    ) -> None:
        assert code(caller.add(make_certificate(NEW_KEY, days))) == (400, expected)

    def test_a_certificate_that_the_application_has_already_is_refused(self, caller: Caller) -> None:
        assert code(caller.add(OLD)) == (400, "Request_MultipleObjectsWithSameKeyValue")

    @pytest.mark.parametrize(
        "body",
        [b"", b"[]", b"{", b'{"proof":"a","proof":"b"}', b'{"proof":NaN}', b"\xff"],
        ids=["nothing", "an array", "cut short", "a member twice", "not a number", "not UTF-8"],
    )
    def test_a_body_that_is_not_a_json_object_is_refused(self, caller: Caller, body: bytes) -> None:
        assert code(caller.post("addKey", body)) == (400, "BadRequest")

    def test_another_content_type_is_refused(self, caller: Caller) -> None:
        caller.headers["Content-Type"] = "text/plain"
        assert code(caller.add()) == (400, "BadRequest")


class TestProof:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            pytest.param({"aud": None}, "'aud' is missing", id="no audience"),
            pytest.param({"aud": "00000003-0000-0000-c000-000000000000"}, "'aud'", id="Microsoft Graph's audience"),
            pytest.param({"aud": [AUDIENCE]}, "'aud'", id="an array of audiences"),
            pytest.param({"iss": CLIENT}, "'iss'", id="the client id as issuer"),
            pytest.param({"iss": None}, "'iss' is missing", id="no issuer"),
            pytest.param({"nbf": None}, "'nbf' is missing", id="no start"),
            pytest.param({"exp": None}, "'exp' is missing", id="no end"),
            pytest.param({"nbf": float(NOW)}, "'nbf' is not an integer", id="a start with a fraction"),
            pytest.param({"exp": str(NOW + 600)}, "'exp' is not an integer", id="an end in a string"),
            pytest.param({"exp": NOW + 601}, "longer than 600", id="a second too long"),
            pytest.param({"nbf": NOW + 1}, "not valid now", id="not yet"),
            pytest.param({"nbf": NOW - 600, "exp": NOW}, "not valid now", id="no more"),
        ],
    )
    def test_a_wrong_claim_is_refused(self, caller: Caller, changes: Mapping[str, object], expected: str) -> None:
        assert expected in reason(caller.add(proof=caller.proof(**changes)))
        assert caller.held() == {OLD, EXPIRED}

    def test_additional_claims_are_accepted(self, caller: Caller) -> None:
        assert caller.add(proof=caller.proof(jti="1", iat=NOW, sub="anyone")).status_code == 200

    @pytest.mark.parametrize(
        ("header", "key", "expected"),
        [
            pytest.param({"alg": "PS256", "x5t": x5t(OLD)}, OLD_KEY, "RS256", id="PS256"),
            pytest.param({"alg": "RS256", "typ": "at+jwt"}, OLD_KEY, "'typ'", id="another type"),
            pytest.param({"alg": "RS256", "x5t": x5t(NEW)}, OLD_KEY, "no certificate", id="an unknown thumbprint"),
            pytest.param({"alg": "RS256", "x5t": x5t(OLD) + "="}, OLD_KEY, "padded", id="a padded thumbprint"),
            pytest.param({"alg": "RS256", "x5t": x5t(OLD)}, STRANGE_KEY, "signature", id="another key"),
            pytest.param({"alg": "RS256"}, STRANGE_KEY, "signature", id="a key that is not registered"),
            pytest.param({"alg": "RS256", "x5t": x5t(EXPIRED)}, EXPIRED_KEY, "valid now", id="an expired certificate"),
            pytest.param({"alg": "RS256"}, EXPIRED_KEY, "signature", id="an expired certificate, not named"),
        ],
    )
    def test_a_wrong_header_or_key_is_refused(
        self, caller: Caller, header: Mapping[str, object], key: rsa.RSAPrivateKey, expected: str
    ) -> None:
        assert expected in reason(caller.add(proof=sign(caller.claims(), key, header)))

    @pytest.mark.parametrize("header", [{"alg": "RS256"}, {"alg": "RS256", "typ": "JWT", "kid": "any"}])
    def test_a_header_without_thumbprint_is_accepted(self, caller: Caller, header: Mapping[str, object]) -> None:
        assert caller.add(proof=sign(caller.claims(), OLD_KEY, header)).status_code == 200

    def test_a_critical_parameter_is_refused(self, caller: Caller) -> None:
        header = {"alg": "RS256", "crit": ["b64"], "b64": True}
        assert "critical" in reason(caller.add(proof=sign_by_hand(header, caller.claims())))

    def test_a_number_as_thumbprint_is_refused(self, caller: Caller) -> None:
        proof = sign_by_hand({"alg": "RS256", "x5t": 1}, caller.claims())
        assert "'x5t' is not a string" in reason(caller.add(proof=proof))

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            pytest.param(lambda proof: proof + "=", "padded", id="padding"),
            pytest.param(lambda proof: proof + ".", "4 parts", id="a part too many"),
            pytest.param(lambda proof: proof.rpartition(".")[0] + ".", "signature", id="no signature"),
            pytest.param(lambda proof: "", "1 parts", id="nothing"),
        ],
    )
    def test_a_string_that_is_not_a_jwt_is_refused(
        self, caller: Caller, change: Callable[[str], str], expected: str
    ) -> None:
        assert expected in reason(caller.post("addKey", {**caller.body(), "proof": change(caller.proof())}))

    def test_a_proof_for_the_service_principal_names_it_as_issuer(self, caller: Caller, principal: Caller) -> None:
        assert "'iss'" in reason(principal.add(proof=caller.proof()))
        assert principal.add().status_code == 200

    def test_the_applications_key_is_refused_for_its_service_principal(self, caller: Caller) -> None:
        principal = Caller(caller.entra, caller.http, "servicePrincipals", caller.headers)
        assert "no certificate" in reason(principal.add())

    def test_the_error_does_not_contain_the_proof(self, caller: Caller) -> None:
        proof = caller.proof(iss="somebody")
        response = caller.add(proof=proof)
        reason(response)
        assert not any(part in response.text for part in proof.split("."))


class TestCaller:
    def test_needs_a_token(self, caller: Caller) -> None:
        del caller.headers["Authorization"]
        response = caller.add()
        assert code(response) == (401, "InvalidAuthenticationToken")
        assert response.headers["www-authenticate"].startswith("Bearer ")

    @pytest.mark.parametrize("header", ["Basic hunter2", "Bearer", "Bearer a.b.c", "Bearer hunter2"])
    def test_with_an_invalid_authorization_header_is_refused(self, caller: Caller, header: str) -> None:
        caller.headers["Authorization"] = header
        response = caller.read()
        assert code(response) == (401, "InvalidAuthenticationToken")
        assert "hunter2" not in response.text

    @given(st.text())
    def test_with_random_text_is_refused_and_not_a_server_error(self, text: str) -> None:
        for header in (text, f"Bearer {text}"):
            with pytest.raises(GraphRefused):
                check_caller(header, SIGNING_KEY, NOW)

    def test_with_a_token_for_another_resource_is_refused(self, caller: Caller) -> None:
        caller.authorize(resource="https://vault.azure.net")
        assert code(caller.read()) == (401, "InvalidAuthenticationToken")

    def test_with_an_expired_token_is_refused(self, caller: Caller, clock: Clock) -> None:
        clock.now += 3598
        assert caller.read().status_code == 200
        clock.now += 1
        assert code(caller.read()) == (401, "InvalidAuthenticationToken")

    def test_with_another_emulators_token_is_refused(self, caller: Caller, clock: Clock) -> None:
        with EntraEmulator(https=False, clock=clock) as other:
            other.register(CLIENT, der(OLD), tenant=TENANT)
            stranger = Caller(other, caller.http, headers=caller.headers)
            assert code(stranger.read()) == (401, "InvalidAuthenticationToken")

    def test_with_another_applications_token_is_forbidden(self, caller: Caller) -> None:
        caller.authorize(client_id=OTHER_CLIENT)
        for response in (caller.read(), caller.add()):
            assert code(response) == (403, "Authorization_RequestDenied")

    def test_cannot_use_the_client_id_as_the_object_id(self, caller: Caller) -> None:
        response = caller.read(f"{caller.entra.graph}/v1.0/applications/{CLIENT}")
        assert code(response) == (404, "Request_ResourceNotFound")

    def test_finds_no_object_of_another_tenant(self, caller: Caller) -> None:
        caller.entra.register(CLIENT, der(OLD), tenant="fabrikam.com")
        foreign = caller.entra.object_id(CLIENT, tenant="fabrikam.com")
        assert foreign != caller.object_id
        assert code(caller.read(f"{caller.entra.graph}/v1.0/applications/{foreign}")) == (
            404,
            "Request_ResourceNotFound",
        )

    @pytest.mark.parametrize("path", ["users", "applications", "applications/1/addPassword", "applications(appId=1)"])
    def test_gets_an_error_for_other_paths_of_graph(self, caller: Caller, path: str) -> None:
        assert code(caller.read(f"{caller.entra.graph}/v1.0/{path}")) == (400, "BadRequest")

    @pytest.mark.parametrize(("method", "action"), [("GET", "/addKey"), ("PATCH", ""), ("DELETE", "/removeKey")])
    def test_must_use_the_documented_method(self, caller: Caller, method: str, action: str) -> None:
        response = caller.http.request(method, caller.url + action, headers=caller.headers)
        assert code(response) == (405, "Request_BadRequest")
