"""The inventory: its facts are right, its URIs work, and a bad module spoils only its own entry."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pkcs11 import Mechanism, TokenFlag

from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.inventory.facts import (
    CertificateFacts,
    Contents,
    DeviceFacts,
    KeyFacts,
    ModuleFacts,
    mechanism_facts,
)
from hsm_signer.device.inventory.inspect import examine
from hsm_signer.device.inventory.survey import survey
from hsm_signer.device.module_search import ModuleReference, modules_to_search
from hsm_signer.device.objects import Protection
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import NO_LOGIN, FixedLogin
from hsm_signer.device.pin.state import PinState
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceAmbiguous, PinIncorrect, PinLocked
from hsm_signer.testing import SoftHsm
from tests.support.c_library import compile_library
from tests.support.faulty_module.control import FaultyModule, Rv
from tests.support.ordinary_user import be_ordinary_user, make_site

NOW = datetime.now(UTC)
SECONDS = 30.0


@pytest.fixture(scope="module")
def office() -> Iterator[SoftHsm]:
    """A device with every kind of key and certificate that the inventory says something about."""
    with SoftHsm(label="office") as office:
        office.add_identity("good", b"\x01")
        private_key = rsa.generate_private_key(65537, 2048)
        imported = office.import_key(private_key, "imported", b"\x02").public_key
        old = office.issue_certificate(
            imported, not_before=NOW - timedelta(days=30), not_after=NOW - timedelta(days=1, hours=1)
        )
        office.add_certificate(old, "expired", b"\x02")
        office.add_certificate(office.issue_certificate(imported), "elsewhere", b"\x12")
        other = rsa.generate_private_key(65537, 2048)
        office.import_key(other, "mismatched", b"\x03")
        office.add_certificate(office.issue_certificate(imported), "mismatched", b"\x03")
        office.import_key(ec.generate_private_key(ec.SECP256R1()), "elliptic", b"\x04")
        office.import_key(rsa.generate_private_key(65537, 1024), "short", b"\x05")  # noqa: S505
        yield office


@pytest.fixture
def access(office: SoftHsm) -> KeyAccess:
    return KeyAccess(
        uri=Pkcs11Uri(token="office"),
        pin=FixedLogin(Pin(office.pin), "the test PIN"),
        module=office.module,
        module_environment=office.environment,
        timeout=SECONDS,
    )


@pytest.fixture
def faulty(office: SoftHsm) -> Iterator[FaultyModule]:
    with FaultyModule(office.module, office.environment, pin=office.pin) as faulty:
        yield faulty


def device_of(facts: ModuleFacts) -> DeviceFacts:
    assert facts.problem is None
    (device,) = facts.devices
    return device


def contents_of(facts: ModuleFacts) -> Contents:
    contents = device_of(facts).contents
    assert contents is not None
    return contents


@pytest.fixture
def contents(access: KeyAccess) -> Contents:
    return contents_of(examine(access, NOW, login=True))


def key_of(contents: Contents, label: str) -> KeyFacts:
    (key,) = (key for key in contents.keys if key.label == label)
    return key


def certificate_of(contents: Contents, label: str) -> CertificateFacts:
    (certificate,) = (certificate for certificate in contents.certificates if certificate.label == label)
    return certificate


class TestMechanisms:
    def test_the_mechanism_that_leaves_the_most_to_the_device_is_chosen(self) -> None:
        facts = mechanism_facts({Mechanism.RSA_X_509, Mechanism.RSA_PKCS, Mechanism.SHA256_RSA_PKCS})
        assert [(each.algorithm, each.name, each.chosen) for each in facts] == [
            (Algorithm.RS256, "CKM_SHA256_RSA_PKCS", True),
            (Algorithm.RS256, "CKM_RSA_PKCS", False),
            (Algorithm.RS256, "CKM_RSA_X_509", False),
            (Algorithm.PS256, "CKM_RSA_X_509", True),
        ]

    def test_the_facts_say_who_hashes_and_who_pads(self) -> None:
        facts = mechanism_facts({Mechanism.RSA_X_509, Mechanism.RSA_PKCS_PSS, Mechanism.SHA256_RSA_PKCS})
        assert {each.name: each.work for each in facts} == {
            "CKM_SHA256_RSA_PKCS": "hashed by the device",
            "CKM_RSA_PKCS_PSS": "hashed by the host",
            "CKM_RSA_X_509": "hashed and padded by the host",
        }

    def test_mechanisms_that_we_cannot_use_are_left_out(self) -> None:
        assert mechanism_facts({Mechanism.SHA1_RSA_PKCS, Mechanism.ECDSA}) == ()


class TestExamine:
    def test_without_a_login_the_facts_say_that_private_keys_may_be_hidden(self, access: KeyAccess) -> None:
        contents = contents_of(examine(access, NOW, login=False))
        assert contents.hidden
        assert contents.keys == ()
        assert certificate_of(contents, "good").key is None

    def test_with_a_login_nothing_is_hidden(self, contents: Contents) -> None:
        assert not contents.hidden
        assert {key.label for key in contents.keys} == {"good", "imported", "mismatched", "elliptic", "short"}

    def test_the_uri_of_each_key_selects_only_that_key(self, access: KeyAccess, contents: Contents) -> None:
        for key in contents.keys:
            if key.problem is None:
                with open_device(replace(access, uri=Pkcs11Uri.parse(key.uri))) as device:
                    assert open_signer(device).key.info.id == key.id

    def test_the_uris_keep_the_path_of_the_module(self, access: KeyAccess, office: SoftHsm) -> None:
        uri = replace(access.uri, module_path=str(office.module))
        facts = device_of(examine(replace(access, uri=uri, module=None), NOW, login=True))
        assert facts.contents is not None
        for found in (facts.uri, *(key.uri for key in facts.contents.keys)):
            assert Pkcs11Uri.parse(found).module_path == str(office.module)

    def test_an_imported_key_is_not_shown_as_generated_on_the_device(self, contents: Contents) -> None:
        made, brought = key_of(contents, "good"), key_of(contents, "imported")
        assert (made.kind, made.bits) == ("RSA", 2048)
        assert made.protection == Protection(True, False, True, True, always_authenticate=False)
        assert (brought.protection.never_extractable, brought.protection.local) == (False, False)

    @pytest.mark.parametrize(("label", "reason"), [("elliptic", "type EC"), ("short", "1024 bits")])
    def test_a_key_that_cannot_sign_for_us_has_a_problem_that_says_why(
        self, contents: Contents, label: str, reason: str
    ) -> None:
        problem = key_of(contents, label).problem
        assert problem is not None
        assert problem.code == "key_unfit"
        assert reason in problem.message

    def test_thumbprints_are_those_of_the_certificate(self, office: SoftHsm, access: KeyAccess) -> None:
        with SoftHsm(label="thumbprints") as softhsm:
            der = softhsm.add_identity().certificate
            assert der is not None
            uri, environment = Pkcs11Uri(token="thumbprints"), softhsm.environment
            there = replace(access, uri=uri, module_environment=environment)
            (facts,) = contents_of(examine(there, NOW, login=False)).certificates
        certificate = x509.load_der_x509_certificate(der)
        assert facts.sha1 == certificate.fingerprint(hashes.SHA1())  # noqa: S303
        assert facts.sha256 == certificate.fingerprint(hashes.SHA256())

    def test_a_good_certificate_is_matched_to_its_key(self, contents: Contents) -> None:
        facts = certificate_of(contents, "good")
        assert facts.key == key_of(contents, "good").uri
        assert facts.subject == "CN=hsm-signer test"
        assert facts.problem is None

    def test_days_left_are_whole_days(self, access: KeyAccess, contents: Contents) -> None:
        not_after = certificate_of(contents, "good").not_after
        assert not_after is not None
        later = contents_of(examine(access, not_after - timedelta(days=3, minutes=1), login=False))
        assert certificate_of(later, "good").days_left == 3

    def test_an_expired_certificate_is_reported_as_expired(self, contents: Contents) -> None:
        facts = certificate_of(contents, "expired")
        assert facts.key == key_of(contents, "imported").uri
        assert facts.days_left == -2
        assert facts.problem is not None
        assert facts.problem.code == "certificate_unusable"

    def test_a_certificate_of_another_key_is_reported_as_mismatched(self, contents: Contents) -> None:
        facts = certificate_of(contents, "mismatched")
        assert facts.key == key_of(contents, "imported").uri
        assert facts.problem is not None
        assert facts.problem.code == "certificate_mismatch"

    def test_a_certificate_is_matched_to_a_key_with_another_id(self, contents: Contents) -> None:
        facts = certificate_of(contents, "elsewhere")
        assert facts.key == key_of(contents, "imported").uri
        assert facts.problem is None

    def test_several_matching_devices_are_refused(self, access: KeyAccess) -> None:
        with SoftHsm(label="twin") as twins:
            twins.add_token("twin")
            there = replace(access, uri=Pkcs11Uri(token="twin"), module_environment=twins.environment)
            with pytest.raises(DeviceAmbiguous, match="2 devices match"):
                examine(there, NOW, login=False)


class TestPinRules:
    def test_without_a_login_no_pin_is_sent(self, access: KeyAccess, faulty: FaultyModule) -> None:
        examine(replace(access, module=faulty.path), NOW, login=False)
        assert faulty.calls("C_Login") == 0

    def test_with_a_login_the_pin_is_sent_once(self, access: KeyAccess, faulty: FaultyModule) -> None:
        examine(replace(access, module=faulty.path), NOW, login=True)
        assert [login.right for login in faulty.logins()] == [True]

    def test_a_wrong_pin_is_sent_once(self, access: KeyAccess, faulty: FaultyModule) -> None:
        wrong = FixedLogin(Pin("meadow+0815"), "the wrong PIN")
        with pytest.raises(PinIncorrect):
            examine(replace(access, module=faulty.path, pin=wrong), NOW, login=True)
        assert [login.right for login in faulty.logins()] == [False]

    def test_a_locked_device_is_shown_as_locked(self, access: KeyAccess, faulty: FaultyModule) -> None:
        faulty.flags(set=TokenFlag.USER_PIN_LOCKED)
        facts = device_of(examine(replace(access, module=faulty.path), NOW, login=False))
        assert facts.pin is PinState.LOCKED
        assert facts.contents is not None

    def test_no_login_is_sent_to_a_locked_device(self, access: KeyAccess, faulty: FaultyModule) -> None:
        faulty.flags(set=TokenFlag.USER_PIN_LOCKED)
        with pytest.raises(PinLocked):
            examine(replace(access, module=faulty.path), NOW, login=True)
        assert faulty.calls("C_Login") == 0

    def test_a_login_without_a_pin_leaves_private_keys_hidden(self, access: KeyAccess, faulty: FaultyModule) -> None:
        without = replace(access, module=faulty.path, pin=NO_LOGIN)
        assert contents_of(examine(without, NOW, login=True)).hidden


def test_a_key_that_always_authenticates_is_shown_as_such(access: KeyAccess, faulty: FaultyModule) -> None:
    faulty.always_authenticate(True)
    contents = contents_of(examine(replace(access, module=faulty.path), NOW, login=True))
    assert key_of(contents, "good").protection.always_authenticate


class TestSurvey:
    def test_a_survey_describes_the_module_and_its_devices(self, office: SoftHsm) -> None:
        facts = survey(ModuleReference(office.module), office.environment, SECONDS)
        assert facts.library is not None
        assert (facts.library.manufacturer, facts.library.version[:2]) == ("SoftHSM", "2.")
        device = device_of(facts)
        assert (device.info.label, device.pin, device.pad) == ("office", PinState.FINE, False)
        assert [each.algorithm for each in device.mechanisms if each.chosen] == ["RS256", "PS256"]
        assert device.contents is None

    def test_the_uri_of_each_device_selects_only_that_device(self, office: SoftHsm) -> None:
        with SoftHsm(label="twin") as twins:
            twins.add_token("twin")
            first, second = survey(ModuleReference(twins.module), twins.environment, SECONDS).devices
            for device in (first, second):
                access = KeyAccess(
                    Pkcs11Uri.parse(device.uri), NO_LOGIN, twins.module, module_environment=twins.environment
                )
                assert device_of(examine(access, NOW, login=False)).info == device.info

    def test_a_survey_sends_no_pin(self, faulty: FaultyModule) -> None:
        device_of(survey(ModuleReference(faulty.path), faulty.environment, SECONDS))
        assert faulty.calls("C_GetTokenInfo") > 0
        assert faulty.calls("C_Login") == 0

    def test_a_pin_pad_is_reported(self, faulty: FaultyModule) -> None:
        faulty.flags(set=TokenFlag.PROTECTED_AUTHENTICATION_PATH)
        assert device_of(survey(ModuleReference(faulty.path), faulty.environment, SECONDS)).pad

    def test_a_survey_loads_no_module_and_changes_no_variable_in_this_process(self, faulty: FaultyModule) -> None:
        survey(ModuleReference(faulty.path), {**faulty.environment, "ONLY_FOR_THE_MODULE": "1"}, SECONDS)
        assert {call.pid for call in faulty.log()}.isdisjoint({os.getpid()})
        assert "ONLY_FOR_THE_MODULE" not in os.environ

    @pytest.mark.parametrize("function", ["C_Initialize", "C_GetSlotList", "C_GetMechanismInfo"])
    def test_a_module_that_crashes_spoils_only_its_own_entry(self, faulty: FaultyModule, function: str) -> None:
        faulty.rule(function, crash=True)
        facts = survey(ModuleReference(faulty.path), faulty.environment, SECONDS)
        assert facts.devices == ()
        assert facts.problem is not None
        assert "SIGSEGV" in facts.problem.message
        assert str(faulty.path) in facts.problem.message

    @pytest.mark.parametrize("function", ["C_Initialize", "C_GetTokenInfo"])
    def test_a_module_that_hangs_spoils_only_its_own_entry(self, faulty: FaultyModule, function: str) -> None:
        faulty.rule(function, hang=float("inf"))
        facts = survey(ModuleReference(faulty.path), faulty.environment, 0.3)
        assert facts.problem is not None
        assert facts.problem.code == "device_timeout"

    def test_a_module_that_hangs_where_python_cannot_run_is_killed(
        self, faulty: FaultyModule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hsm_signer.device.elsewhere._START", 3.0)
        faulty.rule("C_GetFunctionList", hang=float("inf"))
        facts = survey(ModuleReference(faulty.path), faulty.environment, 0.3)
        assert facts.problem is not None
        assert "killed" in facts.problem.message
        (pid,) = {call.pid for call in faulty.log()}
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    def test_the_problem_of_a_module_that_fails_to_initialize_names_the_returned_value(
        self, faulty: FaultyModule
    ) -> None:
        faulty.rule("C_Initialize", rv=Rv.DEVICE_ERROR)
        facts = survey(ModuleReference(faulty.path), faulty.environment, SECONDS)
        assert facts.problem is not None
        assert facts.problem.code == "module_load_error"
        assert "DeviceError" in facts.problem.message

    def test_a_module_that_fails_after_initialization_is_still_described(self, faulty: FaultyModule) -> None:
        faulty.rule("C_GetSlotList", rv=Rv.FUNCTION_FAILED)
        facts = survey(ModuleReference(faulty.path), faulty.environment, SECONDS)
        assert facts.library is not None
        assert facts.problem is not None

    def test_a_device_that_hides_its_mechanisms_is_still_listed(self, faulty: FaultyModule) -> None:
        faulty.rule("C_GetMechanismList", rv=Rv.FUNCTION_FAILED)
        device = device_of(survey(ModuleReference(faulty.path), faulty.environment, SECONDS))
        assert device.mechanisms == ()
        assert device.problem is not None

    @pytest.mark.parametrize("content", [None, "no library"])
    def test_a_file_that_is_not_a_module_is_reported_as_a_problem(self, tmp_path: Path, content: str | None) -> None:
        file = tmp_path / "module.so"
        if content is not None:
            file.write_text(content)
        facts = survey(ModuleReference(file), {}, SECONDS)
        assert facts.problem is not None
        assert facts.problem.code == "module_load_error"

    def test_the_output_of_a_module_is_not_parsed_as_facts(self, tmp_path: Path) -> None:
        library = compile_library(
            "#include <stdio.h>\n"
            '__attribute__((constructor)) static void talk(void) { puts("Welcome!"); fflush(stdout); }\n',
            tmp_path,
        )
        facts = survey(ModuleReference(library), {}, SECONDS)
        assert facts.problem is not None
        assert "C_GetFunctionList is missing" in facts.problem.message

    def test_nothing_is_imported_from_the_current_directory(
        self, office: SoftHsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "pickle.py").write_text("raise SystemExit('taken over')")
        monkeypatch.chdir(tmp_path)
        device_of(survey(ModuleReference(office.module), office.environment, SECONDS))


class TestKnownModules:
    @pytest.fixture(autouse=True)
    def configured(self, office: SoftHsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        be_ordinary_user(monkeypatch)
        # Children of this process search for modules themselves.
        monkeypatch.syspath_prepend(make_site(tmp_path))
        configuration = Path("~/.config/pkcs11/modules").expanduser()
        configuration.mkdir(parents=True)
        (configuration / "ours.module").write_text(f"module: {office.module}\n")

    def test_the_modules_configured_in_p11_kit_are_known(self, office: SoftHsm) -> None:
        assert ModuleReference(office.module, "ours") in modules_to_search(None)

    def test_a_named_module_comes_first(self, tmp_path: Path) -> None:
        named = ModuleReference(tmp_path / "vendor.so")
        assert modules_to_search(named.path) == [named, *modules_to_search(None)]

    def test_no_module_is_listed_twice(self, office: SoftHsm, tmp_path: Path) -> None:
        link = tmp_path / "link.so"
        link.symlink_to(office.module)
        found = modules_to_search(link)
        assert os.path.samefile(found[0].path, office.module)
        assert sorted(found, key=str) == sorted(modules_to_search(None), key=str)

    def test_the_uris_of_a_configured_module_name_it(self, office: SoftHsm) -> None:
        device = device_of(survey(ModuleReference(office.module, "ours"), office.environment, SECONDS))
        access = KeyAccess(Pkcs11Uri.parse(device.uri), NO_LOGIN, module_environment=office.environment)
        assert device_of(examine(access, NOW, login=False)).info == device.info
