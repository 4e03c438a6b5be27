"""Every device of the matrix signs certificates and requests; the writable ones store the certificate."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.manage.certificates import (
    read_certificate,
    read_certificate_by_uri,
    replace_certificates,
    require_no_certificate,
    store_certificate,
)
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import CertificateExists, DeviceReadOnly, KeyAmbiguous
from hsm_signer.x509.issuance import certificate_request, create_certificate
from tests.support.counted_pin import CountedPin
from tests.support.faulty_module.control import FaultyModule
from tests.support.fixtures import Running
from tests.support.stacks import Stack, StackKey
from tests.support.stacks.opencryptoki import stacks

SUBJECT = "CN=my app,O=Contoso"


@pytest.fixture(params=stacks("softhsm", "p11-kit", "tpm", "ykcs11", "opensc"))
def stack(request: pytest.FixtureRequest, running: Running) -> Iterator[Stack]:
    stack = running(request.param)
    stack.reset()
    yield stack
    stack.reset()


writable = pytest.mark.parametrize("stack", stacks("softhsm", "tpm"), indirect=True)
piv = pytest.mark.parametrize("stack", ["ykcs11", "opensc"], indirect=True)


def access_to(stack: Stack, key: StackKey | None = None, pin: CountedPin | None = None) -> KeyAccess:
    return KeyAccess(
        uri=Pkcs11Uri.parse((key or stack.key).uri),
        pin=pin or CountedPin(stack.pin),
        module=stack.module,
        module_environment=stack.environment,
    )


def keys(stack: Stack) -> list[StackKey]:
    return [key for key in (stack.key, stack.always_authenticate_key) if key is not None]


def algorithms(stack: Stack) -> list[Algorithm]:
    return [Algorithm.RS256, Algorithm.PS256] if stack.has_pss else [Algorithm.RS256]


def openssl(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_certificates_are_verified_by_openssl(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "certificate.pem"
    for key in keys(stack):
        source = CountedPin(stack.pin)
        with open_device(access_to(stack, key, source)) as device:
            signer = open_signer(device)
            for algorithm in algorithms(stack):
                der = create_certificate(signer, algorithm, SUBJECT, 365, datetime.now(UTC))
                certificate = x509.load_der_x509_certificate(der)
                file.write_bytes(certificate.public_bytes(Encoding.PEM))
                assert certificate.public_key() == key.public_key
                verdict = openssl("verify", "-x509_strict", "-check_ss_sig", "-CAfile", str(file), str(file))
                assert verdict == f"{file}: OK\n"
        assert source.times == 1


def test_requests_are_verified_by_openssl(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "request.pem"
    for key in keys(stack):
        source = CountedPin(stack.pin)
        with open_device(access_to(stack, key, source)) as device:
            signer = open_signer(device)
            for algorithm in algorithms(stack):
                request = x509.load_der_x509_csr(certificate_request(signer, algorithm, SUBJECT))
                file.write_bytes(request.public_bytes(Encoding.PEM))
                assert request.public_key() == key.public_key
                assert "verify OK" in openssl("req", "-in", str(file), "-noout", "-verify")
        assert source.times == 1


def test_the_certificate_is_read_without_a_login(stack: Stack, counted: FaultyModule) -> None:
    source = CountedPin(stack.pin)
    assert read_certificate_by_uri(replace(access_to(stack, pin=source), module=counted.path)) == stack.key.certificate
    assert source.times == 0
    assert counted.logins() == []
    assert counted.calls("C_GetSlotList") > 0


def test_a_uri_with_only_a_label_reads_the_certificate_after_one_login(stack: Stack) -> None:
    source = CountedPin(stack.pin)
    with open_device(access_to(stack)) as device:
        info = open_signer(device).key.info
    by_label = replace(
        access_to(stack, pin=source), uri=replace(Pkcs11Uri.parse(stack.key.uri), id=None, object=info.label)
    )
    assert read_certificate_by_uri(by_label) == stack.key.certificate
    assert source.times == 1


@writable
def test_a_new_certificate_replaces_the_old_one(stack: Stack) -> None:
    with open_device(replace(access_to(stack), writable=True)) as device:
        signer = open_signer(device)
        old = read_certificate(device, signer.key.info)
        new = create_certificate(signer, Algorithm.RS256, SUBJECT, 365, datetime.now(UTC))
        with pytest.raises(CertificateExists):
            require_no_certificate(device, signer.key.info)
        try:
            replace_certificates(device, signer.key.info, new)
            assert read_certificate(device, signer.key.info) == new
        finally:
            replace_certificates(device, signer.key.info, old)
        assert read_certificate(device, signer.key.info) == old


@writable
def test_repeating_a_replacement_that_was_cut_off_finishes_it(stack: Stack) -> None:
    with open_device(replace(access_to(stack), writable=True)) as device:
        signer = open_signer(device)
        old = read_certificate(device, signer.key.info)
        new = create_certificate(signer, Algorithm.RS256, SUBJECT, 365, datetime.now(UTC))
        subject = x509.load_der_x509_certificate(new).subject.public_bytes()
        info = signer.key.info
        store_certificate(device, new, subject=subject, label=info.label, key_id=info.id)
        try:
            with pytest.raises(KeyAmbiguous):
                read_certificate(device, signer.key.info)
            replace_certificates(device, info, new)
            assert read_certificate(device, signer.key.info) == new
        finally:
            replace_certificates(device, info, old)


@piv
def test_writing_to_a_card_that_requires_a_management_key_is_refused_before_the_pin_is_sent(stack: Stack) -> None:
    source = CountedPin(stack.pin)
    with pytest.raises(DeviceReadOnly):
        open_device(replace(access_to(stack, pin=source), writable=True))
    assert source.times == 0
