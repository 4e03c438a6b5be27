"""The doctor on a real device and a real server, with one thing wrong at a time: what it reports, and what it skips."""

import itertools
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, TokenFlag
from pkcs11.types import Session
from pkcs11.util.rsa import encode_rsa_public_key

from hsm_signer.config.profile import Profile, profile_from_arguments
from hsm_signer.device.access import KeyAccess, Operator
from hsm_signer.device.device import open_device
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.doctor.doctor import examine
from hsm_signer.doctor.verdicts import Status, Verdict
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.counted_pin import CountedPin
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import CLIENT, GRAPH, PIN, TENANT, WRONG_PIN

# The outcome of each probe if nothing is wrong. The pcscd probe is left out: it depends on what else this process has
# loaded, so tests/cli runs it in separate processes.
FINE = dict.fromkeys(
    (
        "configuration",
        "module",
        "device",
        "pin",
        "login",
        "key",
        "protection",
        "mechanisms",
        "certificate",
        "signature",
        "clock",
        "openid",
        "token",
    ),
    "ok",
)


def unexamined(*probes: str, because: str) -> dict[str, str]:
    return dict.fromkeys(probes, f"skipped because {because}")


def all_after(probe: str) -> dict[str, str]:
    """The outcome of the probes that need the device after `probe` failed."""
    names = list(FINE)
    return unexamined(*names[names.index(probe) + 1 : names.index("clock")], "token", because=probe)


@pytest.fixture(scope="module")
def softhsm() -> Iterator[SoftHsm]:
    with SoftHsm(label="doctor tests", pin=PIN) as softhsm:
        yield softhsm


def certify(softhsm: SoftHsm, key: SoftHsmKey, *, days: float, public_key: rsa.RSAPublicKey | None = None) -> bytes:
    """Store a certificate for a key, valid for so many days from now."""
    start = datetime.now(UTC) - timedelta(days=400)
    der = softhsm.issue_certificate(
        public_key or key.public_key, not_before=start, not_after=datetime.now(UTC) + timedelta(days=days)
    )
    softhsm.add_certificate(der, key.label, key.id)
    return der


_ids = itertools.count(1)


@pytest.fixture(scope="module")
def identity(softhsm: SoftHsm) -> SoftHsmKey:
    """A key and certificate with nothing wrong."""
    key = softhsm.add_key("good", bytes([next(_ids)]))
    return replace(key, certificate=certify(softhsm, key, days=365))


@pytest.fixture(scope="module")
def entra(identity: SoftHsmKey) -> Iterator[EntraEmulator]:
    assert identity.certificate is not None
    with EntraEmulator() as entra:
        entra.register(CLIENT, identity.certificate, tenant=TENANT)
        yield entra


@pytest.fixture(autouse=True)
def _forget_requests(entra: EntraEmulator) -> None:
    entra.requests.clear()


@pytest.fixture
def settings(softhsm: SoftHsm, identity: SoftHsmKey, entra: EntraEmulator) -> dict[str, object]:
    """The settings of a profile without errors."""
    return {
        "tenant": TENANT,
        "client_id": CLIENT,
        "scope": GRAPH,
        "key": identity.uri,
        "module": softhsm.module,
        "module_environment": softhsm.environment,
        "authority": entra.authority,
        "ca_bundle": str(entra.ca_file),
        "network_timeout": 5.0,
    }


@pytest.fixture
def closed_port() -> Iterator[int]:
    with (
        socket.socket() as bound
    ):  # bound but not listening: no other program can take the port, and it refuses connections
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


Findings = dict[str, Verdict]
Examine = Callable[..., Findings]


@pytest.fixture
def run(settings: dict[str, object]) -> Examine:
    """Check a profile without errors but for some changed settings, and return the findings."""

    def run(
        *,
        pin: CountedPin | None = None,
        offline: bool = False,
        now: Callable[[], float] = time.time,
        **changes: object,
    ) -> Findings:
        profile = profile_from_arguments({**settings, **changes})
        return dict(examine(profile, Operator(prompt=pin or CountedPin(PIN)), offline=offline, now=now))

    return run


def outcome(findings: Findings) -> Mapping[str, str]:
    """Return the outcome of each probe but pcscd, in the words of FINE."""
    return {name: _outcome(verdict) for name, verdict in findings.items() if name != "pcscd"}


def _outcome(verdict: Verdict) -> str:
    culprit = re.search(r"because (\w+) failed", verdict.detail)
    return f"{verdict.status} because {culprit[1]}" if culprit else str(verdict.status)


def fix(findings: Findings, name: str) -> str:
    return findings[name].fix or ""


class TestAllIsWell:
    def test_every_probe_is_ok_in_order(self, run: Examine) -> None:
        findings = run()
        assert list(outcome(findings).items()) == list(FINE.items())
        assert [name for name, verdict in findings.items() if verdict.status is Status.OK and verdict.fix] == []

    def test_there_is_one_login_and_one_signature(self, run: Examine, faulty: FaultyModule) -> None:
        pin = CountedPin(PIN)
        assert outcome(run(module=faulty.path, pin=pin)) == FINE
        assert (faulty.calls("C_Login"), faulty.calls("C_Sign"), pin.times) == (1, 1, 1)

    def test_an_always_authenticate_key_gets_the_pin_once_more_without_another_prompt(
        self, run: Examine, faulty: FaultyModule
    ) -> None:
        faulty.always_authenticate(True)
        pin = CountedPin(PIN)
        findings = run(module=faulty.path, pin=pin)
        assert outcome(findings) == FINE
        assert "The PIN is needed for each signature" in findings["protection"].detail
        assert [login.context_specific for login in faulty.logins()] == [False, True]
        assert (faulty.calls("C_Sign"), pin.times) == (1, 1)

    def test_the_token_is_requested_once(self, run: Examine, entra: EntraEmulator) -> None:
        run()
        assert [request.form["client_id"] for request in entra.requests] == [CLIENT]

    def test_the_device_is_closed_at_the_end(self, run: Examine, faulty: FaultyModule) -> None:
        run(module=faulty.path)
        assert faulty.calls("C_CloseSession") == faulty.calls("C_OpenSession") == 1

    def test_the_device_is_closed_when_the_caller_stops_early(
        self, settings: dict[str, object], faulty: FaultyModule
    ) -> None:
        profile = profile_from_arguments({**settings, "module": faulty.path})
        with closing(examine(profile, Operator(prompt=CountedPin(PIN)))) as examination:
            assert next(verdict for name, verdict in examination if name == "login").status is Status.OK
        assert faulty.calls("C_CloseSession") == faulty.calls("C_OpenSession") == 1

    def test_no_finding_shows_a_secret(self, run: Examine, entra: EntraEmulator) -> None:
        shown = repr(run())
        assert PIN not in shown
        assert entra.requests[0].form["client_assertion"].rpartition(".")[2] not in shown
        assert "eyJ" not in shown

    def test_offline_nothing_is_sent(self, run: Examine, closed_port: int) -> None:
        findings = run(offline=True, authority=f"https://127.0.0.1:{closed_port}")
        assert outcome(findings) == {**FINE, "clock": "skipped", "openid": "skipped", "token": "skipped"}
        assert "--offline" in findings["token"].detail

    def test_without_a_scope_no_token_is_requested(self, run: Examine, entra: EntraEmulator) -> None:
        findings = run(scope=None)
        assert outcome(findings) == {**FINE, "token": "skipped"}
        assert "--scope" in fix(findings, "token")
        assert entra.requests == []

    def test_a_custom_token_endpoint_needs_no_openid_configuration(self, run: Examine, entra: EntraEmulator) -> None:
        findings = run(tenant=None, authority=None, token_endpoint=entra.token_endpoint(TENANT))
        assert outcome(findings) == {**FINE, "openid": "skipped"}

    @pytest.mark.parametrize("algorithm", ["PS256", "auto"])
    def test_another_algorithm_works_too(self, run: Examine, algorithm: str) -> None:
        findings = run(algorithm=algorithm)
        assert outcome(findings) == FINE
        assert findings["signature"].detail.startswith("PS256")

    def test_only_the_first_of_several_keys_is_checked(self, run: Examine, identity: SoftHsmKey) -> None:
        findings = run(key=(identity.uri, "pkcs11:token=elsewhere"))
        assert outcome(findings) == FINE
        assert "only the first is checked" in findings["configuration"].detail


class TestConfiguration:
    def test_without_a_client_id_the_device_is_checked(self, run: Examine) -> None:
        findings = run(client_id=None)
        expected = unexamined("clock", "openid", "token", because="configuration")
        assert outcome(findings) == {**FINE, "configuration": "failed", **expected}
        assert "--client-id" in fix(findings, "configuration")

    def test_a_scope_that_entra_refuses_stops_only_the_token(self, run: Examine, entra: EntraEmulator) -> None:
        expected = unexamined("token", because="configuration")
        findings = run(scope="https://graph.microsoft.com/User.Read")
        assert outcome(findings) == {**FINE, "configuration": "failed", **expected}
        assert entra.requests == []

    def test_with_an_invalid_pin_source_the_server_is_checked(self, run: Examine) -> None:
        findings = run(pin_source="nonsense")
        assert outcome(findings) == {**FINE, "configuration": "failed", **all_after("configuration")}

    def test_two_errors_in_the_configuration_are_both_reported(self, run: Examine) -> None:
        finding = run(pin_source="nonsense", tenant="common")["configuration"]
        assert "Unknown PIN source" in finding.detail
        assert "'common'" in finding.detail

    def test_without_a_client_everything_else_is_skipped(self) -> None:
        names = list(FINE)[1:]
        assert outcome(dict(examine(Profile(tenant="contoso.example")))) == {
            "configuration": "failed",
            **unexamined(*names, because="configuration"),
        }


class TestModuleAndDevice:
    def test_a_file_that_is_not_a_module_fails(self, run: Examine, tmp_path: Path) -> None:
        file = tmp_path / "module.so"
        file.write_text("no library")
        findings = run(module=file)
        assert outcome(findings) == {**FINE, "module": "failed", **all_after("module")}
        assert str(file) in findings["module"].detail
        assert findings["pcscd"].detail == "Not checked because module failed."

    def test_a_missing_device_fails_and_the_existing_ones_are_named(self, run: Examine) -> None:
        findings = run(key="pkcs11:token=elsewhere;id=%01")
        assert outcome(findings) == {**FINE, "device": "failed", **all_after("device")}
        assert "token=doctor%20tests" in findings["device"].commands[0]

    @pytest.mark.parametrize("flag", [TokenFlag.USER_PIN_LOCKED, TokenFlag.USER_PIN_FINAL_TRY])
    def test_no_login_is_sent_to_a_device_on_its_last_pin_try(
        self, run: Examine, faulty: FaultyModule, flag: TokenFlag
    ) -> None:
        faulty.flags(set=flag)
        pin = CountedPin(PIN)
        findings = run(module=faulty.path, pin=pin)
        assert outcome(findings) == {**FINE, "pin": "failed", **all_after("pin")}
        assert (pin.times, faulty.logins()) == (0, [])

    @pytest.mark.parametrize("flag", [TokenFlag.USER_PIN_FINAL_TRY, TokenFlag.USER_PIN_COUNT_LOW])
    def test_a_device_with_few_pin_tries_left_is_a_warning(
        self, run: Examine, faulty: FaultyModule, flag: TokenFlag
    ) -> None:
        faulty.flags(set=flag)
        assert outcome(run(module=faulty.path, allow_last_try=True)) == {**FINE, "pin": "warning"}

    def test_a_device_that_says_no_pin_is_set_may_still_take_one(self, run: Examine, faulty: FaultyModule) -> None:
        faulty.flags(clear=TokenFlag.USER_PIN_INITIALIZED)
        assert outcome(run(module=faulty.path)) == {**FINE, "pin": "warning"}

    def test_a_login_by_pin_pad_is_ok(self, run: Examine, faulty: FaultyModule) -> None:
        faulty.flags(set=TokenFlag.PROTECTED_AUTHENTICATION_PATH)
        findings = run(module=faulty.path, pin_source="protected")
        assert outcome(findings) == FINE
        assert "pad" in findings["login"].detail

    def test_without_a_login_the_key_is_not_found(self, run: Examine) -> None:
        findings = run(pin_source="none")
        assert outcome(findings) == {**FINE, "key": "failed", **all_after("key")}
        assert "without a login" in findings["login"].detail

    def test_a_wrong_pin_is_sent_once(self, run: Examine, faulty: FaultyModule) -> None:
        pin = CountedPin(WRONG_PIN)
        findings = run(module=faulty.path, pin=pin)
        assert outcome(findings) == {**FINE, "login": "failed", **all_after("login")}
        assert [login.right for login in faulty.logins()] == [False]
        assert pin.times == 1
        assert WRONG_PIN not in repr(findings)
        # SoftHSM remembers the wrong PIN until a right one is sent.
        assert outcome(run()) == {**FINE, "pin": "warning"}

    def test_a_login_that_hangs_stops_only_what_needs_the_device(self, run: Examine, faulty: FaultyModule) -> None:
        faulty.rule("C_Login", hang=float("inf"))
        findings = run(module=faulty.path, device_timeout=2)
        assert outcome(findings) == {**FINE, "login": "failed", **all_after("login")}

    def test_an_unexpected_error_is_a_finding_that_quotes_nothing(self, settings: dict[str, object]) -> None:
        broken = CountedPin(ZeroDivisionError(f"the PIN is {PIN}"))
        findings = dict(examine(profile_from_arguments(settings), Operator(prompt=broken)))
        assert outcome(findings) == {**FINE, "login": "failed", **all_after("login")}
        assert "ZeroDivisionError" in findings["login"].detail
        assert PIN not in repr(findings)


class TestKey:
    def test_a_missing_key_fails_and_the_existing_ones_are_named(self, run: Examine) -> None:
        findings = run(key="pkcs11:token=doctor%20tests;object=other")
        assert outcome(findings) == {**FINE, "key": "failed", **all_after("key")}
        assert "object=good" in findings["key"].commands[0]

    @pytest.mark.parametrize(
        ("label", "private_key"),
        [
            ("elliptic", ec.generate_private_key(ec.SECP256R1())),
            ("short", rsa.generate_private_key(65537, 1024)),  # noqa: S505
        ],
        ids=["elliptic", "short"],
    )
    def test_a_key_that_entra_refuses_fails(
        self, run: Examine, softhsm: SoftHsm, label: str, private_key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    ) -> None:
        key = softhsm.import_key(private_key, label, bytes([next(_ids)]))
        assert outcome(run(key=key.uri)) == {**FINE, "key": "failed", **all_after("key")}

    def test_a_key_that_can_be_copied_out_of_the_device_is_a_warning(
        self, run: Examine, softhsm: SoftHsm, entra: EntraEmulator
    ) -> None:
        key = add_open_key(softhsm)
        entra.register(CLIENT, certify(softhsm, key, days=365), tenant=TENANT)
        findings = run(key=key.uri)
        assert outcome(findings) == {**FINE, "protection": "warning"}
        concerns = re.findall(r"CKA_\w+", findings["protection"].detail)
        assert concerns == ["CKA_SENSITIVE", "CKA_EXTRACTABLE"]

    def test_a_key_that_was_not_generated_on_the_device_is_a_warning(
        self, run: Examine, softhsm: SoftHsm, entra: EntraEmulator
    ) -> None:
        key = softhsm.import_key(rsa.generate_private_key(65537, 2048), "imported", bytes([next(_ids)]))
        entra.register(CLIENT, certify(softhsm, key, days=365), tenant=TENANT)
        findings = run(key=key.uri)
        assert outcome(findings) == {**FINE, "protection": "warning"}
        assert "CKA_LOCAL" in findings["protection"].detail

    def test_a_requested_algorithm_that_the_device_lacks_fails(self, run: Examine, faulty: FaultyModule) -> None:
        faulty.hide_mechanisms(Mechanism.SHA256_RSA_PKCS_PSS, Mechanism.RSA_PKCS_PSS, Mechanism.RSA_X_509)
        findings = run(module=faulty.path, algorithm="PS256")
        expected = unexamined("signature", "token", because="mechanisms")
        assert outcome(findings) == {**FINE, "mechanisms": "failed", **expected}
        assert "RS256" in fix(findings, "mechanisms")

    def test_an_unused_algorithm_that_the_device_lacks_is_only_mentioned(
        self, run: Examine, faulty: FaultyModule
    ) -> None:
        faulty.hide_mechanisms(Mechanism.SHA256_RSA_PKCS_PSS, Mechanism.RSA_PKCS_PSS, Mechanism.RSA_X_509)
        findings = run(module=faulty.path)
        assert outcome(findings) == FINE
        assert "PS256 is not offered" in findings["mechanisms"].detail

    def test_an_invalid_signature_fails_and_is_not_sent(
        self, run: Examine, faulty: FaultyModule, entra: EntraEmulator
    ) -> None:
        faulty.rule("C_Sign", corrupt=True)
        findings = run(module=faulty.path)
        assert outcome(findings) == {**FINE, "signature": "failed", **unexamined("token", because="signature")}
        assert entra.requests == []


def add_open_key(softhsm: SoftHsm) -> SoftHsmKey:
    """Have SoftHSM generate a key that it gives to anyone who is logged in."""
    key_id = bytes([next(_ids)])

    def generate(session: Session) -> bytes:
        public, _ = session.generate_keypair(
            KeyType.RSA,
            2048,
            id=key_id,
            label="open",
            store=True,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            private_template={Attribute.PRIVATE: True, Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True},
        )
        return encode_rsa_public_key(public)

    uri = Pkcs11Uri(token=softhsm.label, id=key_id)
    access = KeyAccess(uri, FixedLogin(Pin(PIN), "a test"), softhsm.module, softhsm.environment, writable=True)
    with open_device(access) as device:
        public_key = load_der_public_key(device.call("generating a key", generate))
    assert isinstance(public_key, rsa.RSAPublicKey)
    return SoftHsmKey(str(uri), "open", key_id, public_key)


# The device can still show that it signs.
NO_CERTIFICATE = {**FINE, "certificate": "failed", **unexamined("token", because="certificate")}


class TestCertificate:
    def test_a_missing_certificate_fails(self, run: Examine, softhsm: SoftHsm) -> None:
        findings = run(key=softhsm.add_key("bare", bytes([next(_ids)])).uri)
        assert outcome(findings) == NO_CERTIFICATE
        assert "--certificate" in fix(findings, "certificate")

    def test_an_expired_certificate_fails(self, run: Examine, softhsm: SoftHsm) -> None:
        key = softhsm.add_key("expired", bytes([next(_ids)]))
        certify(softhsm, key, days=-1)
        findings = run(key=key.uri)
        assert outcome(findings) == NO_CERTIFICATE
        assert "expired on" in findings["certificate"].detail

    def test_a_certificate_of_another_key_fails(self, run: Examine, softhsm: SoftHsm) -> None:
        key = softhsm.add_key("mismatched", bytes([next(_ids)]))
        certify(softhsm, key, days=365, public_key=rsa.generate_private_key(65537, 2048).public_key())
        findings = run(key=key.uri)
        assert outcome(findings) == NO_CERTIFICATE
        assert "another key" in findings["certificate"].detail

    def test_a_certificate_that_expires_soon_is_a_warning(
        self, run: Examine, softhsm: SoftHsm, entra: EntraEmulator
    ) -> None:
        key = softhsm.add_key("ending", bytes([next(_ids)]))
        entra.register(CLIENT, certify(softhsm, key, days=10.5), tenant=TENANT)
        findings = run(key=key.uri)
        assert outcome(findings) == {**FINE, "certificate": "warning"}
        assert "10 days left" in findings["certificate"].detail

    def test_a_certificate_that_is_not_registered_fails_the_token(
        self, run: Examine, softhsm: SoftHsm, identity: SoftHsmKey, tmp_path: Path
    ) -> None:
        file = tmp_path / "other.der"
        file.write_bytes(softhsm.issue_certificate(identity.public_key, not_after=datetime.now(UTC) + timedelta(365)))
        findings = run(certificate=file)
        assert outcome(findings) == {**FINE, "token": "failed"}
        assert re.search(r"AADSTS700027.*Correlation id: [0-9a-f-]{36}\.", findings["token"].detail)
        assert "Upload the certificate" in fix(findings, "token")


class TestServer:
    def test_a_clock_within_entras_tolerance_is_a_warning(self, run: Examine) -> None:
        findings = run(now=lambda: time.time() - 60)
        assert outcome(findings) == {**FINE, "clock": "warning"}
        assert re.search(r"(59|60|61) seconds behind", findings["clock"].detail)

    @pytest.mark.parametrize("seconds", [-3600, 3600])
    def test_a_clock_beyond_entras_tolerance_fails_and_nothing_is_sent(
        self, run: Examine, entra: EntraEmulator, seconds: int
    ) -> None:
        findings = run(now=lambda: time.time() + seconds)
        assert outcome(findings) == {**FINE, "clock": "failed", **unexamined("token", because="clock")}
        assert entra.requests == []

    def test_a_server_that_does_not_answer_fails(self, run: Examine, closed_port: int) -> None:
        findings = run(authority=f"https://127.0.0.1:{closed_port}", network_timeout=2)
        expected = unexamined("token", because="openid")
        assert outcome(findings) == {**FINE, "clock": "skipped", "openid": "failed", **expected}
        assert "was refused" in findings["openid"].detail

    def test_a_custom_token_endpoint_that_does_not_answer_fails(self, run: Examine, closed_port: int) -> None:
        findings = run(
            tenant=None,
            authority=None,
            token_endpoint=f"https://127.0.0.1:{closed_port}/token",
            network_timeout=2,
        )
        expected = unexamined("token", because="openid")
        assert outcome(findings) == {**FINE, "clock": "skipped", "openid": "failed", **expected}

    def test_a_server_that_is_not_trusted_fails_and_gets_no_assertion(self, run: Examine, entra: EntraEmulator) -> None:
        findings = run(ca_bundle=None)
        expected = unexamined("token", because="openid")
        assert outcome(findings) == {**FINE, "clock": "skipped", "openid": "failed", **expected}
        assert "--ca-bundle" in fix(findings, "openid")
        assert entra.requests == []

    def test_a_missing_ca_bundle_fails(self, run: Examine, tmp_path: Path) -> None:
        findings = run(ca_bundle=tmp_path / "none.pem")
        expected = unexamined("token", because="openid")
        assert outcome(findings) == {**FINE, "clock": "skipped", "openid": "failed", **expected}

    def test_an_unknown_tenant_fails(self, run: Examine) -> None:
        findings = run(tenant="fabrikam.example")
        assert outcome(findings) == {**FINE, "openid": "failed", "token": "failed"}
        assert "--tenant" in fix(findings, "openid")
