"""Certificates are read in every common format, and have the usual thumbprints."""

import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.crypto import PublicKey, Signer
from hsm_signer.errors import CertificateMismatch, CertificateUnusable
from hsm_signer.x509.certificate import (
    Certificate,
    certificate_details,
    is_attestation,
    parse_certificates,
    select_certificate,
    to_pem,
)
from hsm_signer.x509.requirements import require_usable
from tests.support.certificates import common_name, make_certificate

SOURCE = "/etc/hsm-signer/app.pem"
SECOND = timedelta(seconds=1)
Issue = Callable[..., bytes]


def pem_of(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def key_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def numbers(key: rsa.RSAPrivateKey) -> PublicKey:
    public = key.public_key().public_numbers()
    return PublicKey(modulus=public.n, exponent=public.e)


@pytest.fixture(scope="module")
def der(key: rsa.RSAPrivateKey, issue: Issue) -> bytes:
    return issue(key, x509.KeyUsage(True, *[False] * 8))


@pytest.fixture(scope="module")
def other_der(other_key: rsa.RSAPrivateKey, issue: Issue) -> bytes:
    return issue(other_key)


def test_der_is_read(der: bytes) -> None:
    assert [found.der for found in parse_certificates(der, SOURCE)] == [der]


def test_pem_is_read(der: bytes) -> None:
    assert [found.der for found in parse_certificates(pem_of(der), SOURCE)] == [der]


def test_a_pem_chain_is_read_in_its_order(der: bytes, other_der: bytes) -> None:
    found = parse_certificates(pem_of(other_der) + pem_of(der), SOURCE)
    assert [each.der for each in found] == [other_der, der]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"Bag Attributes\n    friendlyName: app\nsubject=CN = app\n", b""),
        (b"", b"\n\n"),
        (b"\r\n", b"text behind it\r\n"),
    ],
)
def test_text_around_pem_is_ignored(der: bytes, before: bytes, after: bytes) -> None:
    assert [found.der for found in parse_certificates(before + pem_of(der) + after, SOURCE)] == [der]


def test_pem_may_have_windows_line_ends(der: bytes) -> None:
    pem = pem_of(der).replace(b"\n", b"\r\n")
    assert [found.der for found in parse_certificates(pem, SOURCE)] == [der]


def test_a_private_key_beside_the_certificate_is_ignored(key: rsa.RSAPrivateKey, der: bytes) -> None:
    assert [found.der for found in parse_certificates(key_pem(key) + pem_of(der), SOURCE)] == [der]


def pkcs7(form: str, *ders: bytes, directory: Path) -> bytes:
    """Have openssl put certificates into PKCS#7."""
    chain = directory / "chain.pem"
    chain.write_bytes(b"".join(map(pem_of, ders)))
    command = ["openssl", "crl2pkcs7", "-nocrl", "-certfile", str(chain), "-outform", form]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize("form", ["DER", "PEM"])
def test_pkcs7_is_read_in_any_order(der: bytes, other_der: bytes, form: str, tmp_path: Path) -> None:
    data = pkcs7(form, der, other_der, directory=tmp_path)
    assert {found.der for found in parse_certificates(data, SOURCE)} == {der, other_der}


def test_pkcs7_without_a_certificate_is_refused(tmp_path: Path) -> None:
    command = ["openssl", "crl2pkcs7", "-nocrl", "-outform", "DER"]
    empty = subprocess.run(command, capture_output=True, check=True).stdout
    with pytest.raises(CertificateUnusable, match="is PKCS#7, but holds no certificate"):
        parse_certificates(empty, SOURCE)


def test_pkcs7_cut_off_anywhere_is_refused(der: bytes, other_der: bytes, tmp_path: Path) -> None:
    whole = pkcs7("DER", der, other_der, directory=tmp_path)
    for length in range(len(whole)):
        with pytest.raises(CertificateUnusable, match=re.escape(SOURCE)):
            parse_certificates(whole[:length], SOURCE)


def test_pkcs7_with_any_damaged_byte_gives_certificates_or_a_message_of_one_line(
    der: bytes, signer: Signer, now: datetime, tmp_path: Path
) -> None:
    whole = pkcs7("DER", der, directory=tmp_path)
    for index in range(64):  # behind these it is the certificate
        for octet in (0x00, 0xFF, whole[index] ^ 0x01, whole[index] ^ 0x80):
            assert "\n" not in refusal_of(whole[:index] + bytes([octet]) + whole[index + 1 :], signer, now)


def test_cryptography_reads_our_pem(der: bytes) -> None:
    assert to_pem(der) == pem_of(der)


def test_the_certificate_of_the_key_is_selected_from_a_chain(
    key: rsa.RSAPrivateKey, der: bytes, other_der: bytes
) -> None:
    found = parse_certificates(pem_of(other_der) + pem_of(der), SOURCE)
    assert select_certificate(found, numbers(key), SOURCE).der == der


def test_the_certificate_that_expires_last_is_selected_from_several_of_the_key(
    key: rsa.RSAPrivateKey, issue: Issue, now: datetime
) -> None:
    early, late = issue(key, not_after=now), issue(key, not_after=now + SECOND)
    for order in ((early, late), (late, early)):
        found = parse_certificates(b"".join(map(pem_of, order)), SOURCE)
        assert select_certificate(found, numbers(key), SOURCE).der == late


def marked(*oids: str) -> list[x509.UnrecognizedExtension]:
    return [x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b"\x05\x04\x03") for oid in oids]


YUBIKEY, YUBIHSM = "1.3.6.1.4.1.41482.3", "1.3.6.1.4.1.41482.4"


@pytest.mark.parametrize(
    "oids",
    [
        (f"{YUBIKEY}.3", f"{YUBIKEY}.7", f"{YUBIKEY}.8", f"{YUBIKEY}.9"),  # firmware 5
        (f"{YUBIKEY}.3", f"{YUBIKEY}.8"),  # firmware 4.3
        (f"{YUBIKEY}.3",),  # slot F9
        (f"{YUBIHSM}.1", f"{YUBIHSM}.2", f"{YUBIHSM}.3"),
    ],
)
def test_an_attestation_certificate_is_recognized_by_its_extensions(
    key: rsa.RSAPrivateKey, issue: Issue, oids: tuple[str, ...]
) -> None:
    assert is_attestation(issue(key, *marked(*oids)))


@pytest.mark.parametrize(
    "oids",
    [
        (),
        (f"{YUBIKEY}.2", f"{YUBIKEY}.11"),  # `yubico-piv-tool --attestation -a selfsign-certificate`
        (f"{YUBIKEY}.7",),  # an authority that notes which YubiKey it is for
    ],
)
def test_a_certificate_issued_for_a_key_is_no_attestation_certificate(
    key: rsa.RSAPrivateKey, issue: Issue, oids: tuple[str, ...]
) -> None:
    assert not is_attestation(issue(key, *marked(*oids), subject=x509.Name([])))


@given(st.binary())
def test_bytes_that_are_no_certificate_are_no_attestation_certificate(data: bytes) -> None:
    assert not is_attestation(data)


def test_an_attestation_certificate_is_selected_last(key: rsa.RSAPrivateKey, issue: Issue, now: datetime) -> None:
    own, attestation = issue(key, not_after=now), issue(key, *marked(f"{YUBIKEY}.3"), not_after=now + SECOND)
    for order in ((own, attestation), (attestation, own)):
        found = parse_certificates(b"".join(map(pem_of, order)), SOURCE)
        assert select_certificate(found, numbers(key), SOURCE).der == own


def test_a_chain_without_a_certificate_of_the_key_is_refused_with_its_subjects(
    key: rsa.RSAPrivateKey, other_der: bytes
) -> None:
    with pytest.raises(CertificateMismatch, match=f"No certificate in {SOURCE} .* It holds: CN=unit test"):
        select_certificate(parse_certificates(other_der, SOURCE), numbers(key), SOURCE)


def test_issuer_serial_and_purposes_are_those_that_cryptography_reads(key: rsa.RSAPrivateKey, issue: Issue) -> None:
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING])
    (found,) = parse_certificates(issue(key, purposes), SOURCE)
    ours, theirs = certificate_details(found), x509.load_der_x509_certificate(found.der)
    assert (ours.issuer, ours.serial, ours.purposes) == (
        theirs.issuer.rfc4514_string(),
        theirs.serial_number,
        frozenset({"client_auth", "code_signing"}),
    )


def test_without_an_extended_key_usage_there_are_no_purposes(certificate: Certificate) -> None:
    assert certificate_details(certificate).purposes is None


def test_damaged_details_are_refused_when_they_are_requested(key: rsa.RSAPrivateKey, issue: Issue) -> None:
    der = issue(key, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))
    encoded = bytes.fromhex("06082b06010505070302")  # id-kp-clientAuth, RFC 5280 section 4.2.1.12
    assert der.count(encoded) == 1
    (found,) = parse_certificates(der.replace(encoded, b"\x05" + encoded[1:]), SOURCE)
    with pytest.raises(CertificateUnusable, match="CN=unit test"):
        certificate_details(found)


def test_we_read_the_same_as_cryptography(key: rsa.RSAPrivateKey, der: bytes) -> None:
    ours, theirs = parse_certificates(der, SOURCE)[0], x509.load_der_x509_certificate(der)
    assert (ours.public_key, ours.subject, ours.not_before, ours.not_after, ours.key_usage) == (
        numbers(key),
        theirs.subject.rfc4514_string(),
        theirs.not_valid_before_utc,
        theirs.not_valid_after_utc,
        frozenset({"digital_signature"}),
    )


def test_without_a_key_usage_extension_there_is_none(certificate: Certificate) -> None:
    assert certificate.key_usage is None


def test_a_time_after_2049_is_read(key: rsa.RSAPrivateKey, issue: Issue) -> None:
    # RFC 5280 section 4.1.2.5: from 2050 on it is a GeneralizedTime.
    end = datetime(2051, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert parse_certificates(issue(key, not_after=end), SOURCE)[0].not_after == end


@pytest.mark.parametrize(
    "moment",
    ["00000101000000Z", "20511401000000Z", "20510230000000Z", "20510101250000Z", "2051010100000", "99991231235960Z"],
    ids=["the year 0", "month 14", "30 February", "hour 25", "cut off", "a leap second"],
)
def test_an_impossible_date_is_refused(key: rsa.RSAPrivateKey, issue: Issue, moment: str) -> None:
    der = issue(key, not_after=datetime(2051, 2, 3, 4, 5, 6, tzinfo=UTC))
    odd = der.replace(b"20510203040506Z", moment.encode().ljust(15, b"0"))
    assert odd != der
    with pytest.raises(CertificateUnusable, match=r"is not an X\.509 certificate"):
        parse_certificates(odd, SOURCE)


@pytest.mark.parametrize("moment", ["00010101000000+1400", "99991231235959-1400"])
def test_a_date_that_is_outside_the_calendar_in_utc_is_refused(
    key: rsa.RSAPrivateKey, issue: Issue, moment: str
) -> None:
    der = issue(key, not_after=datetime(2051, 2, 3, 4, 5, 6, tzinfo=UTC))
    time, odd = b"20510203040506Z", moment.encode()
    # Longer by four octets, and so is everything around it.
    at = der.index(time)
    grown = bytearray(der[: at - 1] + bytes([len(odd)]) + odd + der[at + len(time) :])
    for start in (0, 4):
        length = int.from_bytes(grown[start + 2 : start + 4], "big") + 4
        grown[start + 2 : start + 4] = length.to_bytes(2, "big")
    validity = at - 2 - 15 - 2
    assert grown[validity] == 0x30
    grown[validity + 1] += 4
    with pytest.raises(CertificateUnusable, match=r"is not an X\.509 certificate"):
        parse_certificates(bytes(grown), SOURCE)


ATTRIBUTES = st.tuples(
    st.sampled_from(
        [
            NameOID.COMMON_NAME,
            NameOID.ORGANIZATION_NAME,
            NameOID.ORGANIZATIONAL_UNIT_NAME,
            NameOID.LOCALITY_NAME,
            NameOID.STATE_OR_PROVINCE_NAME,
        ]
    ),
    st.text('aé ,+"\\<>;#=', min_size=1, max_size=8),
)


@given(st.lists(st.lists(ATTRIBUTES, min_size=1, max_size=2, unique_by=lambda pair: pair[0]), min_size=1, max_size=3))
def test_a_subject_is_written_as_rfc_4514_says(rdns: list[list[tuple[x509.ObjectIdentifier, str]]]) -> None:
    name = x509.Name(
        x509.RelativeDistinguishedName(x509.NameAttribute(oid, value) for oid, value in rdn) for rdn in rdns
    )
    der = issue_quickly(name)
    # DER sorts the parts of one RDN: compare with what is in the certificate.
    expected = x509.load_der_x509_certificate(der).subject.rfc4514_string()
    assert parse_certificates(der, SOURCE)[0].subject == expected


EC_KEY = ec.generate_private_key(ec.SECP256R1())


def issue_quickly(name: x509.Name) -> bytes:
    return make_certificate(EC_KEY, subject=name).public_bytes(Encoding.DER)


def test_a_subject_cannot_steer_a_terminal() -> None:
    name = common_name("a\x1b[2Jb")
    assert parse_certificates(issue_quickly(name), SOURCE)[0].subject == r"CN=a\1B[2Jb"


def test_a_certificate_may_have_no_subject() -> None:
    assert parse_certificates(issue_quickly(x509.Name([])), SOURCE)[0].subject == "without a subject"


@pytest.mark.parametrize(("algorithm", "attribute"), [("sha1", "sha1"), ("sha256", "sha256")])
def test_thumbprints_are_those_of_openssl(certificate: Certificate, algorithm: str, attribute: str) -> None:
    command = ["openssl", "x509", "-inform", "DER", "-noout", "-fingerprint", f"-{algorithm}"]
    shown = subprocess.run(command, input=certificate.der, capture_output=True, check=True).stdout.decode()
    ours: bytes = getattr(certificate, attribute)
    assert ours.hex().upper() == shown.strip().partition("=")[2].replace(":", "")


def test_thumbprints_are_those_of_cryptography(certificate: Certificate) -> None:
    theirs = x509.load_der_x509_certificate(certificate.der)
    expected = theirs.fingerprint(hashes.SHA1()), theirs.fingerprint(hashes.SHA256())  # noqa: S303  # names, not guards
    assert (certificate.sha1, certificate.sha256) == expected


def test_the_public_key_of_a_certificate_that_is_not_rsa_is_none() -> None:
    assert parse_certificates(issue_quickly(x509.Name([])), SOURCE)[0].public_key is None


@pytest.mark.parametrize(
    "data",
    [b"", b"not a certificate", b"0\x82", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"],
)
def test_bytes_that_are_no_certificate_are_refused_with_the_name_of_their_source(data: bytes) -> None:
    with pytest.raises(CertificateUnusable, match=re.escape(SOURCE)):
        parse_certificates(data, SOURCE)


def test_pem_without_a_certificate_is_refused(key: rsa.RSAPrivateKey) -> None:
    with pytest.raises(CertificateUnusable, match="is PEM, but holds no certificate"):
        parse_certificates(key_pem(key), SOURCE)


def test_a_certificate_with_trailing_bytes_is_refused(der: bytes) -> None:
    with pytest.raises(CertificateUnusable):
        parse_certificates(der + b"\x00", SOURCE)


def test_a_chain_with_one_damaged_certificate_is_refused(der: bytes, other_der: bytes) -> None:
    damaged = pem_of(other_der).replace(b"MII", b"AAA", 1)
    with pytest.raises(CertificateUnusable):
        parse_certificates(pem_of(der) + damaged, SOURCE)


@pytest.mark.parametrize("form", ["der", "pem"])
def test_a_certificate_cut_off_anywhere_is_refused(der: bytes, form: str) -> None:
    whole = der if form == "der" else pem_of(der).partition(b"-----END")[0]
    for length in range(len(whole)):
        with pytest.raises(CertificateUnusable):
            parse_certificates(whole[:length], SOURCE)


def refusal_of(data: bytes, signer: Signer, now: datetime) -> str:
    try:
        for certificate in parse_certificates(data, SOURCE):
            require_usable(certificate, signer.public_key, now)
    except (CertificateUnusable, CertificateMismatch) as refused:
        return refused.message
    return ""


def test_a_certificate_with_any_damaged_byte_gives_a_certificate_or_a_message_of_one_line(
    der: bytes, signer: Signer, now: datetime
) -> None:
    for index in range(len(der) - 256):  # the signature at the end is not ours to judge
        for octet in (0x00, 0xFF, der[index] ^ 0x01, der[index] ^ 0x80):
            assert "\n" not in refusal_of(der[:index] + bytes([octet]) + der[index + 1 :], signer, now)
