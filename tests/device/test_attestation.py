"""A YubiKey's attestation certificates are shown, but never used, counted, replaced or deleted."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, ObjectClass
from pkcs11.types import Session

import hsm_signer
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.inventory.inspect import examine
from hsm_signer.device.manage.certificates import (
    certificates_of_key,
    delete_certificate,
    read_certificate,
    read_certificate_by_uri,
    replace_certificates,
    require_no_certificate,
)
from hsm_signer.device.manage.keys import find_key
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker.pool import open_worker
from hsm_signer.errors import CertificateExists, CertificateNotFound, KeyAmbiguous, KeyUnfit
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from hsm_signer.x509.certificate import to_pem
from tests.support.counted_pin import CountedPin
from tests.support.names import CLIENT, TENANT
from tests.support.stacks.piv import PivStack
from tests.support.stacks.piv_attestation import attest, make_attesting_key

# OpenSC shows neither a key without a certificate nor the key that attests the others.
ykcs11 = pytest.mark.parametrize("yubikey", ["ykcs11"], indirect=True)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def access(yubikey: PivStack) -> KeyAccess:
    return KeyAccess(
        uri=Pkcs11Uri.parse(yubikey.key.uri),
        pin=CountedPin(yubikey.pin),
        module=yubikey.module,
        module_environment=yubikey.environment,
    )


class TestOnAYubiKey:
    """Through both modules: ykcs11 lists attestation certificates, OpenSC does not."""

    def test_the_certificate_of_a_key_is_not_the_attestation(self, yubikey: PivStack) -> None:
        with open_device(access(yubikey)) as device:
            assert read_certificate(device, open_signer(device).key.info) == yubikey.key.certificate

    def test_the_certificate_is_read_without_a_login(self, yubikey: PivStack) -> None:
        assert read_certificate_by_uri(access(yubikey)) == yubikey.key.certificate
        assert yubikey.presented() == 0

    def test_a_worker_reads_the_certificate(self, yubikey: PivStack) -> None:
        with open_worker(access(yubikey)) as worker:
            assert worker.certificate() == yubikey.key.certificate

    def test_an_attestation_is_not_counted_as_a_certificate_of_the_key(self, yubikey: PivStack) -> None:
        with (
            open_device(access(yubikey)) as device,
            pytest.raises(CertificateExists, match="holds 1 certificate with"),
        ):
            require_no_certificate(device, open_signer(device).key.info)

    @ykcs11
    def test_a_key_with_only_an_attestation_has_no_certificate(self, yubikey: PivStack) -> None:
        yubikey.take_certificates()
        with open_device(access(yubikey)) as device:
            signer = open_signer(device)
            require_no_certificate(device, signer.key.info)
            with pytest.raises(CertificateNotFound) as caught:
                read_certificate(device, signer.key.info)
        assert "attestation certificate does not count" in str(caught.value.hint)

    def test_the_only_key_that_signs_needs_no_id(self, yubikey: PivStack) -> None:
        yubikey.take_9c()
        uri = replace(Pkcs11Uri.parse(yubikey.key.uri), id=None)
        with open_device(replace(access(yubikey), uri=uri)) as device:
            assert open_signer(device).key.info.id == b"\x01"

    @ykcs11
    def test_the_attestation_key_is_refused_for_signing(self, yubikey: PivStack) -> None:
        uri = replace(Pkcs11Uri.parse(yubikey.key.uri), id=b"\x19")
        with (
            open_device(replace(access(yubikey), uri=uri)) as device,
            pytest.raises(KeyUnfit, match="not allowed to sign"),
        ):
            open_signer(device)

    def test_attestation_certificates_are_marked_as_such(self, yubikey: PivStack) -> None:
        (shown,) = examine(access(yubikey), datetime.now(UTC), login=True).devices
        assert shown.contents is not None
        kinds = {(each.id, each.attestation, each.problem) for each in shown.contents.certificates}
        own = {(b"\x01", False, None), (b"\x02", False, None)}
        attestations = {(b"\x01", True, None), (b"\x02", True, None), (b"\x19", True, None)}
        assert kinds == own | (attestations if yubikey.name == "ykcs11" else set())


class TestCommands:
    """The program as a person runs it."""

    @pytest.fixture
    def run(self, yubikey: PivStack, tmp_path: Path) -> Run:
        settings = {"key": yubikey.key.uri, "module": str(yubikey.module), "pin-source": "env:DEVICE_PIN"}

        def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [
                    *(sys.executable, "-c", "from hsm_signer.cli import main; main()", *arguments),
                    *(f"--{name}={value}" for name, value in settings.items()),
                ],
                env={
                    **yubikey.environment,
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": str(Path(hsm_signer.__file__).parents[1]),
                    "HOME": str(tmp_path),
                    "DEVICE_PIN": yubikey.pin,
                },
                capture_output=True,
                text=True,
                timeout=60,
            )

        return run

    def test_assertion_uses_the_keys_own_certificate(self, yubikey: PivStack, run: Run) -> None:
        done = run("assertion", "-o", "json", f"--tenant={TENANT}", f"--client-id={CLIENT}")
        shown = json.loads(run("certificate", "show", "-o", "json").stdout)["certificates"]
        assert json.loads(done.stdout)["header"]["x5t"] == shown[0]["x5t"]
        assert (done.returncode, len(shown)) == (0, 1)
        assert yubikey.presented() == 1

    def test_certificate_export_writes_the_keys_own_certificate(self, yubikey: PivStack, run: Run) -> None:
        assert yubikey.key.certificate is not None
        assert run("certificate", "export").stdout == to_pem(yubikey.key.certificate).decode()

    def test_rotate_check_uses_the_keys_own_certificate(self, run: Run) -> None:
        done = run("rotate", "--check", "--warn-days=7", "-o", "json")
        assert (done.returncode, 25 < json.loads(done.stdout)["days_left"] < 31) == (0, True)

    def test_device_show_marks_attestation_certificates(self, yubikey: PivStack, run: Run) -> None:
        shown = run("device", "show").stdout
        # One for each of the two keys, and one for the attestation key.
        assert shown.count("attestation: proof") == (3 if yubikey.name == "ykcs11" else 0)


@pytest.fixture(scope="module")
def attesting_key() -> rsa.RSAPrivateKey:
    return make_attesting_key()[0]


@pytest.fixture(scope="module")
def office() -> Iterator[SoftHsm]:
    with SoftHsm(label="attested") as office:
        yield office


@dataclass(frozen=True)
class Attested:
    """A key on a writable device, with its own certificate and an attestation certificate, all with one CKA_ID."""

    key: SoftHsmKey
    attestation: bytes
    access: KeyAccess

    @property
    def own(self) -> bytes:
        assert self.key.certificate is not None
        return self.key.certificate


@pytest.fixture
def attested(office: SoftHsm, attesting_key: rsa.RSAPrivateKey) -> Attested:
    key_id = secrets.token_bytes(4)
    key = office.add_identity(f"key {key_id.hex()}", key_id)
    assert isinstance(key.public_key, rsa.RSAPublicKey)
    attestation = attest(attesting_key, 0x9A, key.public_key, b"\0\xbc\x61\x4e", b"\x02\x01")
    office.add_certificate(attestation, key.label, key_id)
    access = KeyAccess(
        uri=Pkcs11Uri.parse(key.uri),
        pin=FixedLogin(Pin(office.pin), "a test"),
        module=office.module,
        module_environment=office.environment,
        writable=True,
    )
    return Attested(key, attestation, access)


def held(device: Device, key_id: bytes) -> set[bytes]:
    """Return all certificates with this id, whatever their purpose."""

    def look(session: Session) -> set[bytes]:
        template = {Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.ID: key_id}
        return {bytes(each[Attribute.VALUE]) for each in list(session.get_objects(template))}

    return device.call("looking", look)


class TestOnAWritableDevice:
    def test_a_new_certificate_replaces_the_keys_own_and_keeps_the_attestation(
        self, attested: Attested, office: SoftHsm
    ) -> None:
        new = office.issue_certificate(attested.key.public_key)
        with open_device(attested.access) as device:
            info = open_signer(device).key.info
            replace_certificates(device, info, new)
            assert held(device, info.id) == {new, attested.attestation}

    def test_two_certificates_of_the_key_are_refused_until_one_replaces_both(
        self, attested: Attested, office: SoftHsm
    ) -> None:
        second = office.issue_certificate(attested.key.public_key)
        office.add_certificate(second, attested.key.label, attested.key.id)
        with open_device(attested.access) as device:
            signer = open_signer(device)
            with pytest.raises(KeyAmbiguous, match="holds 2 certificates") as caught:
                read_certificate(device, signer.key.info)
            # The hint works: one of them stays, and the attestation does too.
            assert "hsm-signer certificate import FILE --replace" in str(caught.value.hint)
            replace_certificates(device, signer.key.info, second)
            assert read_certificate(device, signer.key.info) == second
            assert held(device, attested.key.id) == {second, attested.attestation}

    def test_the_certificates_to_delete_with_a_key_do_not_include_its_attestation(self, attested: Attested) -> None:
        with open_device(attested.access) as device:
            key = find_key(device, attested.access.uri)
            assert [each.der for each in certificates_of_key(device, key)] == [attested.own]

    def test_an_attestation_cannot_be_deleted(self, attested: Attested) -> None:
        with open_device(attested.access) as device:
            with pytest.raises(CertificateNotFound):
                delete_certificate(device, attested.attestation)
            assert held(device, attested.key.id) == {attested.own, attested.attestation}
