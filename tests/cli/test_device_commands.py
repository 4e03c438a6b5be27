"""`device list`, `device show` and `device forget-pin-failures`: what people and scripts see."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.cli.text.inventory import module_text, plain
from hsm_signer.device.inventory.facts import CertificateFacts, Contents, DeviceFacts, KeyFacts, ModuleFacts, Problem
from hsm_signer.device.manage.certificates import store_certificate
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.objects import Protection
from hsm_signer.device.pin.state import PinState
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import PIN, WRONG_PIN
from tests.support.ordinary_user import make_site
from tests.support.program import MAIN, Program, Result, Settings, assert_explained, options


@pytest.fixture(scope="module")
def office(good: SoftHsmKey) -> str:
    """The URI of the device with the good key."""
    return "pkcs11:token=office"


@pytest.fixture
def device(office: str, softhsm: SoftHsm) -> Settings:
    return {"key": office, "module": str(softhsm.module), "pin_source": "env:DEVICE_PIN"}


@pytest.fixture
def hanging(softhsm: SoftHsm) -> Iterator[FaultyModule]:
    with FaultyModule(softhsm.module, softhsm.environment, pin=PIN) as hanging:
        hanging.rule("C_Initialize", hang=float("inf"))
        yield hanging


@pytest.fixture
def ordinary(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program as another user than root runs it, with a private p11-kit configuration."""
    path = f"{make_site(tmp_path_factory.mktemp('site'))}:{program.environment['PYTHONPATH']}"
    return replace(program, environment={**program.environment, "PYTHONPATH": path})


def configure(program: Program, name: str, module: Path) -> None:
    """Put a module into p11-kit's configuration of the user."""
    directory = program.home / ".config/pkcs11/modules"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.module").write_text(f"module: {module}\n")


def modules(result: Result) -> dict[str, Any]:
    """Return the facts of each module, by name in p11-kit's configuration, else by path."""
    assert result.status == 0, result.stderr
    return {module["name"] or module["path"]: module for module in result.json["modules"]}


class TestList:
    def test_shows_modules_and_devices_in_readable_blocks(
        self, program: Program, softhsm: SoftHsm, office: str
    ) -> None:
        result = program("device", "list", "--module", str(softhsm.module))
        assert (result.status, result.stderr) == (0, "")
        assert re.search(
            r"""^MODULE \S+\s+SoftHSM 2\.\d+, "Implementation of PKCS11"
(  .*\n)*  DEVICE 'office'  SoftHSM project, SoftHSM v2, serial ([0-9a-f]{16})
    'pkcs11:token=office;serial=\2\?module-name=softhsm2'
    PIN       ok; login required
    signs     RS256 \(CKM_SHA256_RSA_PKCS\), PS256 \(CKM_SHA256_RSA_PKCS_PSS\)$""",
            result.stdout,
            re.MULTILINE,
        )
        assert max(map(len, result.stdout.splitlines())) <= 80

    def test_asks_for_no_pin(self, program: Program, faulty: FaultyModule, office: str) -> None:
        modules(program("device", "list", "--module", str(faulty.path), "-o", "json"))
        assert faulty.calls("C_GetTokenInfo") > 0
        assert faulty.calls("C_Login") == 0

    def test_shows_p11_kits_modules_and_the_one_named(
        self, ordinary: Program, softhsm: SoftHsm, faulty: FaultyModule
    ) -> None:
        configure(ordinary, "ours", softhsm.module)
        found = modules(ordinary("device", "list", "--module", str(faulty.path), "-o", "json"))
        labels = [device["info"]["label"] for device in found["ours"]["devices"]]
        assert labels.count("office") == 1
        assert labels.count("twins") == 2
        assert found[str(faulty.path)]["problem"] is None

    def test_takes_the_module_from_the_profile(self, program: Program, faulty: FaultyModule) -> None:
        profile = program.directory / "config.toml"
        profile.write_text(f'[profile.default]\nmodule = "{faulty.path}"\n')
        found = modules(program("--config", str(profile), "device", "list", "-o", "json"))
        assert found[str(faulty.path)]["problem"] is None

    def test_bad_modules_do_not_stop_the_others(
        self, ordinary: Program, softhsm: SoftHsm, faulty: FaultyModule, hanging: FaultyModule
    ) -> None:
        faulty.rule("C_Initialize", crash=True)
        for name, module in {
            "a-missing": ordinary.directory / "missing.so",
            "b-crashing": faulty.path,
            "c-hanging": hanging.path,
            "ours": softhsm.module,
        }.items():
            configure(ordinary, name, module)
        # Not a short time: there are real modules in the list as well.
        found = modules(ordinary("device", "list", "--device-timeout", "2", "-o", "json"))
        assert found["a-missing"]["problem"]["code"] == "module_load_error"
        assert found["b-crashing"]["problem"]["code"] == "device_error"
        assert found["c-hanging"]["problem"]["code"] == "device_timeout"
        assert found["ours"]["problem"] is None

    def test_a_bad_module_is_explained(self, program: Program) -> None:
        bad = program.directory / "text.so"
        bad.write_text("no library")
        result = program("device", "list", "--module", str(bad))
        assert (result.status, result.stderr) == (0, "")
        block = result.stdout.partition("\n\n")[0]
        assert str(bad) in block
        assert re.search("^  problem ?", block, re.MULTILINE)
        assert re.search("^  hint ", block, re.MULTILINE)

    def test_the_printed_uris_work(self, ordinary: Program, softhsm: SoftHsm, signing: Settings, office: str) -> None:
        configure(ordinary, "ours", softhsm.module)
        found = modules(ordinary("device", "list", "-o", "json"))["ours"]["devices"]
        (listed,) = (device["uri"] for device in found if device["info"]["label"] == "office")
        pin = ("--pin-source", "env:DEVICE_PIN")
        shown = ordinary("device", "show", "--login", "--key", listed, *pin, "-o", "json")
        (key,) = (key for key in shown.json["devices"][0]["contents"]["keys"] if key["label"] == "good")
        result = ordinary("assertion", *options(signing, key=key["uri"], module=None))
        assert result.status == 0, result.stderr

    def test_without_any_module_says_what_to_name(self, program: Program) -> None:
        # The machine's own configuration cannot be hidden from it, only what it reads there.
        none = "import hsm_signer.device.module_search as search; search.modules_to_search = lambda *_: []; "
        result = program("device", "list", python=("-c", none + MAIN[1]))
        assert_explained(result, 3, "module_load_error")


class TestShow:
    def test_without_a_login_says_that_keys_may_be_hidden(self, program: Program, device: Settings) -> None:
        result = program("device", "show", *options(device))
        assert (result.status, result.stderr) == (0, "")
        assert "Not logged in: the device may hide its private keys. --login shows them.\n" in result.stdout
        assert "\n    KEY " not in result.stdout
        assert "\n    CERTIFICATE 'good'  id 01\n" in result.stdout

    def test_without_a_login_needs_no_pin(self, program: Program, device: Settings, faulty: FaultyModule) -> None:
        result = program("device", "show", *options(device, module=str(faulty.path), pin_source=None))
        assert result.status == 0
        assert faulty.calls("C_Login") == 0

    def test_with_a_login_shows_the_keys(self, program: Program, device: Settings) -> None:
        result = program("device", "show", "--login", *options(device))
        assert (result.status, result.stderr) == (0, "")
        assert "hidden" not in result.stdout
        assert re.search(
            r"""
    KEY 'good'  id 01, RSA 2048 bits
      'pkcs11:token=office;serial=[0-9a-f]{16};object=good;id=%01\?module-path=\S+'
      protected sensitive, never extractable, generated on the device
""",
            result.stdout,
        )

    def test_shows_what_a_certificate_is_good_for(self, program: Program, device: Settings, good: SoftHsmKey) -> None:
        result = program("device", "show", "--login", *options(device))
        assert re.search(
            r"""
    CERTIFICATE 'good'  id 01
      subject   CN=hsm-signer test
      valid     \d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d, (29|30) days left
      SHA-1     [0-9A-F]{40}
      SHA-256   [0-9A-F]{64}
      certifies key 'good', id 01
(?!      problem)""",
            result.stdout,
        )

    @pytest.mark.parametrize(
        ("title", "reason"),
        [
            ("CERTIFICATE 'expired'", "expired on"),
            ("CERTIFICATE 'mismatched'", "is for another key"),
            ("KEY 'elliptic'", "of type EC, not RSA"),
            ("KEY 'short'", "has only 1024 bits"),
        ],
    )
    def test_says_what_is_wrong(self, program: Program, device: Settings, title: str, reason: str) -> None:
        text = program("device", "show", "--login", *options(device)).stdout.partition(f"    {title}")[2]
        problem = re.split(r"\n    (?! )", text)[0].partition("problem")[2]
        assert reason in " ".join(problem.split())

    def test_an_object_that_cannot_be_read_is_one_row_that_says_so(
        self, program: Program, device: Settings, softhsm: SoftHsm, good: SoftHsmKey
    ) -> None:
        odd = softhsm.issue_certificate(good.public_key, not_after=datetime(2051, 2, 3, 4, 5, 6, tzinfo=UTC))
        odd = odd.replace(b"20510203040506Z", b"00000203040506Z")  # in the year 0
        with softhsm._open() as opened:
            store_certificate(opened, odd, subject=b"\x30\x00", label="odd", key_id=b"\x77")
        shown = program("device", "show", "--login", *options(device))
        listed = program("key", "list", *options(device))
        assert (shown.status, shown.stderr, listed.status, listed.stderr) == (0, "", 0, "")
        assert "KEY 'good'" in listed.stdout
        row = shown.stdout.partition("CERTIFICATE 'odd'")[2].partition("\n    CERTIFICATE")[0]
        assert "problem   It is not an X.509 certificate: its validity dates are outside" in row
        assert "CERTIFICATE 'good'" in shown.stdout

    def test_logs_in_once(self, program: Program, device: Settings, faulty: FaultyModule) -> None:
        result = program("device", "show", "--login", *options(device, module=str(faulty.path)))
        assert result.status == 0
        assert [login.right for login in faulty.logins()] == [True]

    def test_as_json_is_one_document(self, program: Program, device: Settings) -> None:
        module = program("device", "show", "--login", *options(device), "-o", "json").json
        (found,) = module["devices"]
        (key,) = (key for key in found["contents"]["keys"] if key["label"] == "good")
        (certificate,) = (each for each in found["contents"]["certificates"] if each["label"] == "good")
        assert found["pin"] == "fine"
        assert key["id"] == "01"
        assert certificate["key"] == key["uri"]
        assert datetime.fromisoformat(certificate["not_after"]) > datetime.now(UTC)

    def test_a_refused_pin_is_an_error(self, program: Program, device: Settings) -> None:
        wrong = options(device, pin_source="env:OTHER_PIN")
        result = program("device", "show", "--login", "--no-pin-record", *wrong, environment={"OTHER_PIN": WRONG_PIN})
        assert_explained(result, 4, "pin_incorrect")

    def test_does_not_choose_between_devices(self, program: Program, device: Settings) -> None:
        assert_explained(program("device", "show", *options(device, key=None)), 3, "device_ambiguous")

    def test_does_not_choose_between_keys(self, program: Program, device: Settings, office: str) -> None:
        assert_explained(program("device", "show", *options(device), "--key", office), 2, "config_error")


class TestForgetPinFailures:
    @pytest.fixture
    def refused(self, program: Program, signing: Settings) -> Program:
        """The program, after the device has refused the PIN of a source."""
        assert self.status_with_wrong_pin(program, signing) == "pin_incorrect"
        return program

    @staticmethod
    def status_with_wrong_pin(program: Program, signing: Settings) -> object:
        settings = options(signing, pin_source="env:OTHER_PIN")
        result = program("assertion", *settings, "-o", "json", environment={"OTHER_PIN": WRONG_PIN})
        return result.error["code"]

    def test_the_source_may_be_tried_again(self, refused: Program, signing: Settings) -> None:
        assert self.status_with_wrong_pin(refused, signing) == "pin_refused_before"
        result = refused("device", "forget-pin-failures")
        assert (result.status, result.stderr) == (0, "")
        assert result.stdout.startswith("Forgot the refused PINs of 'office' (SoftHSM project, ")
        assert self.status_with_wrong_pin(refused, signing) == "pin_incorrect"

    def test_a_systemd_credential_that_changed_needs_none(self, program: Program, signing: Settings) -> None:
        copies = program.directory / "credentials"
        copies.mkdir(mode=0o700)

        def code(pin: str | None, start: str) -> object:
            if pin is not None:
                (copies / "card").unlink(missing_ok=True)
                (copies / "card").write_text(pin)
            environment = {"CREDENTIALS_DIRECTORY": str(copies), "INVOCATION_ID": start}
            settings = options(signing, pin_source="credential:card")
            result = program("assertion", *settings, "-o", "json", environment=environment)
            return result.error["code"] if result.status else "signed"

        assert code(WRONG_PIN, "a1") == "pin_incorrect"
        assert code(None, "a1") == "pin_refused_before"
        # A restart makes a new copy, and nobody knows of which PIN.
        assert code(WRONG_PIN, "a2") == "pin_refused_before"
        assert code(PIN, "a2") == "signed"

    def test_of_the_device_named(self, refused: Program) -> None:
        assert refused("device", "forget-pin-failures", "--key", "pkcs11:token=spare", "-o", "json").json == {
            "forgotten": []
        }
        forgotten = refused("device", "forget-pin-failures", "--key", "pkcs11:token=office", "-o", "json").json
        assert len(forgotten["forgotten"]) == 1

    def test_the_keys_of_the_profile_do_not_restrict_it(self, refused: Program) -> None:
        another = {"HSM_SIGNER_KEY": "pkcs11:token=spare"}
        assert len(refused("device", "forget-pin-failures", "-o", "json", environment=another).json["forgotten"]) == 1

    def test_nothing_to_forget_is_no_error(self, program: Program) -> None:
        result = program("device", "forget-pin-failures")
        assert result.status == 0
        assert result.stdout.startswith("There is nothing to forget in ")
        assert result.stderr.startswith("Nothing was forgotten. ")
        assert "\n  sudo -u svc STATE_DIRECTORY=/var/lib/hsm-signer hsm-signer device forget" in result.stderr
        assert program("device", "forget-pin-failures", "-o", "json").stderr == ""

    def test_the_command_for_a_service_forgets_in_its_state_directory(
        self, program: Program, signing: Settings
    ) -> None:
        state = program.directory / "state of the service"
        state.mkdir(mode=0o700)
        wrong = options(signing, pin_source="env:OTHER_PIN")
        service = {"OTHER_PIN": WRONG_PIN, "STATE_DIRECTORY": str(state)}
        results = [program("assertion", *wrong, environment=service) for _ in range(2)]
        command = shlex.split(results[1].stderr.splitlines()[-1])
        words = command[command.index("hsm-signer") + 1 :]
        assert program(*words).stdout.startswith("There is nothing to forget")
        variable = command[command.index("hsm-signer") - 1]
        assert variable == f"STATE_DIRECTORY={state}"
        assert program(*words, environment={"STATE_DIRECTORY": str(state)}).stdout.startswith("Forgot ")

    def test_a_record_that_cannot_be_removed_is_an_error(self, program: Program) -> None:
        (program.home / ".local/state/hsm-signer/pins/stuck.json").mkdir(parents=True)
        assert_explained(program("device", "forget-pin-failures"), 4, "pin_error")


def test_help_loads_no_pkcs11(program: Program) -> None:
    result = program("device", "list", "--help", python=("-X", "importtime", *MAIN))
    assert result.status == 0
    assert not re.search(r"\| *pkcs11$", result.stderr, re.MULTILINE)


DEVICE = DeviceFacts(
    DeviceInfo("Office", "Yubico", "YubiKey 5", "1234", 0, "reader", "Yubico", "Yubico", "library", (2, 2)),
    "pkcs11:token=Office;serial=1234",
    PinState.FINE,
    pad=False,
    mechanisms=(),
)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (PinState.NOT_NEEDED, "no login required"),
        (PinState.FINE, "ok; login required"),
        (PinState.COUNT_LOW, "a wrong PIN was entered"),
        (PinState.LAST_TRY, "one more wrong PIN locks the device"),
        (PinState.LOCKED, "unblock it"),
        (PinState.NOT_SET, "set the user PIN"),
    ],
)
def test_the_state_of_the_pin_is_in_words(state: PinState, words: str) -> None:
    text = module_text(ModuleFacts(None, "/m.so", None, (replace(DEVICE, pin=state),)))
    (line,) = (line for line in text.splitlines() if line.startswith("    PIN  "))
    assert words in line


def test_a_pin_pad_is_named() -> None:
    text = module_text(ModuleFacts(None, "/m.so", None, (replace(DEVICE, pad=True),)))
    assert "PIN       ok; login required; enter it on the device's own PIN pad\n" in text


def key(sensitive: bool | None, extractable: bool | None, never: bool | None, local: bool | None) -> KeyFacts:
    protection = Protection(sensitive, extractable, never, local, always_authenticate=True)
    return KeyFacts("pkcs11:id=%01", "k", b"\x01", "RSA", 2048, protection, problem=None)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (key(True, False, True, True), "sensitive, never extractable, generated on the device"),
        (
            key(False, True, False, False),
            "NOT SENSITIVE, EXTRACTABLE, not generated on the device, so copies may exist",
        ),
        (key(True, False, False, True), "sensitive, not extractable, generated on the device"),
        (key(None, None, None, None), "sensitive: not reported, extractable: not reported, origin not reported"),
    ],
)
def test_the_protection_of_a_key_is_in_words(facts: KeyFacts, words: str) -> None:
    device = replace(DEVICE, contents=Contents(hidden=False, keys=(facts,), certificates=()))
    text = " ".join(module_text(ModuleFacts(None, "/m.so", None, (device,))).split())
    assert f"protected {words}, requires the PIN with each signature" in text


@given(words=st.text(max_size=200), label=st.text(max_size=40))
def test_text_is_80_columns_wide_and_steers_no_terminal(words: str, label: str) -> None:
    problem = Problem("device_error", words, words)
    uri, sha256 = "pkcs11:" + "x" * 100, bytes(32)
    facts = replace(key(True, True, True, True), uri=uri, label=label, problem=problem)
    certificate = CertificateFacts(label, b"\x01", words, None, None, None, bytes(20), sha256, uri, problem)
    device = replace(
        DEVICE, problem=problem, contents=Contents(hidden=True, keys=(facts,), certificates=(certificate,))
    )
    text = module_text(ModuleFacts(None, "/m.so", None, (device,), problem))
    for line in text.split("\n"):
        assert line.isprintable()
        # What has no blank in it stays whole.
        assert len(line) <= 80 or len(line.split()) <= 2
    assert uri in text
    assert sha256.hex() in text


@given(st.text())
def test_json_keeps_what_the_device_says(label: str) -> None:
    facts = replace(key(True, True, True, True), label=label)
    assert json.loads(json.dumps(plain(facts)))["label"] == label
