"""`key generate`, `key list` and `key delete`: what people and scripts see."""

import base64
import re
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule, Rv
from tests.support.names import PIN, WRONG_PIN
from tests.support.program import Program, Result, Settings, assert_explained, options
from tests.support.terminal import Terminal

DEVICE_MEMORY = 0x31  # CKR_DEVICE_MEMORY, PKCS#11 v3.1 section 6.1


@pytest.fixture
def vault() -> Iterator[SoftHsm]:
    """An empty device, the only one."""
    with SoftHsm(label="vault", pin=PIN) as vault:
        yield vault


@pytest.fixture
def device(vault: SoftHsm) -> Settings:
    return {"module": str(vault.module), "pin_source": "env:DEVICE_PIN"}


@pytest.fixture
def faulty(vault: SoftHsm) -> Iterator[FaultyModule]:
    with FaultyModule(vault.module, vault.environment, pin=PIN) as faulty:
        yield faulty


@pytest.fixture
def program(program: Program, vault: SoftHsm) -> Program:
    return Program(program.directory, program.home, {**program.environment, **vault.environment})


def labels(program: Program, device: Settings) -> list[str]:
    """Return the labels of the keys on the device, sorted."""
    result = program("key", "list", *options(device), "-o", "json")
    assert result.status == 0, result.stderr
    return sorted(key["label"] for key in result.json["keys"])


class TestGenerate:
    def test_prints_the_bare_uri_and_says_what_comes_next(self, program: Program, device: Settings) -> None:
        result = program("key", "generate", *options(device), "--label", "office key")
        assert result.status == 0
        assert re.fullmatch(
            r"pkcs11:token=vault;serial=[0-9a-f]{16};object=office%20key;id=(%[0-9A-F]{2}){4}\?module-path=\S+\n",
            result.stdout,
        )
        assert result.stderr == (
            "Next: create its certificate.\n"
            f"  hsm-signer certificate create --subject CN=NAME --key '{result.stdout.strip()}'\n"
        )

    def test_the_printed_uri_can_sign(
        self, program: Program, vault: SoftHsm, device: Settings, signing: Settings
    ) -> None:
        uri = program("key", "generate", *options(device), "--label", "signer").stdout.strip()
        access = KeyAccess(
            Pkcs11Uri.parse(uri), FixedLogin(Pin(PIN), "a test"), vault.module, module_environment=vault.environment
        )
        with open_device(access) as opened:
            numbers = open_signer(opened).public_key
        public_key = rsa.RSAPublicNumbers(numbers.exponent, numbers.modulus).public_key()
        certificate = program.directory / "certificate.der"
        certificate.write_bytes(vault.issue_certificate(public_key))
        result = program("assertion", *options(signing, **device, key=uri, certificate=str(certificate)))
        assert result.status == 0, result.stderr
        signing_input, _, signature = result.stdout.strip().rpartition(".")
        decoded = base64.urlsafe_b64decode(signature + "==")
        public_key.verify(decoded, signing_input.encode(), padding.PKCS1v15(), hashes.SHA256())

    def test_the_uri_leads_to_the_module_that_made_it(self, program: Program, vault: SoftHsm, device: Settings) -> None:
        where = f"pkcs11:?module-path={vault.module}"
        uri = program("key", "generate", *options(device, module=None, key=where), "--label", "k").stdout.strip()
        assert Pkcs11Uri.parse(uri).module_path == str(vault.module)
        assert program("key", "list", *options(device, module=None, key=uri)).status == 0

    def test_as_json_is_one_document(self, program: Program, device: Settings) -> None:
        given = ("--label", "k", "--id", "0a0B", "--bits", "3072", "--always-authenticate")
        result = program("key", "generate", *options(device), *given, "-o", "json")
        assert (result.status, result.stderr) == (0, "")
        document = result.json
        assert document.pop("uri").partition("?")[0].endswith(";object=k;id=%0A%0B")
        assert document == {"label": "k", "id": "0a0b", "bits": 3072, "always_authenticate": True}

    def test_logs_in_once(self, program: Program, device: Settings, faulty: FaultyModule) -> None:
        assert program("key", "generate", *options(device, module=str(faulty.path)), "--label", "k").status == 0
        assert [login.right for login in faulty.logins()] == [True]

    @pytest.mark.parametrize("taken", [("--label", "k"), ("--label", "other", "--id", "0a")], ids=["label", "id"])
    def test_a_label_or_id_in_use_is_refused(self, program: Program, device: Settings, taken: tuple[str, ...]) -> None:
        program("key", "generate", *options(device), "--label", "k", "--id", "0a")
        assert_explained(program("key", "generate", *options(device), *taken), 5, "key_exists")
        assert labels(program, device) == ["k"]

    @pytest.mark.parametrize(
        "given",
        [
            ("--label", ""),
            ("--label", "two\nlines"),
            ("--label", "k", "--id", ""),
            ("--label", "k", "--id", "0g"),
            ("--label", "k", "--id", "1"),
            ("--label", "k", "--bits", "1024"),
        ],
        ids=lambda given: " ".join(given).replace("\n", " "),
    )
    def test_an_impossible_key_is_refused_before_the_search_for_the_device(
        self, program: Program, device: Settings, given: tuple[str, ...]
    ) -> None:
        nowhere = options(device, key="pkcs11:token=nowhere")
        assert_explained(program("key", "generate", *nowhere, *given), 2, "config_error")

    def test_without_a_label_is_a_usage_error(self, program: Program, device: Settings) -> None:
        assert program("key", "generate", *options(device)).status == 2

    def test_a_full_device_says_so(self, program: Program, device: Settings, faulty: FaultyModule) -> None:
        faulty.rule("C_GenerateKeyPair", rv=DEVICE_MEMORY)
        result = program("key", "generate", *options(device, module=str(faulty.path)), "--label", "k")
        assert_explained(result, 3, "device_error")
        assert "The device is full" in result.stderr

    def test_a_wrong_pin_is_sent_once(self, program: Program, device: Settings, faulty: FaultyModule) -> None:
        wrong = options(device, module=str(faulty.path), pin_source="env:OTHER_PIN")
        result = program("key", "generate", *wrong, "--label", "k", environment={"OTHER_PIN": WRONG_PIN})
        assert (result.status, result.stdout) == (4, "")
        assert [login.right for login in faulty.logins()] == [False]

    def test_two_devices_are_not_chosen_from(self, program: Program, vault: SoftHsm, device: Settings) -> None:
        vault.add_token("second")
        assert_explained(program("key", "generate", *options(device), "--label", "k"), 3, "device_ambiguous")

    def test_an_interrupted_creation_is_not_reported_as_done_and_can_be_repeated(
        self, program: Program, device: Settings, faulty: FaultyModule
    ) -> None:
        faulty.rule("C_GenerateKeyPair", after_forward=True, crash=True)
        command = ("key", "generate", *options(device, module=str(faulty.path)), "--label", "k")
        cut_short = program(*command)
        assert (cut_short.status < 0, cut_short.stdout) == (True, "")
        faulty.clear()
        # The device had made it. Nothing is made a second time under its name.
        assert_explained(program(*command), 5, "key_exists")
        assert program("key", "delete", *options(device), "--key", "pkcs11:object=k", "--yes").status == 0
        assert program(*command).status == 0

    def test_the_time_it_takes_is_shown_on_a_terminal(
        self, program: Program, device: Settings, faulty: FaultyModule, terminal: Terminal
    ) -> None:
        faulty.rule("C_GenerateKeyPair", hang=1.5)
        command = ("key", "generate", *options(device, module=str(faulty.path)), "--label", "k")
        with program.start(*command, stderr=terminal.program_side) as process:
            terminal.wait_for("Still generating a key…")
            terminal.wait_for("\x1b[K")
            stdout, _ = process.communicate(timeout=60)
        assert stdout.startswith("pkcs11:")


class TestList:
    def test_shows_the_keys_and_not_the_certificates(self, program: Program, vault: SoftHsm, device: Settings) -> None:
        vault.add_identity("k", b"\x01")
        result = program("key", "list", *options(device))
        assert (result.status, result.stderr) == (0, "")
        assert "    KEY 'k'  id 01, RSA 2048 bits\n" in result.stdout
        assert "CERTIFICATE" not in result.stdout

    def test_of_an_empty_device_says_so(self, program: Program, device: Settings) -> None:
        assert "    no private key" in program("key", "list", *options(device)).stdout

    def test_as_json_has_the_keys_with_their_protection(
        self, program: Program, vault: SoftHsm, device: Settings
    ) -> None:
        vault.add_identity("k", b"\x01")
        (key,) = program("key", "list", *options(device), "-o", "json").json["keys"]
        assert (key["label"], key["id"], key["bits"], key["never_extractable"]) == ("k", "01", 2048, True)

    def test_works_on_one_device_only(self, program: Program, device: Settings) -> None:
        two = ("--key", "pkcs11:token=vault", "--key", "pkcs11:token=other")
        assert_explained(program("key", "list", *options(device), *two), 2, "config_error")


class TestDelete:
    @pytest.fixture
    def key(self, vault: SoftHsm) -> SoftHsmKey:
        """A key with its certificate. The device has another key, too."""
        vault.add_identity("other", b"\x02")
        return vault.add_identity("old", b"\x01")

    @staticmethod
    def certificates(program: Program, device: Settings) -> list[str]:
        shown = program("device", "show", *options(device), "-o", "json").json["devices"][0]
        return sorted(each["label"] for each in shown["contents"]["certificates"])

    def test_deletes_the_key_pair_and_leaves_the_certificate(
        self, program: Program, device: Settings, key: SoftHsmKey
    ) -> None:
        result = program("key", "delete", *options(device, key=key.uri), "--yes")
        assert (result.status, result.stdout) == (0, "Deleted key 'old', id 01.\n")
        assert re.fullmatch(
            r"The certificate CN=hsm-signer test, SHA-1 [0-9A-F]{40} is still on the device\. "
            r"With --certificate, it would have been deleted, too\.\n",
            result.stderr,
        )
        assert labels(program, device) == ["other"]
        assert self.certificates(program, device) == ["old", "other"]

    def test_deletes_the_certificates_with_the_option(
        self, program: Program, vault: SoftHsm, device: Settings, key: SoftHsmKey
    ) -> None:
        vault.add_certificate(vault.issue_certificate(key.public_key, subject="second"), "under another id", b"\x07")
        result = program("key", "delete", *options(device, key=key.uri), "--yes", "--certificate")
        assert (result.status, result.stderr) == (0, "")
        assert [line.partition(",")[0] for line in sorted(result.stdout.splitlines())] == [
            "Deleted certificate CN=hsm-signer test",
            "Deleted certificate CN=second",
            "Deleted key 'old'",
        ]
        assert self.certificates(program, device) == ["other"]

    def test_as_json_is_one_document(self, program: Program, device: Settings, key: SoftHsmKey) -> None:
        assert key.certificate is not None
        sha1 = x509.load_der_x509_certificate(key.certificate).fingerprint(hashes.SHA1()).hex()  # noqa: S303
        result = program("key", "delete", *options(device, key=key.uri), "--yes", "--certificate", "-o", "json")
        assert result.stderr == ""
        assert result.json == {
            "key": {"label": "old", "id": "01"},
            "certificates": [{"subject": "CN=hsm-signer test", "sha1": sha1}],
        }

    def test_a_key_that_cannot_sign_goes_as_well(self, program: Program, vault: SoftHsm, device: Settings) -> None:
        vault.import_key(rsa.generate_private_key(65537, 1024), "short", b"\x03")  # noqa: S505
        result = program("key", "delete", *options(device, key="pkcs11:object=short"), "--yes")
        assert result.status == 0, result.stderr
        assert labels(program, device) == []

    def test_without_a_terminal_and_without_yes_is_refused_before_any_login(
        self, program: Program, device: Settings, key: SoftHsmKey, faulty: FaultyModule
    ) -> None:
        result = program("key", "delete", *options(device, module=str(faulty.path), key=key.uri))
        assert_explained(result, 2, "config_error")
        assert "--yes" in result.stderr
        assert faulty.calls("C_Login") == 0

    @pytest.mark.parametrize("uri", [None, "pkcs11:token=vault"])
    def test_the_uri_of_a_device_names_no_key(self, program: Program, device: Settings, uri: str | None) -> None:
        assert_explained(program("key", "delete", *options(device, key=uri), "--yes"), 2, "config_error")

    def test_a_missing_key_is_not_found(self, program: Program, device: Settings) -> None:
        uri = "pkcs11:object=nothing"
        assert_explained(program("key", "delete", *options(device, key=uri), "--yes"), 5, "key_not_found")

    def test_an_interrupted_deletion_can_be_repeated(
        self, program: Program, device: Settings, key: SoftHsmKey, faulty: FaultyModule
    ) -> None:
        # After the certificate and the public half.
        faulty.rule("C_DestroyObject", skip=2, rv=Rv.DEVICE_ERROR)
        command = ("key", "delete", *options(device, module=str(faulty.path), key=key.uri), "--yes", "--certificate")
        assert program(*command).status == 3
        assert labels(program, device) == ["old", "other"]
        faulty.clear()
        assert program(*command).status == 0
        assert labels(program, device) == ["other"]


class TestConfirmation:
    @pytest.fixture
    def key(self, vault: SoftHsm) -> SoftHsmKey:
        return vault.add_identity("old", b"\x01")

    @staticmethod
    def answer(program: Program, terminal: Terminal, command: list[str], typed: str) -> Result:
        """Run a command, type something at its question, and return how it ended."""
        with program.start(*command, within=terminal.shell) as process:
            terminal.wait_for("of the key: ")
            terminal.type(typed)
            terminal.wait_for("it ended with ")
            terminal.type("\n")
            stdout, stderr = process.communicate(timeout=60)
        return Result(process.returncode, stdout, stderr, program)

    def test_the_label_typed_deletes_what_was_shown(
        self, program: Program, device: Settings, key: SoftHsmKey, terminal: Terminal
    ) -> None:
        command = ["key", "delete", *options(device, key=key.uri), "--certificate"]
        result = self.answer(program, terminal, command, "old\n")
        assert result.status == 0, result.stderr
        shown = terminal.seen.replace("\r", "")
        assert shown.startswith("This permanently deletes from 'vault' (SoftHSM project, SoftHSM v2, ")
        assert re.search(r"\n  certificate CN=hsm-signer test, SHA-1 [0-9A-F]{40}\n  key 'old', id 01\n", shown)
        assert "To continue, type the label of the key: " in shown
        assert labels(program, device) == []

    @pytest.mark.parametrize("typed", ["yes\n", "\n", "old key\n", "\x04"], ids=["yes", "nothing", "another", "end"])
    def test_anything_else_deletes_nothing(
        self, program: Program, device: Settings, key: SoftHsmKey, terminal: Terminal, typed: str
    ) -> None:
        result = self.answer(program, terminal, ["key", "delete", *options(device, key=key.uri)], typed)
        assert (result.status, result.stdout) == (2, "")
        assert "Nothing was deleted." in result.stderr
        assert labels(program, device) == ["old"]

    def test_a_key_without_a_label_is_confirmed_by_its_id(
        self, program: Program, vault: SoftHsm, device: Settings, terminal: Terminal
    ) -> None:
        vault.import_key(rsa.generate_private_key(65537, 2048), "", b"\x0a\x0b")
        command = ["key", "delete", *options(device, key="pkcs11:id=%0A%0B")]
        result = self.answer(program, terminal, command, "0a0b\n")
        assert "type the ID of the key" in terminal.seen
        assert result.status == 0, result.stderr
        assert labels(program, device) == []

    def test_ctrl_c_at_the_question_deletes_nothing(
        self, program: Program, device: Settings, key: SoftHsmKey, terminal: Terminal
    ) -> None:
        result = self.answer(program, terminal, ["key", "delete", *options(device, key=key.uri)], "\x03")
        assert (result.status, result.stderr) == (130, "")
        assert labels(program, device) == ["old"]
