"""A certificate is read again when it may have been renewed; the last good one is used while it is being replaced."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from hsm_signer.credential.certificate_source import REREAD, CertificateFile, StoredCertificate
from hsm_signer.credential.identity import Identity
from hsm_signer.crypto import Signer
from hsm_signer.errors import (
    CertificateMismatch,
    CertificateNotFound,
    CertificateUnusable,
    KeyAmbiguous,
)
from hsm_signer.jwt.compact import parse_jwt
from tests.support.names import AUDIENCE
from tests.unit.credential.conftest import APP

Issue = Callable[..., bytes]


def pem(*ders: bytes) -> bytes:
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)


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
    def test_a_renewed_certificate_is_used_after_a_while(self, first: bytes, renewed: bytes) -> None:
        device, clock = Device([first]), [0.0]
        certificates = StoredCertificate(device.certificate, "the device", lambda: clock[0])
        seen = [certificates.certificate().der]
        device.stored = [renewed]
        for clock[0] in (REREAD - 1, REREAD):
            seen.append(certificates.certificate().der)
        assert seen == [first, first, renewed]
        assert device.read == 2

    def test_the_last_good_certificate_is_used_while_it_is_being_replaced(self, first: bytes, renewed: bytes) -> None:
        device, clock = Device([first]), [0.0]
        certificates = StoredCertificate(device.certificate, "the device", lambda: clock[0])
        certificates.certificate()
        device.stored = [first, renewed]
        clock[0] = REREAD
        assert certificates.certificate().der == first

    def test_several_certificates_at_the_start_are_refused(self, first: bytes, renewed: bytes) -> None:
        with pytest.raises(KeyAmbiguous):
            StoredCertificate(Device([first, renewed]).certificate, "the device").certificate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.pem"


@pytest.fixture
def file(path: Path, signer: Signer) -> CertificateFile:
    return CertificateFile(path, signer.public_key)


def replace_file(path: Path, content: bytes) -> None:
    """Replace the file by another one, as a renewal does."""
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
        seen.append(file.certificate().der)
    assert seen == [first, renewed]


def test_a_certificate_file_that_is_written_over_is_read_again(
    file: CertificateFile, path: Path, first: bytes, renewed: bytes
) -> None:
    path.write_bytes(first)
    file.certificate()
    path.write_bytes(renewed)
    os.utime(path, (0, 0))  # two writes may fall into one tick of the file system's clock
    assert file.certificate().der == renewed


def test_a_certificate_file_that_did_not_change_is_not_read_again(
    file: CertificateFile, path: Path, first: bytes
) -> None:
    path.write_bytes(first)
    assert file.chain() is file.chain()


def test_the_certificates_are_kept_while_their_file_is_missing(file: CertificateFile, path: Path, first: bytes) -> None:
    path.write_bytes(first)
    file.certificate()
    path.unlink()
    assert file.certificate().der == first


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN CERTIFICATE-----\nMIIC", b"\x30\x82"])
def test_the_certificates_are_kept_while_their_file_is_damaged(
    file: CertificateFile, path: Path, first: bytes, damage: bytes
) -> None:
    path.write_bytes(first)
    file.certificate()
    path.write_bytes(damage)
    assert file.certificate().der == first


def test_a_damaged_file_is_read_again_once_it_is_replaced(
    file: CertificateFile, path: Path, first: bytes, renewed: bytes
) -> None:
    for content in (first, b"damaged", renewed):
        replace_file(path, content)
        file.certificate()
    assert file.certificate().der == renewed


def test_a_file_that_never_existed_is_named(file: CertificateFile, path: Path) -> None:
    with pytest.raises(CertificateNotFound) as refused:
        file.certificate()
    assert refused.value.message == f"The certificate {path} cannot be read: No such file or directory."


def test_a_directory_instead_of_a_certificate_file_is_refused(tmp_path: Path, signer: Signer) -> None:
    with pytest.raises(CertificateNotFound, match="Is a directory"):
        CertificateFile(tmp_path, signer.public_key).certificate()


def test_a_file_without_a_certificate_in_it_is_refused(file: CertificateFile, path: Path) -> None:
    path.write_bytes(b"damaged")
    with pytest.raises(CertificateUnusable, match=r"is not an X\.509 certificate"):
        file.certificate()


def test_the_keys_own_certificate_comes_first_and_the_others_keep_their_order(
    file: CertificateFile, path: Path, other_key: rsa.RSAPrivateKey, issue: Issue, first: bytes
) -> None:
    root, intermediate = issue(other_key), issue(other_key)
    path.write_bytes(pem(root, intermediate, first))
    assert [each.der for each in file.chain()] == [first, root, intermediate]


def test_a_file_without_the_keys_certificate_is_refused_when_an_assertion_is_built(
    file: CertificateFile, path: Path, signer: Signer, other_key: rsa.RSAPrivateKey, issue: Issue, now: datetime
) -> None:
    path.write_bytes(issue(other_key))
    with pytest.raises(CertificateMismatch):
        Identity(APP, signer, file, now=now.timestamp).assertion(AUDIENCE)


def test_an_identity_uses_a_certificate_that_was_renewed_after_it_had_expired(
    file: CertificateFile, path: Path, key: rsa.RSAPrivateKey, signer: Signer, issue: Issue, now: datetime
) -> None:
    whose = Identity(APP, signer, file, now=now.timestamp)
    path.write_bytes(issue(key, not_after=now - timedelta(days=1)))
    with pytest.raises(CertificateUnusable, match="expired on"):
        whose.assertion(AUDIENCE)
    replace_file(path, issue(key))
    assert parse_jwt(whose.assertion(AUDIENCE)).header["alg"] == "RS256"
