"""Of all modules, the one that shows the device is chosen; never one of two devices."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hsm_signer.device.lane import log_slow
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.module_search import ModuleReference
from hsm_signer.device.search import Seen, choose_module, look_through_all
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceAmbiguous, DeviceError, DeviceNotFound

OPENSC = ModuleReference(Path("/usr/lib/opensc-pkcs11.so"), "opensc-pkcs11")
YKCS11 = ModuleReference(Path("/usr/lib/libykcs11.so"), "ykcs11")
VENDOR = ModuleReference(Path("/opt/vendor.so"))
CARD = DeviceInfo(
    label="virtual 9a",
    manufacturer="piv_II",
    model="PKCS#15 emulated",
    serial="00bc614e00bc614e",
    slot_id=0,
    slot_description="Yubico YubiKey 00 00",
    slot_manufacturer="Yubico",
    library_manufacturer="OpenSC Project",
    library_description="OpenSC smartcard framework",
    library_version=(0, 23),
)
YUBIKEY = replace(CARD, label="YubiKey PIV #12345678", manufacturer="Yubico", serial="12345678")
OTHER = replace(CARD, label="Vendor", serial="7", slot_description="Vendor's own")


def test_a_card_that_two_modules_show_in_one_reader_is_one_device() -> None:
    seen = [(OPENSC, Seen((CARD,), uses_readers=True)), (YKCS11, Seen((YUBIKEY,), uses_readers=True))]
    assert choose_module(Pkcs11Uri(), seen) == OPENSC
    assert choose_module(Pkcs11Uri(token=YUBIKEY.label), seen) == YKCS11


def test_two_cards_that_two_modules_show_in_two_readers_are_two() -> None:
    second = replace(YUBIKEY, slot_description="Yubico YubiKey 01 00")
    seen = [(OPENSC, Seen((CARD,), uses_readers=True)), (YKCS11, Seen((second,), uses_readers=True))]
    with pytest.raises(DeviceAmbiguous) as refused:
        choose_module(Pkcs11Uri(), seen)
    assert refused.value.message == "There are 2 devices."
    assert refused.value.commands == (
        "--key 'pkcs11:token=YubiKey%20PIV%20%2312345678;serial=12345678?module-name=ykcs11'",
        "--key 'pkcs11:token=virtual%209a;serial=00bc614e00bc614e?module-name=opensc-pkcs11'",
    )


def test_slots_of_one_name_are_one_reader_only_for_modules_that_use_readers() -> None:
    seen = [(OPENSC, Seen((CARD,))), (VENDOR, Seen((replace(OTHER, slot_description=CARD.slot_description),)))]
    with pytest.raises(DeviceAmbiguous):
        choose_module(Pkcs11Uri(), seen)


def test_a_module_that_fails_does_not_keep_another_from_being_chosen() -> None:
    broken = Seen(reason=DeviceError("It crashed.", hint="Look for an update."))
    assert choose_module(Pkcs11Uri(), [(VENDOR, broken), (YKCS11, Seen((YUBIKEY,)))]) == YKCS11


def test_if_none_matches_those_of_all_modules_are_named() -> None:
    seen = [(OPENSC, Seen((CARD,), uses_readers=True)), (VENDOR, Seen((OTHER,)))]
    with pytest.raises(DeviceNotFound) as refused:
        choose_module(Pkcs11Uri(token="Another"), seen)
    assert refused.value.message == "No device of this machine matches pkcs11:token=Another."
    assert refused.value.commands == (
        "--key 'pkcs11:token=Vendor;serial=7?module-path=/opt/vendor.so'",
        "--key 'pkcs11:token=virtual%209a;serial=00bc614e00bc614e?module-name=opensc-pkcs11'",
    )


def test_if_all_wait_for_the_same_that_is_said_once() -> None:
    pcscd = DeviceError("pcscd is not running.", hint="Start it:")
    pcscd.commands = ("sudo systemctl enable --now pcscd.socket",)
    with pytest.raises(DeviceNotFound) as refused:
        choose_module(Pkcs11Uri(), [(OPENSC, Seen(reason=pcscd)), (YKCS11, Seen(reason=pcscd))])
    assert refused.value.message == "No device was found through opensc-pkcs11, ykcs11. pcscd is not running."
    assert refused.value.commands == pcscd.commands


def test_if_they_wait_for_different_things_doctor_tells_each() -> None:
    reasons = [DeviceError(f"{thing} is missing.", hint="Get it.") for thing in ("pcscd", "A TPM")]
    with pytest.raises(DeviceNotFound) as refused:
        choose_module(Pkcs11Uri(), [(OPENSC, Seen(reason=reasons[0])), (VENDOR, Seen(reason=reasons[1]))])
    assert refused.value.message == "No device was found through opensc-pkcs11, /opt/vendor.so."
    assert refused.value.commands == ("hsm-signer doctor",)


def test_if_no_thread_can_be_started_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    (seen,) = look_through_all([ModuleReference(Path("/x.so"))], {}, 1, log_slow)
    assert seen.reason is not None
    assert "No thread could be started" in seen.reason.message
    assert "ulimit -u" in str(seen.reason.hint)
