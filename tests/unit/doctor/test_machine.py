"""What doctor says of a machine without a configuration: one row for each thing to know, one for each thing to fix."""

from dataclasses import replace
from datetime import UTC, datetime

from hsm_signer.device.inventory.facts import CertificateFacts, Contents, DeviceFacts, KeyFacts, ModuleFacts, Problem
from hsm_signer.device.locate import LibraryFacts
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.objects import Protection
from hsm_signer.device.pin.state import PinState
from hsm_signer.doctor.machine import judge_machine
from hsm_signer.doctor.verdicts import Status, Verdict

LIBRARY = LibraryFacts("OpenSC Project", "OpenSC smartcard framework", "0.23")
INFO = DeviceInfo("Card", "Maker", "PIV", "1", 0, "Reader 00 00", "Maker", "OpenSC Project", "OpenSC", (0, 23))
URI = "pkcs11:token=Card;serial=1?module-name=opensc"
CARD = DeviceFacts(INFO, URI, PinState.FINE, pad=False, mechanisms=())
OPENSC = ModuleFacts("opensc", "/usr/lib/opensc-pkcs11.so", LIBRARY, (CARD,), uses_readers=True)
YKCS11 = replace(OPENSC, name="ykcs11", path="/usr/lib/libykcs11.so")
NO_PCSCD = Problem("device_error", "pcscd is not running.", "Start it:", ("sudo systemctl enable --now pcscd.socket",))
KEY = KeyFacts(f"{URI}", "app", b"\x01", "RSA", 2048, Protection(True, False, True, True, False), None)
CERTIFICATE = CertificateFacts(
    label="app",
    id=b"\x01",
    subject="CN=app",
    not_before=datetime(2026, 1, 1, tzinfo=UTC),
    not_after=datetime(2027, 1, 1, tzinfo=UTC),
    days_left=300,
    sha1=bytes(20),
    sha256=bytes(32),
    key=None,
    problem=None,
)


def judged(*modules: ModuleFacts) -> list[tuple[str, Verdict]]:
    return list(judge_machine(modules))


def statuses(*modules: ModuleFacts) -> list[tuple[str, Status]]:
    return [(name, verdict.status) for name, verdict in judged(*modules)]


def test_a_device_is_named_with_the_option_that_chooses_it() -> None:
    rows = judged(OPENSC)
    assert [name for name, _ in rows] == ["module", "pcscd", "device", "pin"]
    assert {verdict.status for _, verdict in rows} == {Status.OK}
    assert dict(rows)["device"].commands == (f"--key '{URI}'",)


def test_modules_that_wait_for_pcscd_have_one_row() -> None:
    down = [replace(module, devices=(), problem=NO_PCSCD) for module in (OPENSC, YKCS11)]
    (row,) = (verdict for name, verdict in judged(*down) if name == "pcscd")
    assert (row.status, row.detail) == (Status.WARNING, "opensc, ykcs11: pcscd is not running.")
    assert row.commands == NO_PCSCD.commands


def test_a_machine_without_a_device_fails() -> None:
    assert ("device", Status.FAILED) in statuses(replace(OPENSC, devices=(), problem=NO_PCSCD))


def test_a_module_that_fails_is_a_warning_if_another_has_a_device() -> None:
    tpm = ModuleFacts("tpm2", "/usr/lib/libtpm2_pkcs11.so", None, (), Problem("device_error", "No TPM.", "Get one."))
    found = statuses(tpm, OPENSC)
    assert ("module", Status.WARNING) in found
    assert Status.FAILED not in dict(found).values()


def test_a_card_that_two_modules_show_is_judged_once() -> None:
    rows = judged(OPENSC, YKCS11)
    assert [name for name, _ in rows] == ["module", "module", "pcscd", "device", "pin", "device"]
    assert rows[-1][1].detail.endswith("seen through ykcs11, is the card above.")


def test_hidden_keys_are_not_called_missing() -> None:
    hidden = replace(CARD, contents=Contents(hidden=True, keys=(), certificates=()))
    verdict = dict(judged(replace(OPENSC, devices=(hidden,))))["key"]
    assert verdict.status is Status.SKIPPED
    assert verdict.commands == (f"hsm-signer key list --key '{URI}'",)


def test_a_device_without_a_key_is_told_how_to_make_one() -> None:
    empty = replace(CARD, contents=Contents(hidden=False, keys=(), certificates=()))
    verdict = dict(judged(replace(OPENSC, devices=(empty,))))["key"]
    assert verdict.status is Status.WARNING
    assert verdict.commands == (f"hsm-signer key generate --label NAME --key '{URI}'",)


def test_keys_and_certificates_are_rows_of_their_own() -> None:
    soon = replace(CERTIFICATE, days_left=3)
    full = replace(CARD, contents=Contents(hidden=False, keys=(KEY,), certificates=(CERTIFICATE, soon)))
    found = statuses(replace(OPENSC, devices=(full,)))
    assert found[-3:] == [("key", Status.OK), ("certificate", Status.OK), ("certificate", Status.WARNING)]


def test_a_locked_pin_fails() -> None:
    locked = replace(CARD, pin=PinState.LOCKED)
    assert ("pin", Status.FAILED) in statuses(replace(OPENSC, devices=(locked,)))
