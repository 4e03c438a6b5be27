"""`certificate`: what people and scripts see, what is on the device afterwards, and what is refused."""

import base64
import itertools
import json
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pkcs11
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from pkcs11 import Attribute, ObjectClass, TokenFlag

from hsm_signer.cli.text.registration import registration_steps
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from hsm_signer.x509.certificate import parse_certificates
from tests.cli.conftest import key_uri
from tests.support.faulty_module.control import FaultyModule, Rv
from tests.support.names import CLIENT, WRONG_PIN
from tests.support.program import Program, Settings, assert_explained, options
from tests.support.stacks.piv_attestation import attest, make_attesting_key

SUBJECT = ("--subject", "CN=my app,O=Contoso")
DEVICE_MEMORY, TOKEN_WRITE_PROTECTED = 0x31, 0xE2  # PKCS#11 v3.1 section 6.1
_numbers = itertools.count(1)

Refer = Callable[[SoftHsmKey], Settings]


@pytest.fixture
def refer(softhsm: SoftHsm) -> Refer:
    """Write what leads to a key."""
    return lambda key: {"key": key.uri, "module": str(softhsm.module), "pin_source": "env:DEVICE_PIN"}


@pytest.fixture
def key(softhsm: SoftHsm) -> SoftHsmKey:
    """A new key without a certificate."""
    number = next(_numbers)
    return softhsm.add_key(f"fresh-{number}", b"\xc0" + number.to_bytes(2, "big"))


@pytest.fixture
def certified(softhsm: SoftHsm, key: SoftHsmKey) -> bytes:
    """A certificate from a CA, stored for that key on the device."""
    der = softhsm.issue_certificate(key.public_key)
    softhsm.add_certificate(der, key.label, key.id)
    return der


@pytest.fixture
def device(refer: Refer, key: SoftHsmKey) -> list[str]:
    """The options that lead to that key."""
    return options(refer(key))


def stored(softhsm: SoftHsm, key: SoftHsmKey) -> x509.Certificate | None:
    """Read the one certificate of a key, without our own code."""
    with pkcs11.lib(str(softhsm.module)).get_token(token_label=softhsm.label).open() as session:
        template = {Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.ID: key.id}
        ders = [found[Attribute.VALUE] for found in list(session.get_objects(template))]
    assert len(ders) <= 1
    return x509.load_der_x509_certificate(ders[0]) if ders else None


def openssl(*arguments: str, stdin: str = "") -> str:
    done = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


class TestCreate:
    def test_openssl_reads_what_was_asked_for(self, program: Program, device: list[str]) -> None:
        result = program("certificate", "create", *device, *SUBJECT, "--days", "30")
        text = openssl("x509", "-noout", "-text", "-nameopt", "RFC2253", stdin=result.stdout)
        for expected in (
            "Signature Algorithm: sha256WithRSAEncryption",
            "Issuer: CN=my app,O=Contoso\n",
            "Subject: CN=my app,O=Contoso\n",
            "X509v3 Basic Constraints: critical\n                CA:FALSE",
            "X509v3 Key Usage: critical\n                Digital Signature\n",
            "X509v3 Extended Key Usage: \n                TLS Web Client Authentication\n",
        ):
            assert expected in text

    @pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
    def test_openssl_verifies_it(self, program: Program, device: list[str], algorithm: str) -> None:
        file = program.directory / "certificate.pem"
        signed = ("--algorithm", algorithm, "--output-file", str(file))
        assert program("certificate", "create", *device, *SUBJECT, *signed).status == 0
        strictly = ("-x509_strict", "-check_ss_sig", "-purpose", "sslclient")
        assert openssl("verify", *strictly, "-CAfile", str(file), str(file)) == f"{file}: OK\n"

    def test_it_is_stored_beside_the_key(
        self, program: Program, device: list[str], softhsm: SoftHsm, key: SoftHsmKey
    ) -> None:
        result = program("certificate", "create", *device, *SUBJECT)
        found = stored(softhsm, key)
        assert found is not None
        assert found == x509.load_pem_x509_certificate(result.stdout.encode())
        assert found.public_key() == key.public_key

    def test_assertions_use_it(self, program: Program, device: list[str], signing: Settings, key: SoftHsmKey) -> None:
        file = program.directory / "certificate.pem"
        assert program("certificate", "create", *device, *SUBJECT, "--output-file", str(file)).status == 0
        jwt = program("assertion", *options(signing, key=key.uri)).stdout
        assert program("verify", "--certificate", str(file), stdin=jwt).status == 0

    def test_the_file_holds_it_whole_and_stdout_nothing(self, program: Program, device: list[str]) -> None:
        result = program("certificate", "create", *device, *SUBJECT, "--output-file", "certificate.pem")
        assert (result.status, result.stdout) == (0, "")
        pem = (program.directory / "certificate.pem").read_bytes()
        assert x509.load_pem_x509_certificate(pem).public_bytes(Encoding.PEM) == pem

    def test_as_json_is_one_document_and_stderr_is_empty(self, program: Program, device: list[str]) -> None:
        result = program("certificate", "create", *device, *SUBJECT, "-o", "json")
        certificate = x509.load_pem_x509_certificate(result.json["pem"].encode())
        assert result.stderr == ""
        assert result.json["serial"] == f"{certificate.serial_number:x}"
        assert datetime.fromisoformat(result.json["not_after"]) == certificate.not_valid_after_utc

    def test_not_stored_the_device_is_as_before(
        self, program: Program, device: list[str], softhsm: SoftHsm, key: SoftHsmKey
    ) -> None:
        result = program("certificate", "create", *device, *SUBJECT, "--no-store")
        assert x509.load_pem_x509_certificate(result.stdout.encode()).public_key() == key.public_key
        assert stored(softhsm, key) is None

    def test_says_how_it_is_registered(self, program: Program, device: list[str]) -> None:
        file = ("--output-file", "app.pem")
        known = {"HSM_SIGNER_CLIENT_ID": CLIENT}
        result = program("certificate", "create", *device, *SUBJECT, *file, environment=known)
        (certificate,) = parse_certificates((program.directory / "app.pem").read_bytes(), "it")
        assert result.stderr == registration_steps(certificate, Path("app.pem"), CLIENT) + "\n"

    def test_logs_in_once(self, program: Program, device: list[str], faulty: FaultyModule) -> None:
        assert program("certificate", "create", *device, "--module", str(faulty.path), *SUBJECT).status == 0
        assert [login.right for login in faulty.logins()] == [True]

    def test_an_existing_certificate_is_not_replaced_without_the_option(
        self, program: Program, device: list[str], softhsm: SoftHsm, key: SoftHsmKey, certified: bytes
    ) -> None:
        assert_explained(program("certificate", "create", *device, *SUBJECT), 5, "certificate_exists")
        assert stored(softhsm, key) == x509.load_der_x509_certificate(certified)

    def test_checking_that_a_certificate_exists_costs_no_signature(
        self, program: Program, device: list[str], faulty: FaultyModule, certified: bytes
    ) -> None:
        program("certificate", "create", *device, "--module", str(faulty.path), *SUBJECT)
        assert faulty.calls("C_Sign") == 0

    def test_with_the_option_it_replaces(
        self, program: Program, device: list[str], softhsm: SoftHsm, key: SoftHsmKey, certified: bytes
    ) -> None:
        result = program("certificate", "create", *device, *SUBJECT, "--replace")
        assert stored(softhsm, key) == x509.load_pem_x509_certificate(result.stdout.encode())

    def test_the_old_one_stays_where_the_new_one_is_not_stored(
        self,
        program: Program,
        device: list[str],
        softhsm: SoftHsm,
        key: SoftHsmKey,
        faulty: FaultyModule,
        certified: bytes,
    ) -> None:
        faulty.rule("C_CreateObject", rv=DEVICE_MEMORY)
        replacing = (*device, "--module", str(faulty.path), *SUBJECT, "--replace")
        result = program("certificate", "create", *replacing, "--output-file", "certificate.pem")
        assert_explained(result, 3, "device_error")
        assert "full" in result.stderr
        assert stored(softhsm, key) == x509.load_der_x509_certificate(certified)
        assert list(program.directory.iterdir()) == []

    def test_if_the_old_one_cannot_be_deleted_repeating_the_command_helps(
        self,
        program: Program,
        device: list[str],
        softhsm: SoftHsm,
        key: SoftHsmKey,
        faulty: FaultyModule,
        certified: bytes,
    ) -> None:
        faulty.rule("C_DestroyObject", rv=Rv.FUNCTION_FAILED, times=1)
        replacing = ("certificate", "create", *device, "--module", str(faulty.path), *SUBJECT, "--replace")
        assert program(*replacing).status == 3
        again = program(*replacing)
        assert stored(softhsm, key) == x509.load_pem_x509_certificate(again.stdout.encode())

    def test_a_configured_certificate_file_causes_a_warning(
        self, program: Program, device: list[str], certificate: Path
    ) -> None:
        configured = {"HSM_SIGNER_CERTIFICATE": str(certificate)}
        result = program("certificate", "create", *device, *SUBJECT, environment=configured)
        assert result.stderr.startswith("hsm-signer: warning: ")
        assert str(certificate) in result.stderr.splitlines()[0]

    @pytest.mark.parametrize("subject", ["my app", "CN=my app, O=Contoso", "", "CN="])
    def test_a_malformed_subject_is_refused_before_the_device_is_touched(
        self, program: Program, device: list[str], faulty: FaultyModule, subject: str
    ) -> None:
        result = program("certificate", "create", *device, "--module", str(faulty.path), "--subject", subject)
        assert_explained(result, 2, "config_error")
        assert faulty.calls("C_Initialize") == 0

    @pytest.mark.parametrize("days", ["0", "3651", "many"])
    def test_days_out_of_range_are_refused(self, program: Program, device: list[str], days: str) -> None:
        assert_explained(program("certificate", "create", *device, *SUBJECT, "--days", days), 2, "usage")

    def test_a_write_protected_device_is_refused_before_the_pin(
        self, program: Program, device: list[str], faulty: FaultyModule
    ) -> None:
        faulty.flags(set=TokenFlag.WRITE_PROTECTED)
        result = program("certificate", "create", *device, "--module", str(faulty.path), *SUBJECT)
        assert_explained(result, 3, "device_read_only")
        assert "--no-store --output-file FILE" in result.stderr
        assert faulty.calls("C_Login") == 0

    def test_a_device_that_turns_out_write_protected_is_explained(
        self, program: Program, device: list[str], faulty: FaultyModule
    ) -> None:
        faulty.rule("C_CreateObject", rv=TOKEN_WRITE_PROTECTED)
        result = program("certificate", "create", *device, "--module", str(faulty.path), *SUBJECT)
        assert_explained(result, 3, "device_read_only")

    def test_not_stored_a_write_protected_device_will_do(
        self, program: Program, device: list[str], faulty: FaultyModule
    ) -> None:
        faulty.flags(set=TokenFlag.WRITE_PROTECTED)
        made = program("certificate", "create", *device, "--module", str(faulty.path), *SUBJECT, "--no-store")
        assert made.status == 0

    def test_a_short_key_is_refused(self, program: Program, refer: Refer, key: SoftHsmKey) -> None:
        short = options({**refer(key), "key": key_uri("short")})
        result = program("certificate", "create", *short, *SUBJECT, "--no-store")
        assert_explained(result, 5, "key_unfit")


class TestRequest:
    @pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
    def test_openssl_verifies_it(self, program: Program, device: list[str], algorithm: str) -> None:
        result = program("certificate", "request", *device, *SUBJECT, "--algorithm", algorithm)
        assert (result.status, result.stderr) == (0, "")
        text = openssl("req", "-noout", "-text", "-nameopt", "RFC2253", "-verify", stdin=result.stdout)
        assert "verify OK" in text
        assert "Subject: CN=my app,O=Contoso\n" in text
        assert "TLS Web Client Authentication" in text

    def test_the_file_holds_it(self, program: Program, device: list[str], key: SoftHsmKey) -> None:
        assert program("certificate", "request", *device, *SUBJECT, "--output-file", "app.csr").status == 0
        pem = (program.directory / "app.csr").read_bytes()
        assert x509.load_pem_x509_csr(pem).public_key() == key.public_key

    def test_as_json_it_is_one_document(self, program: Program, device: list[str], key: SoftHsmKey) -> None:
        result = program("certificate", "request", *device, *SUBJECT, "-o", "json")
        assert x509.load_pem_x509_csr(result.json["pem"].encode()).public_key() == key.public_key

    def test_works_on_a_write_protected_device(self, program: Program, device: list[str], faulty: FaultyModule) -> None:
        faulty.rule("C_CreateObject", rv=TOKEN_WRITE_PROTECTED)
        assert program("certificate", "request", *device, "--module", str(faulty.path), *SUBJECT).status == 0

    def test_a_malformed_subject_is_refused(self, program: Program, device: list[str]) -> None:
        result = program("certificate", "request", *device, "--subject", "CN=a;O=b")
        assert_explained(result, 2, "config_error")

    def test_a_missing_key(self, program: Program, refer: Refer, key: SoftHsmKey) -> None:
        absent = options({**refer(key), "key": key_uri("absent")})
        assert_explained(program("certificate", "request", *absent, *SUBJECT), 5, "key_not_found")

    def test_a_wrong_pin(self, program: Program, device: list[str]) -> None:
        # Another SoftHSM token: after a refused PIN, SoftHSM warns at the next login.
        spare = ("--no-pin-record", "--pin-source", "env:OTHER_PIN", "--key", "pkcs11:token=spare")
        module = device[device.index("--module") : device.index("--module") + 2]
        result = program("certificate", "request", *module, *spare, *SUBJECT, environment={"OTHER_PIN": WRONG_PIN})
        assert_explained(result, 4, "pin_incorrect")


class TestImport:
    @pytest.fixture
    def issued(self, softhsm: SoftHsm, key: SoftHsmKey) -> x509.Certificate:
        """A certificate that a CA has issued for the key."""
        return x509.load_der_x509_certificate(softhsm.issue_certificate(key.public_key, subject="issued"))

    @pytest.fixture
    def authority(self, softhsm: SoftHsm) -> x509.Certificate:
        """Another certificate, which is in the chain."""
        private_key = rsa.generate_private_key(65537, 2048)
        return x509.load_der_x509_certificate(softhsm.issue_certificate(private_key.public_key(), subject="authority"))

    @pytest.mark.parametrize("form", ["pem", "der", "chain", "p7b", "p7c"])
    def test_every_usual_format_is_accepted_and_the_keys_certificate_stored(
        self,
        program: Program,
        device: list[str],
        softhsm: SoftHsm,
        key: SoftHsmKey,
        issued: x509.Certificate,
        authority: x509.Certificate,
        form: str,
    ) -> None:
        chain = program.directory / "chain.pem"
        chain.write_bytes(authority.public_bytes(Encoding.PEM) + issued.public_bytes(Encoding.PEM))
        file = program.directory / "issued"
        if form in ("p7b", "p7c"):
            outform = "PEM" if form == "p7b" else "DER"
            openssl("crl2pkcs7", "-nocrl", "-certfile", str(chain), "-outform", outform, "-out", str(file))
        else:
            file.write_bytes(
                chain.read_bytes()
                if form == "chain"
                else issued.public_bytes(Encoding.PEM if form == "pem" else Encoding.DER)
            )
        result = program("certificate", "import", *device, str(file))
        assert (result.status, result.stderr) == (0, "")
        assert "subject   CN=issued\n" in result.stdout
        assert stored(softhsm, key) == issued

    @pytest.fixture
    def file(self, program: Program, issued: x509.Certificate) -> str:
        file = program.directory / "issued.der"
        file.write_bytes(issued.public_bytes(Encoding.DER))
        return str(file)

    def test_logs_in_once(self, program: Program, device: list[str], file: str, faulty: FaultyModule) -> None:
        assert program("certificate", "import", *device, "--module", str(faulty.path), file).status == 0
        assert [login.right for login in faulty.logins()] == [True]
        assert faulty.calls("C_Sign") == 0

    def test_an_existing_certificate_is_not_replaced_without_the_option(
        self,
        program: Program,
        device: list[str],
        softhsm: SoftHsm,
        key: SoftHsmKey,
        certified: bytes,
        file: str,
        issued: x509.Certificate,
    ) -> None:
        assert_explained(program("certificate", "import", *device, file), 5, "certificate_exists")
        assert stored(softhsm, key) == x509.load_der_x509_certificate(certified)
        assert program("certificate", "import", *device, file, "--replace").status == 0
        assert stored(softhsm, key) == issued

    def test_the_certificate_of_another_key_is_refused(
        self, program: Program, device: list[str], softhsm: SoftHsm, key: SoftHsmKey, authority: x509.Certificate
    ) -> None:
        file = program.directory / "other.der"
        file.write_bytes(authority.public_bytes(Encoding.DER))
        result = program("certificate", "import", *device, str(file))
        assert_explained(result, 5, "certificate_mismatch")
        assert "CN=authority" in result.stderr
        assert stored(softhsm, key) is None

    def test_an_expired_certificate_is_refused(
        self, program: Program, device: list[str], softhsm: SoftHsm, key: SoftHsmKey
    ) -> None:
        past = datetime.now(UTC) - timedelta(days=1)
        file = program.directory / "expired.der"
        file.write_bytes(softhsm.issue_certificate(key.public_key, not_before=past - timedelta(1), not_after=past))
        result = program("certificate", "import", *device, str(file))
        assert_explained(result, 5, "certificate_unusable")
        assert "expired on" in result.stderr
        assert stored(softhsm, key) is None

    def test_a_certificate_that_only_attests_the_key_is_refused(
        self, program: Program, device: list[str], softhsm: SoftHsm, key: SoftHsmKey, certified: bytes
    ) -> None:
        assert isinstance(key.public_key, rsa.RSAPublicKey)
        file = program.directory / "attestation.der"
        file.write_bytes(attest(make_attesting_key()[0], 0x9A, key.public_key, b"\x12\x34", b"\x02\x01"))
        result = program("certificate", "import", *device, str(file), "--replace")
        assert_explained(result, 5, "certificate_unusable")
        assert "only the device's attestation certificate" in result.stderr
        assert stored(softhsm, key) == x509.load_der_x509_certificate(certified)

    @pytest.mark.parametrize("content", [b"", b"not a certificate", b"-----BEGIN CERTIFICATE-----\nMIIB\n"])
    def test_a_file_without_a_certificate_is_refused_before_the_device_is_used(
        self, program: Program, device: list[str], faulty: FaultyModule, content: bytes
    ) -> None:
        file = program.directory / "text"
        file.write_bytes(content)
        result = program("certificate", "import", *device, "--module", str(faulty.path), str(file))
        assert_explained(result, 5, "certificate_unusable")
        assert faulty.calls("C_Initialize") == 0

    def test_a_missing_file(self, program: Program, device: list[str]) -> None:
        assert_explained(program("certificate", "import", *device, "missing.pem"), 5, "certificate_not_found")


class TestExport:
    def test_pem_is_the_stored_certificate(self, program: Program, device: list[str], certified: bytes) -> None:
        result = program("certificate", "export", *device)
        assert (result.status, result.stderr) == (0, "")
        assert result.stdout.encode() == x509.load_der_x509_certificate(certified).public_bytes(Encoding.PEM)

    def test_der_is_written_unchanged(self, program: Program, device: list[str], certified: bytes) -> None:
        result = program("certificate", "export", *device, "--form", "der", "--output-file", "app.cer")
        assert (result.status, result.stdout, result.stderr) == (0, "", "")
        assert (program.directory / "app.cer").read_bytes() == certified

    def test_der_goes_through_a_pipe_unchanged(self, program: Program, device: list[str], certified: bytes) -> None:
        within = ("sh", "-c", '"$@" | base64 -w0', "sh")
        result = program("certificate", "export", *device, "--form", "der", within=within)
        assert base64.b64decode(result.stdout) == certified

    def test_the_body_for_graph_holds_it(self, program: Program, device: list[str], certified: bytes) -> None:
        (credential,) = program("certificate", "export", *device, "--form", "graph").json["keyCredentials"]
        assert base64.b64decode(credential.pop("key")) == certified
        assert credential == {
            "type": "AsymmetricX509Cert",
            "usage": "Verify",
            "displayName": "CN=hsm-signer test",
        }

    def test_with_a_pem_file_it_says_how_to_register_it(
        self, program: Program, device: list[str], certified: bytes
    ) -> None:
        result = program("certificate", "export", *device, "--output-file", "app.pem")
        (certificate,) = parse_certificates(certified, "it")
        assert result.stderr == registration_steps(certificate, Path("app.pem"), None) + "\n"

    def test_no_login_where_the_uri_has_the_id(
        self, program: Program, device: list[str], faulty: FaultyModule, certified: bytes
    ) -> None:
        assert program("certificate", "export", *device, "--module", str(faulty.path)).status == 0
        assert faulty.calls("C_Login") == 0

    def test_by_the_label_alone_one_login_finds_it(
        self, program: Program, refer: Refer, key: SoftHsmKey, faulty: FaultyModule, certified: bytes
    ) -> None:
        by_label = options({**refer(key), "key": key_uri(key.label), "module": str(faulty.path)})
        result = program("certificate", "export", *by_label)
        assert result.stdout.encode() == x509.load_der_x509_certificate(certified).public_bytes(Encoding.PEM)
        assert [login.right for login in faulty.logins()] == [True]

    def test_a_key_without_a_certificate(self, program: Program, device: list[str]) -> None:
        assert_explained(program("certificate", "export", *device), 5, "certificate_not_found")

    def test_a_file_that_cannot_be_written(self, program: Program, device: list[str], certified: bytes) -> None:
        result = program("certificate", "export", *device, "--output-file", "missing/app.pem")
        assert_explained(result, 74, "output_error")


class TestShow:
    def test_shows_what_openssl_shows(self, program: Program, device: list[str], certified: bytes) -> None:
        result = program("certificate", "show", *device)
        assert (result.status, result.stderr) == (0, "")
        certificate = x509.load_der_x509_certificate(certified)
        file = program.directory / "certificate.der"
        file.write_bytes(certified)

        def fingerprint(algorithm: str) -> str:
            shown = openssl("x509", "-inform", "DER", "-in", str(file), "-noout", "-fingerprint", f"-{algorithm}")
            return shown.strip().partition("=")[2].replace(":", "")

        def base64url(text: str) -> str:
            return base64.urlsafe_b64encode(bytes.fromhex(text)).decode().rstrip("=")

        sha1, sha256 = fingerprint("sha1"), fingerprint("sha256")
        assert re.fullmatch(
            rf"""subject   CN=hsm-signer test
issuer    CN=hsm-signer test issuer
serial    {certificate.serial_number:x}
valid     \d{{4}}-\d\d-\d\d to \d{{4}}-\d\d-\d\d, (29|30) days left
key       RSA, 2048 bits
usage     any
purpose   any
SHA-1     {sha1} \(as the portal shows it\)
x5t       {base64url(sha1)}
SHA-256   {sha256}
x5t#S256  {base64url(sha256)}
""",
            result.stdout,
        )

    def test_of_a_file_needs_no_device(self, program: Program, device: list[str]) -> None:
        created = program("certificate", "create", *device, *SUBJECT, "--no-store", "--output-file", "app.pem")
        assert created.status == 0
        shown = program("certificate", "show", "app.pem")
        assert (shown.status, shown.stderr) == (0, "")
        assert "usage     digital signature\npurpose   client auth\n" in shown.stdout

    def test_of_a_chain_shows_every_certificate(self, program: Program, certificate: Path) -> None:
        pem = x509.load_der_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.PEM)
        (program.directory / "chain.pem").write_bytes(pem + pem)
        assert len(program("certificate", "show", "chain.pem").stdout.split("\n\n")) == 2
        assert len(program("certificate", "show", "chain.pem", "-o", "json").json["certificates"]) == 2

    def test_an_expired_certificate_says_so(self, program: Program, softhsm: SoftHsm, key: SoftHsmKey) -> None:
        past = datetime.now(UTC) - timedelta(days=1)
        file = program.directory / "expired.der"
        file.write_bytes(softhsm.issue_certificate(key.public_key, not_before=past - timedelta(1), not_after=past))
        assert ", EXPIRED\n" in program("certificate", "show", str(file)).stdout

    def test_as_json_it_has_the_thumbprints_in_every_form(self, program: Program, certificate: Path) -> None:
        (shown,) = program("certificate", "show", str(certificate), "-o", "json").json["certificates"]
        theirs = x509.load_der_x509_certificate(certificate.read_bytes())
        sha1, sha256 = theirs.fingerprint(hashes.SHA1()), theirs.fingerprint(hashes.SHA256())  # noqa: S303  # names
        assert (shown["sha1"], shown["portal"], shown["sha256"]) == (sha1.hex(), sha1.hex().upper(), sha256.hex())
        assert base64.urlsafe_b64decode(shown["x5t"] + "=") == sha1
        assert base64.urlsafe_b64decode(shown["x5t#S256"] + "=") == sha256

    def test_what_is_no_certificate(self, program: Program) -> None:
        (program.directory / "text").write_text("not a certificate")
        assert_explained(program("certificate", "show", "text"), 5, "certificate_unusable")

    def test_does_not_choose_between_keys(self, program: Program, device: list[str]) -> None:
        assert_explained(program("certificate", "show", *device, "--key", key_uri("good")), 2, "config_error")


class TestRegistrationSteps:
    @pytest.fixture
    def steps(self, certified: bytes) -> str:
        (certificate,) = parse_certificates(certified, "it")
        return registration_steps(certificate, Path("my app.pem"), CLIENT)

    def test_azure_cli_is_given_a_command_that_a_shell_reads_as_meant(self, steps: str, certified: bytes) -> None:
        (line,) = (line for line in steps.splitlines() if line.startswith("    az "))
        words = subprocess.run(["sh", "-c", f'az() {{ printf "%s\\n" "$@"; }}; {line}'], capture_output=True, text=True)
        end = x509.load_der_x509_certificate(certified).not_valid_after_utc
        assert words.stdout.splitlines() == [
            *("ad", "app", "credential", "reset", "--id", CLIENT, "--cert", "@my app.pem", "--append"),
            *("--end-date", end.isoformat()),
        ]

    def test_the_portal_is_described_with_the_thumbprint_it_will_show(self, steps: str, certified: bytes) -> None:
        sha1 = x509.load_der_x509_certificate(certified).fingerprint(hashes.SHA1())  # noqa: S303  # a name
        assert f"thumbprint {sha1.hex().upper()}):\n" in steps
        assert "Upload certificate > my app.pem\n" in steps

    def test_graph_is_addressed_by_the_client_id(self, steps: str) -> None:
        assert f"PATCH /v1.0/applications(appId='{CLIENT}')\n" in steps

    def test_without_file_and_client_id_it_says_what_to_put_there(self, certified: bytes) -> None:
        (certificate,) = parse_certificates(certified, "it")
        steps = registration_steps(certificate, None, None)
        assert "First save the certificate above as certificate.pem." in steps
        assert "--id CLIENT_ID --cert @certificate.pem " in steps


def test_help_loads_no_pkcs11(program: Program) -> None:
    shown = "import sys; from hsm_signer.cli.app import run; run(['certificate', 'create', '--help']); "
    result = program(python=("-c", shown + "import json; print(json.dumps('pkcs11' in sys.modules))"))
    assert json.loads(result.stdout.splitlines()[-1]) is False
