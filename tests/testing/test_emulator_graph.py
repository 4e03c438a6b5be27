"""Graph in the emulator: what an application reads and changes, and what Graph does on request."""

import base64
import json
import ssl
import threading
import uuid
from datetime import timedelta

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jws

from hsm_signer.errors import ConfigError
from hsm_signer.testing import Disconnected, DripFeed, EntraEmulator, GraphRefusal, Html, Slow, Throttled, Unavailable
from tests.support import certificates
from tests.support.certificates import common_name
from tests.support.names import CLIENT
from tests.testing.conftest import (
    EXPIRED,
    NEW,
    NEW_KEY,
    OLD,
    OLD_KEY,
    STRANGE,
    STRANGE_KEY,
    TENANT,
    Caller,
    Clock,
    code,
    der,
    make_certificate,
    reason,
    sign,
    x5t,
)


class TestReading:
    def test_returns_the_documented_properties_without_the_certificates(
        self, entra: EntraEmulator, caller: Caller
    ) -> None:
        document = caller.read().json()
        assert document.pop("@odata.context") == f"{entra.graph}/v1.0/$metadata#applications/$entity"
        first, _ = document.pop("keyCredentials")
        assert (document["id"], document["appId"]) == (entra.object_id(CLIENT, tenant=TENANT), CLIENT)
        assert set(document) == {"id", "appId", "displayName"}
        key_id = first.pop("keyId")
        assert str(uuid.UUID(key_id)) == key_id
        assert first == {
            "customKeyIdentifier": OLD.fingerprint(hashes.SHA1()).hex().upper(),  # noqa: S303 - as Graph has it
            "displayName": None,
            "startDateTime": "2027-01-14T08:00:00Z",
            "endDateTime": "2027-02-14T08:00:00Z",
            "key": None,
            "type": "AsymmetricX509Cert",
            "usage": "Verify",
        }

    def test_returns_the_certificates_if_they_are_selected(self, caller: Caller) -> None:
        document = caller.read(**{"$select": "keyCredentials,id"}).json()
        keys = [credential["key"] for credential in document["keyCredentials"]]
        assert [base64.b64decode(key, validate=True) for key in keys] == [der(OLD), der(EXPIRED)]
        assert set(document) == {"@odata.context", "id", "keyCredentials"}

    def test_an_unknown_property_is_refused(self, caller: Caller) -> None:
        assert code(caller.read(**{"$select": "id,secret"})) == (400, "BadRequest")

    @pytest.mark.parametrize("kind", ["applications", "servicePrincipals"])
    def test_finds_the_object_by_its_client_id_too(self, entra: EntraEmulator, caller: Caller, kind: str) -> None:
        document = caller.read(f"{entra.graph}/v1.0/{kind}(appId='{CLIENT}')").json()
        assert document["id"] == Caller(entra, caller.http, kind).object_id

    def test_the_service_principals_id_is_the_tokens_oid(self, entra: EntraEmulator, caller: Caller) -> None:
        claims = jws.extract_compact(caller.headers["Authorization"].partition(" ")[2].encode()).payload
        assert json.loads(claims)["oid"] == entra.service_principal_id(CLIENT, tenant=TENANT)

    def test_is_refused_with_forbid_listing(self, clock: Clock, http: httpx.Client) -> None:
        with EntraEmulator(https=False, clock=clock, forbid_listing=True) as entra:
            entra.register(CLIENT, der(OLD), tenant=TENANT)
            caller = Caller(entra, http)
            caller.authorize()
            assert code(caller.read()) == (403, "Authorization_RequestDenied")
            assert caller.add().status_code == 200


class TestAddKey:
    @pytest.mark.parametrize("fixture", ["caller", "principal"])
    def test_the_new_key_gets_tokens(self, fixture: str, request: pytest.FixtureRequest) -> None:
        caller: Caller = request.getfixturevalue(fixture)
        response = caller.add()
        assert response.status_code == 200
        assert response.json()["customKeyIdentifier"] == NEW.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303
        assert NEW in caller.held()
        assert caller.ask_token(NEW_KEY, NEW).status_code == 200

    def test_the_answer_has_the_key_id_that_is_listed(self, caller: Caller) -> None:
        added = caller.add().json()
        assert added["key"] is None
        assert added["keyId"] in [credential["keyId"] for credential in caller.read().json()["keyCredentials"]]

    def test_keeps_the_display_name(self, caller: Caller) -> None:
        body = caller.body()
        body["keyCredential"] = {**body["keyCredential"], "displayName": "2027"}  # type: ignore[dict-item]
        assert caller.post("addKey", body).json()["displayName"] == "2027"

    def test_accepts_a_proof_by_a_key_that_was_added_before(self, caller: Caller) -> None:
        proof = sign(caller.claims(), NEW_KEY, {"alg": "RS256", "x5t": x5t(NEW)})
        assert "no certificate" in reason(caller.add(STRANGE, proof))
        caller.add()
        assert caller.add(STRANGE, proof).status_code == 200


class TestRemoveKey:
    def test_the_removed_key_gets_no_token(self, caller: Caller) -> None:
        caller.add()
        (key_id,) = [
            held.key_id for held in caller.entra.key_credentials(CLIENT, tenant=TENANT) if held.certificate == OLD
        ]
        response = caller.remove(key_id)
        assert (response.status_code, response.content) == (204, b"")
        assert caller.held() == {NEW, EXPIRED}
        assert caller.ask_token(OLD_KEY, OLD).json()["error_codes"] == [700027]
        assert caller.ask_token(NEW_KEY, NEW).status_code == 200

    def test_a_key_that_does_not_exist_is_refused(self, caller: Caller) -> None:
        assert code(caller.remove(str(uuid.uuid4()))) == (404, "Request_ResourceNotFound")

    def test_without_a_valid_proof_nothing_is_removed(self, caller: Caller) -> None:
        (first, _) = caller.entra.key_credentials(CLIENT, tenant=TENANT)
        assert "'iss'" in reason(caller.remove(first.key_id, caller.proof(iss=CLIENT)))
        assert caller.held() == {OLD, EXPIRED}

    def test_a_proof_by_a_removed_key_is_refused(self, caller: Caller) -> None:
        (first, _) = caller.entra.key_credentials(CLIENT, tenant=TENANT)
        caller.remove(first.key_id)
        assert "no certificate" in reason(caller.add())


class TestPropagation:
    def test_is_immediate_by_default(self, caller: Caller) -> None:
        caller.add()
        assert caller.ask_token(NEW_KEY, NEW).status_code == 200

    def test_hides_a_new_key_for_a_number_of_token_requests(self, caller: Caller) -> None:
        caller.entra.delay_propagation(token_requests=2)
        caller.add()
        assert [caller.ask_token(NEW_KEY, NEW).status_code for _ in range(4)] == [401, 401, 200, 200]

    def test_hides_a_new_key_for_a_time(self, caller: Caller, clock: Clock) -> None:
        caller.entra.delay_propagation(seconds=30)
        caller.add()
        clock.now += 29
        assert caller.ask_token(NEW_KEY, NEW).json()["error_codes"] == [700027]
        clock.now += 1
        assert caller.ask_token(NEW_KEY, NEW).status_code == 200

    def test_lasts_until_both_limits_have_passed(self, caller: Caller, clock: Clock) -> None:
        caller.entra.delay_propagation(token_requests=1, seconds=30)
        caller.add()
        clock.now += 30
        assert [caller.ask_token(NEW_KEY, NEW).status_code for _ in range(2)] == [401, 200]

    def test_keeps_a_removed_key_usable_meanwhile(self, caller: Caller) -> None:
        (first, _) = caller.entra.key_credentials(CLIENT, tenant=TENANT)
        caller.entra.delay_propagation(token_requests=1)
        caller.remove(first.key_id)
        assert [caller.ask_token().status_code for _ in range(2)] == [200, 401]

    def test_delays_the_token_endpoint_but_not_graph(self, caller: Caller) -> None:
        caller.entra.delay_propagation(seconds=30)
        key_id = caller.add().json()["keyId"]
        assert key_id in [credential["keyId"] for credential in caller.read().json()["keyCredentials"]]

    def test_does_not_delay_register(self, caller: Caller) -> None:
        caller.entra.delay_propagation(seconds=30)
        caller.entra.register(CLIENT, der(NEW), tenant=TENANT)
        assert caller.ask_token(NEW_KEY, NEW).status_code == 200


class TestPolicy:
    def test_limits_the_lifetime_of_a_certificate(self, caller: Caller) -> None:
        caller.entra.restrict_certificates(max_lifetime=timedelta(days=30))
        response = caller.add(make_certificate(NEW_KEY, (-1, 29.1)))
        assert code(response) == (400, "CredentialInvalidLifetimeAsPerAppPolicy")
        assert response.json()["error"]["message"].startswith("Credential lifetime exceeds the max value allowed")
        assert caller.add(make_certificate(NEW_KEY, (-1, 29))).status_code == 200

    def test_requires_a_certificate_from_the_trusted_ca(self, caller: Caller) -> None:
        authority = rsa.generate_private_key(65537, 2048)
        certificate = certificates.make_certificate(authority, subject=common_name("issuer"))
        caller.entra.restrict_certificates(issuer=certificate.public_bytes(Encoding.PEM))
        refused = [caller.add(NEW), caller.add(make_certificate(NEW_KEY, issuer=STRANGE_KEY))]
        assert [code(response) for response in refused] == [(400, "CredentialIssuerNotAllowedAsPerAppPolicy")] * 2
        assert caller.add(make_certificate(NEW_KEY, issuer=authority)).status_code == 200

    def test_can_be_removed(self, caller: Caller) -> None:
        caller.entra.restrict_certificates(max_lifetime=timedelta(0))
        caller.entra.restrict_certificates()
        assert caller.add().status_code == 200

    def test_refuses_a_ca_certificate_that_it_cannot_read(self, entra: EntraEmulator) -> None:
        with pytest.raises(ConfigError, match="PEM or DER"):
            entra.restrict_certificates(issuer=b"nobody")


class TestScriptedAnswers:
    def test_come_in_order_and_then_ordinary_ones(self, caller: Caller) -> None:
        denied = GraphRefusal("Authorization_RequestDenied", "Insufficient privileges.", 403)
        caller.entra.answer_next_graph(Throttled("7"), Unavailable("9"), denied, Html(502))
        responses = [caller.add() for _ in range(5)]
        assert [response.status_code for response in responses] == [429, 503, 403, 502, 200]
        assert [code(response)[1] for response in responses[:3]] == [
            "TooManyRequests",
            "ServiceUnavailable",
            "Authorization_RequestDenied",
        ]
        assert [response.headers.get("retry-after") for response in responses[:3]] == ["7", "9", None]
        assert [request.status for request in caller.entra.graph_requests] == [429, 503, 403, 502, 200]

    def test_do_not_change_the_directory(self, caller: Caller) -> None:
        caller.entra.answer_next_graph(Unavailable())
        caller.add()
        assert caller.held() == {OLD, EXPIRED}

    def test_can_time_out_after_the_key_was_added(self, caller: Caller) -> None:
        caller.entra.answer_next_graph(DripFeed(3600))
        caller.http.timeout = httpx.Timeout(0.2)
        with pytest.raises(httpx.ReadTimeout):
            caller.add()
        assert NEW in caller.held()

    def test_are_not_used_for_token_requests(self, caller: Caller) -> None:
        caller.entra.answer_next_graph(Unavailable())
        caller.entra.answer_next(Throttled(None))
        assert caller.ask_token().status_code == 429
        assert caller.read().status_code == 503

    def test_can_close_the_connection_without_an_answer(self, caller: Caller) -> None:
        caller.entra.answer_next_graph(Disconnected())
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            caller.read()
        assert [request.status for request in caller.entra.graph_requests] == [None]

    @pytest.mark.timeout(30)
    def test_in_progress_do_not_delay_a_stop(self, caller: Caller) -> None:
        caller.entra.answer_next_graph(Slow(3600))

        def ask() -> None:
            with httpx.Client(timeout=None) as patient, pytest.raises(httpx.TransportError):  # noqa: S113
                patient.get(caller.url)

        thread = threading.Thread(target=ask)
        thread.start()
        while not caller.entra.graph_requests:
            caller.http.get(caller.entra.authority)
        caller.entra.stop()
        thread.join()


class TestDocuments:
    def test_an_error_document_has_the_same_members_as_graphs(self, caller: Caller) -> None:
        caller.headers["client-request-id"] = "2f0c6f47-4b2c-4d55-8f36-7a9f6a2f2b10"
        response = caller.read(f"{caller.entra.graph}/v1.0/applications/nobody")
        assert response.headers["client-request-id"] == "2f0c6f47-4b2c-4d55-8f36-7a9f6a2f2b10"
        assert response.headers["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"
        assert response.json() == {
            "error": {
                "code": "Request_ResourceNotFound",
                "message": "Resource 'nobody' does not exist or one of its queried reference-property objects are not "
                "present.",
                "innerError": {
                    "date": "2027-01-15T08:00:00",
                    "request-id": response.headers["request-id"],
                    "client-request-id": "2f0c6f47-4b2c-4d55-8f36-7a9f6a2f2b10",
                },
            }
        }

    def test_requests_are_kept_as_received(self, caller: Caller) -> None:
        body = caller.body()
        caller.post("addKey", body)
        caller.read(**{"$select": "id"})
        first, second = caller.entra.graph_requests
        path = f"/v1.0/applications/{caller.object_id}"
        assert (first.method, first.path, first.status) == ("POST", f"{path}/addKey", 200)
        assert json.loads(first.body) == body
        assert first.headers["authorization"] == caller.headers["Authorization"]
        assert (second.method, second.path, second.status) == ("GET", f"{path}?%24select=id", 200)
        assert not caller.entra.requests[1:]  # the token was requested before

    def test_no_repr_shows_the_token_or_the_proof(self, caller: Caller) -> None:
        caller.add()
        shown = repr(caller.entra.graph_requests)
        assert "addKey" in shown
        assert "Bearer" not in shown
        assert "proof" not in shown

    def test_https_serves_graph_too(self, clock: Clock) -> None:
        with EntraEmulator(clock=clock) as entra:
            entra.register(CLIENT, der(OLD), tenant=TENANT)
            with httpx.Client(verify=ssl.create_default_context(cafile=entra.ca_file)) as http:
                caller = Caller(entra, http)
                caller.authorize()
                assert caller.add().status_code == 200
