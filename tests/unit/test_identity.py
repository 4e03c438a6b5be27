"""An identity signs with its key, its certificate as it is now, and the first of its keys that is there."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from hsm_signer import errors
from hsm_signer.assertion import Thumbprint, parse_jwt
from hsm_signer.certificate import Certificate, parse_certificates
from hsm_signer.config import Profile
from hsm_signer.crypto import Algorithm, PublicKey, Signer
from hsm_signer.device.pin import EnvironmentPin, FilePin, FixedLogin, NobodyToAsk, Pin, PinRequest
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    CertificateMismatch,
    CertificateNotFound,
    CertificateUnusable,
    ConfigError,
    DeviceGone,
    DeviceNotFound,
    HsmSignerError,
    KeyAmbiguous,
    PinIncorrect,
    PinLocked,
)
from hsm_signer.identity import (
    NOBODY,
    REREAD,
    REST,
    CertificateFile,
    Identity,
    Keys,
    Operator,
    StoredCertificate,
    key_reference,
)

CLIENT = "8f1c1f3e-7a58-4f0a-8f1e-3f5ad2a3a001"
AUDIENCE = "https://login.example.org/token"
Issue = Callable[..., bytes]
MakeSigner = Callable[..., Signer]


def pem(*ders: bytes) -> bytes:
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)


def identity(signer: Signer, *certificates: Certificate, now: datetime, **settings: Any) -> Identity:
    return Identity(CLIENT, signer, lambda: certificates, now=now.timestamp, **settings)


def header(assertion: str) -> dict[str, Any]:
    return dict(parse_jwt(assertion).header)


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        (frozenset(Algorithm), "PS256"),
        (frozenset({Algorithm.PS256}), "PS256"),
        (frozenset({Algorithm.RS256}), "RS256"),
        (frozenset(), "RS256"),
    ],
    ids=["both", "PS256 only", "RS256 only", "neither"],
)
def test_auto_is_ps256_where_the_device_can_and_else_rs256(
    key: rsa.RSAPrivateKey, make_signer: MakeSigner, certificate: Certificate, now: datetime,
    able: frozenset[Algorithm], expected: str,
) -> None:  # fmt: skip
    whose = identity(make_signer(key, able), certificate, now=now, algorithm=None)
    assert header(whose.assertion(AUDIENCE))["alg"] == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"alg", "typ", "x5t"}),
        ({"algorithm": None}, {"alg", "typ", "x5t#S256"}),
        ({"thumbprint": Thumbprint.SHA256}, {"alg", "typ", "x5t#S256"}),
        ({"send_chain": True}, {"alg", "typ", "x5t", "x5c"}),
    ],
)
def test_the_header_holds_what_was_chosen(
    signer: Signer, certificate: Certificate, now: datetime, settings: dict[str, Any], expected: set[str]
) -> None:
    assert set(header(identity(signer, certificate, now=now, **settings).assertion(AUDIENCE))) == expected


def test_the_whole_chain_is_sent(
    signer: Signer, certificate: Certificate, other_key: rsa.RSAPrivateKey, issue: Issue, now: datetime
) -> None:
    issuer = parse_certificates(issue(other_key), "test")[0]
    sent = header(identity(signer, certificate, issuer, now=now, send_chain=True).assertion(AUDIENCE))
    assert len(sent["x5c"]) == 2


def test_an_assertion_is_for_the_client_the_audience_and_the_time(
    signer: Signer, certificate: Certificate, now: datetime
) -> None:
    claims = parse_jwt(identity(signer, certificate, now=now).assertion(AUDIENCE, 300)).claims
    begin = int(now.timestamp())
    assert (claims["iss"], claims["aud"], claims["nbf"], claims["exp"]) == (CLIENT, AUDIENCE, begin, begin + 300)


class Untouched:
    """A signer that must not be asked."""

    algorithms = frozenset(Algorithm)

    def __init__(self, public_key: PublicKey) -> None:
        self.public_key = public_key

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        raise AssertionError("a touch was spent on an assertion nobody accepts")


def test_nothing_is_signed_when_the_certificate_has_expired(
    signer: Signer, certificate: Certificate, now: datetime
) -> None:
    whose = identity(Untouched(signer.public_key), certificate, now=now + timedelta(days=400))
    with pytest.raises(CertificateUnusable, match="expired on"):
        whose.assertion(AUDIENCE)


def test_nothing_is_signed_when_the_certificate_is_of_another_key(
    signer: Signer, other_key: rsa.RSAPrivateKey, issue: Issue, now: datetime
) -> None:
    other = parse_certificates(issue(other_key), "test")[0]
    with pytest.raises(CertificateMismatch):
        identity(Untouched(signer.public_key), other, now=now).assertion(AUDIENCE)


def test_nothing_is_signed_when_the_lifetime_is_out_of_range(
    signer: Signer, certificate: Certificate, now: datetime
) -> None:
    with pytest.raises(ConfigError, match="cannot live"):
        identity(Untouched(signer.public_key), certificate, now=now).assertion(AUDIENCE, 86401)


@dataclass
class Device:
    """Holds certificates beside a key, and counts how often they are read."""

    stored: list[bytes]
    read: int = 0

    def certificate(self) -> bytes:
        self.read += 1
        if len(self.stored) != 1:
            raise KeyAmbiguous(f"{len(self.stored)} certificates.")
        return self.stored[0]


class TestACertificateOnTheDevice:
    def test_that_was_renewed_is_used_after_a_while(self, first: bytes, renewed: bytes) -> None:
        device, clock = Device([first]), [0.0]
        certificates = StoredCertificate(device.certificate, "the device", lambda: clock[0])
        seen = [certificates()[0].der]
        device.stored = [renewed]
        for clock[0] in (REREAD - 1, REREAD):
            seen.append(certificates()[0].der)
        assert seen == [first, first, renewed]
        assert device.read == 2

    def test_is_the_one_known_while_it_is_being_replaced(self, first: bytes, renewed: bytes) -> None:
        device, clock = Device([first]), [0.0]
        certificates = StoredCertificate(device.certificate, "the device", lambda: clock[0])
        certificates()
        device.stored = [first, renewed]
        clock[0] = REREAD
        assert certificates()[0].der == first

    def test_must_be_the_only_one_to_begin_with(self, first: bytes, renewed: bytes) -> None:
        with pytest.raises(KeyAmbiguous):
            StoredCertificate(Device([first, renewed]).certificate, "the device")()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.pem"


@pytest.fixture
def file(path: Path, signer: Signer) -> CertificateFile:
    return CertificateFile(path, signer.public_key)


def replace_file(path: Path, content: bytes) -> None:
    """Put another file in its place, as a renewal does."""
    fresh = path.with_name("fresh")
    fresh.write_bytes(content)
    os.replace(fresh, path)


@pytest.fixture
def first(key: rsa.RSAPrivateKey, issue: Issue) -> bytes:
    return issue(key)


@pytest.fixture
def renewed(key: rsa.RSAPrivateKey, issue: Issue) -> bytes:
    return issue(key)


def test_a_certificate_file_that_is_replaced_is_read_again(
    file: CertificateFile, path: Path, first: bytes, renewed: bytes
) -> None:
    seen = []
    for content in (first, renewed):
        replace_file(path, pem(content))
        seen.append(file()[0].der)
    assert seen == [first, renewed]


def test_a_certificate_file_that_is_written_over_is_read_again(
    file: CertificateFile, path: Path, first: bytes, renewed: bytes
) -> None:
    path.write_bytes(first)
    file()
    path.write_bytes(renewed)
    os.utime(path, (0, 0))  # two writes may fall into one tick of the file system's clock
    assert file()[0].der == renewed


def test_a_certificate_file_that_did_not_change_is_not_read_again(
    file: CertificateFile, path: Path, first: bytes
) -> None:
    path.write_bytes(first)
    assert file() is file()


def test_the_certificates_are_kept_while_their_file_is_gone(file: CertificateFile, path: Path, first: bytes) -> None:
    path.write_bytes(first)
    file()
    path.unlink()
    assert file()[0].der == first


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN CERTIFICATE-----\nMIIC", b"\x30\x82"])
def test_the_certificates_are_kept_while_their_file_is_damaged(
    file: CertificateFile, path: Path, first: bytes, damage: bytes
) -> None:
    path.write_bytes(first)
    file()
    path.write_bytes(damage)
    assert file()[0].der == first


def test_a_file_that_was_damaged_is_read_again_when_it_is_mended(
    file: CertificateFile, path: Path, first: bytes, renewed: bytes
) -> None:
    for content in (first, b"damaged", renewed):
        replace_file(path, content)
        file()
    assert file()[0].der == renewed


def test_a_file_that_was_never_there_is_named(file: CertificateFile, path: Path) -> None:
    with pytest.raises(CertificateNotFound) as refused:
        file()
    assert refused.value.message == f"The certificate {path} cannot be read: No such file or directory."


def test_a_directory_is_no_certificate_file(tmp_path: Path, signer: Signer) -> None:
    with pytest.raises(CertificateNotFound, match="Is a directory"):
        CertificateFile(tmp_path, signer.public_key)()


def test_a_file_that_was_never_good_is_refused(file: CertificateFile, path: Path) -> None:
    path.write_bytes(b"damaged")
    with pytest.raises(CertificateUnusable, match=r"is not an X\.509 certificate"):
        file()


def test_the_keys_own_certificate_comes_first_and_the_others_keep_their_order(
    file: CertificateFile, path: Path, other_key: rsa.RSAPrivateKey, issue: Issue, first: bytes
) -> None:
    root, intermediate = issue(other_key), issue(other_key)
    path.write_bytes(pem(root, intermediate, first))
    assert [each.der for each in file()] == [first, root, intermediate]


def test_a_file_without_the_keys_certificate_is_refused_when_it_is_used(
    file: CertificateFile, path: Path, signer: Signer, other_key: rsa.RSAPrivateKey, issue: Issue, now: datetime
) -> None:
    path.write_bytes(issue(other_key))
    with pytest.raises(CertificateMismatch):
        Identity(CLIENT, signer, file, now=now.timestamp).assertion(AUDIENCE)


def test_a_certificate_renewed_under_a_running_service_is_used(
    file: CertificateFile, path: Path, key: rsa.RSAPrivateKey, signer: Signer, issue: Issue, now: datetime
) -> None:
    whose = Identity(CLIENT, signer, file, now=now.timestamp)
    path.write_bytes(issue(key, not_after=now - timedelta(days=1)))
    with pytest.raises(CertificateUnusable, match="expired on"):
        whose.assertion(AUDIENCE)
    replace_file(path, issue(key))
    assert header(whose.assertion(AUDIENCE))["alg"] == "RS256"


OFFICE, HOME, VAULT = (Pkcs11Uri(token=name) for name in ("Office", "Home", "Vault"))
NEXT_KEY = {"DeviceGone", "DeviceNotFound", "DeviceTimeout", "KeyNotFound", "ModuleLoadError", "SignatureInvalid"}
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HsmSignerError)]


class Devices:
    """What becomes of opening each key: stands in for `open_identity`, which would need the devices."""

    def __init__(self, working: Identity) -> None:
        self.opened: list[str | None] = []
        self.isolated: list[bool] = []
        self.closed: list[str | None] = []
        self.failing: dict[Pkcs11Uri, type[HsmSignerError]] = {}
        self.now = 0.0
        self._working = working

    def open(
        self, profile: Profile, uri: Pkcs11Uri, operator: Operator = NOBODY, *, isolated: bool = False
    ) -> Identity:
        self.opened.append(uri.token)
        self.isolated.append(isolated)
        if uri in self.failing:
            raise self.failing[uri](f"{uri.token} failed.")
        return Identity(
            str(uri.token),
            self._working.signer,
            self._working.certificates,
            close=lambda: self.closed.append(uri.token),
            now=self._working.now,
        )

    def keys(self, *uris: Pkcs11Uri, operator: Operator = NOBODY, isolated: bool = False) -> Keys:
        profile = Profile(client_id=CLIENT, key=uris)
        return Keys(profile, operator, isolated=isolated, monotonic=lambda: self.now)


@pytest.fixture
def devices(signer: Signer, certificate: Certificate, now: datetime, monkeypatch: pytest.MonkeyPatch) -> Devices:
    devices = Devices(identity(signer, certificate, now=now))
    monkeypatch.setattr("hsm_signer.identity.open_identity", devices.open)
    return devices


def signed_by(keys: Keys) -> str:
    """The device whose key signed: here it is the client of the assertion."""
    return str(parse_jwt(keys.assertion(AUDIENCE)).claims["iss"])


def test_the_preferred_key_signs_and_no_other_is_opened(devices: Devices) -> None:
    assert (signed_by(devices.keys(OFFICE, HOME)), devices.opened) == ("Office", ["Office"])


def test_a_key_is_opened_once(devices: Devices) -> None:
    keys = devices.keys(OFFICE)
    assert ([signed_by(keys) for _ in range(3)], devices.opened) == (["Office"] * 3, ["Office"])


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind.__name__ in NEXT_KEY])
def test_when_a_device_is_absent_or_does_not_work_the_next_key_signs(
    devices: Devices, kind: type[HsmSignerError]
) -> None:
    devices.failing = {OFFICE: kind}
    assert signed_by(devices.keys(OFFICE, HOME)) == "Home"


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind.__name__ not in NEXT_KEY])
def test_any_other_failure_is_not_passed_over(devices: Devices, kind: type[HsmSignerError]) -> None:
    devices.failing = {OFFICE: kind}
    with pytest.raises(kind, match="Office failed"):
        devices.keys(OFFICE, HOME).assertion(AUDIENCE)
    assert devices.opened == ["Office"]


def test_when_no_key_works_the_failure_is_the_last_ones(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound, HOME: DeviceGone}
    with pytest.raises(DeviceGone, match="Home failed"):
        devices.keys(OFFICE, HOME).assertion(AUDIENCE)


def test_passing_over_a_key_is_told(devices: Devices, caplog: pytest.LogCaptureFixture) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    devices.keys(OFFICE, HOME).assertion(AUDIENCE)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "Office failed. Trying the next key.")
    ]


def test_a_key_that_failed_rests_while_another_one_works(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    keys = devices.keys(OFFICE, HOME)
    assert [signed_by(keys) for _ in range(2)] == ["Home", "Home"]
    assert devices.opened == ["Office", "Home"]


def test_the_preferred_key_is_returned_to_when_it_has_rested(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    keys, seen = devices.keys(OFFICE, HOME), []
    for devices.now in (0.0, REST - 0.1, REST):
        seen.append(signed_by(keys))
        devices.failing = {}
    assert seen == ["Home", "Home", "Office"]


def test_a_key_that_rests_is_tried_before_giving_up(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    keys = devices.keys(OFFICE, HOME, VAULT)
    before = signed_by(keys)
    devices.failing = {VAULT: DeviceGone}
    keys.close()
    devices.failing = {HOME: DeviceGone, VAULT: DeviceGone}
    assert (before, signed_by(keys)) == ("Home", "Office")


def test_a_device_that_is_waited_for_is_found_among_several(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound, HOME: DeviceNotFound}
    waited: list[str] = []

    def plug_in_office(error: HsmSignerError) -> None:
        waited.append(error.message)
        del devices.failing[OFFICE]

    keys = devices.keys(OFFICE, HOME, operator=Operator(wait=plug_in_office))
    assert (signed_by(keys), waited) == ("Office", ["Home failed."])


@pytest.mark.parametrize("kind", [PinIncorrect, PinLocked])
def test_a_device_that_refused_a_pin_is_not_opened_again(devices: Devices, kind: type[HsmSignerError]) -> None:
    devices.failing = {OFFICE: kind}
    keys = devices.keys(OFFICE)
    for _ in range(3):
        with pytest.raises(kind, match="Office failed"):
            keys.assertion(AUDIENCE)
    assert devices.opened == ["Office"]


def test_closing_lets_go_of_every_device_and_the_next_assertion_opens_anew(devices: Devices) -> None:
    keys = devices.keys(OFFICE)
    keys.assertion(AUDIENCE)
    keys.close()
    keys.assertion(AUDIENCE)
    assert (devices.opened, devices.closed) == (["Office", "Office"], ["Office"])


@pytest.mark.parametrize("isolated", [True, False])
def test_every_key_is_opened_in_a_process_of_its_own_if_one_is(devices: Devices, isolated: bool) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    devices.keys(OFFICE, HOME, isolated=isolated).assertion(AUDIENCE)
    assert devices.isolated == [isolated, isolated]


def test_after_a_fork_a_key_is_opened_anew_and_the_parents_left_alone(devices: Devices) -> None:
    keys = devices.keys(OFFICE)
    keys.assertion(AUDIENCE)
    keys._keys[0]._lock.acquire()  # as another thread of the parent may have held it
    keys.after_fork()
    keys.assertion(AUDIENCE)
    assert (devices.opened, devices.closed) == (["Office", "Office"], [])


def test_a_pin_refused_before_a_fork_is_not_presented_after_it(devices: Devices) -> None:
    devices.failing = {OFFICE: PinIncorrect}
    keys = devices.keys(OFFICE)
    for _ in range(2):
        with pytest.raises(PinIncorrect):
            keys.assertion(AUDIENCE)
        keys.after_fork()
    assert devices.opened == ["Office"]


class Prompt:
    """Somebody at a terminal."""

    description = identity = "the prompt"
    attended = True

    def __call__(self, request: PinRequest) -> Pin:
        return Pin("4711")


WITH_SOURCE = Pkcs11Uri(token="Office", pin_source="env:URI_PIN")
WITH_VALUE = Pkcs11Uri(token="Office", pin_value="4711")


@pytest.mark.parametrize(
    ("setting", "uri", "prompt", "expected"),
    [
        ("file:pin", WITH_SOURCE, Prompt(), FilePin),
        (None, WITH_SOURCE, Prompt(), EnvironmentPin),
        (None, WITH_VALUE, Prompt(), FixedLogin),
        (None, OFFICE, Prompt(), Prompt),
        (None, OFFICE, None, NobodyToAsk),
    ],
)
def test_the_pin_comes_from_the_setting_else_the_uri_else_the_prompt(
    setting: str | None, uri: Pkcs11Uri, prompt: Prompt | None, expected: type[object]
) -> None:
    reference = key_reference(Profile(client_id=CLIENT, key=(uri,), pin_source=setting), uri, Operator(prompt=prompt))
    assert type(reference.pin) is expected


def test_a_uri_may_not_name_a_program_that_gives_the_pin() -> None:
    uri = Pkcs11Uri(token="Office", pin_source="command:/bin/pin")
    with pytest.raises(ConfigError, match="may not name a program to run"):
        key_reference(Profile(client_id=CLIENT, key=(uri,)), uri)


def test_a_pin_file_of_a_profile_is_beside_the_profile() -> None:
    profile = Profile(client_id=CLIENT, key=(OFFICE,), pin_source="file:pin", pin_directory=Path("/etc/hsm-signer"))
    source = key_reference(profile, OFFICE).pin
    assert isinstance(source, FilePin)
    assert source.path == Path("/etc/hsm-signer/pin")


def test_without_a_record_of_refused_pins_there_is_no_place_for_one() -> None:
    profiles = [Profile(key=(OFFICE,), state_directory=Path("/s"), pin_record=kept) for kept in (True, False)]
    assert [key_reference(profile, OFFICE).pin_record for profile in profiles] == [Path("/s/pins"), None]


def test_the_clock_of_an_identity_is_the_wall_clock(signer: Signer, key: rsa.RSAPrivateKey, issue: Issue) -> None:
    moment = datetime.now(UTC)
    current = parse_certificates(
        issue(key, not_before=moment - timedelta(hours=1), not_after=moment + timedelta(hours=1)), "test"
    )
    claims = parse_jwt(Identity(CLIENT, signer, lambda: tuple(current)).assertion(AUDIENCE)).claims
    assert 0 <= claims["nbf"] - int(moment.timestamp()) <= 5
