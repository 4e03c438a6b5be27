"""A device that refuses, lies, hangs or disappears while it is changed: no half-created object stays or counts."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pkcs11 import Attribute, Mechanism, ObjectClass, TokenFlag
from pkcs11.types import Session

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.manage.certificates import delete_certificate, read_certificate, store_certificate
from hsm_signer.device.manage.generate import KeySpec, generate_key
from hsm_signer.device.manage.keys import delete_key, find_key
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    DeviceReadOnly,
    DeviceTimeout,
    HsmSignerError,
    KeyUnfit,
    MechanismUnsupported,
)
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule, Rv

SPEC = KeySpec("new")
FOREVER = float("inf")
# CK_RV, PKCS#11 v3.1 section 6.1.
ATTRIBUTE_READ_ONLY, ATTRIBUTE_VALUE_INVALID, DEVICE_MEMORY, FUNCTION_NOT_SUPPORTED = 0x10, 0x13, 0x31, 0x54
KEY_SIZE_RANGE, SESSION_READ_ONLY, TEMPLATE_INCONSISTENT, TOKEN_WRITE_PROTECTED = 0x62, 0xB5, 0xD1, 0xE2
USER_TYPE_INVALID = 0x103

# What the device returns, the error for it, and a word of its hint.
REFUSALS = [
    (DEVICE_MEMORY, DeviceError, "full"),
    (TOKEN_WRITE_PROTECTED, DeviceReadOnly, "write-protected"),
    (SESSION_READ_ONLY, DeviceReadOnly, "write-protected"),
    (USER_TYPE_INVALID, DeviceReadOnly, "security officer"),
    (Rv.USER_NOT_LOGGED_IN, DeviceReadOnly, "security officer"),
    (ATTRIBUTE_READ_ONLY, DeviceError, "--bits 2048"),
    (ATTRIBUTE_VALUE_INVALID, DeviceError, "--bits 2048"),
    (Rv.ATTRIBUTE_TYPE_INVALID, DeviceError, "--bits 2048"),
    (TEMPLATE_INCONSISTENT, DeviceError, "--bits 2048"),
    (KEY_SIZE_RANGE, DeviceError, "--bits 2048"),
    (Rv.MECHANISM_INVALID, DeviceError, "vendor's own tool"),
    (FUNCTION_NOT_SUPPORTED, DeviceError, "vendor's own tool"),
    (Rv.GENERAL_ERROR, DeviceError, "log"),
    (Rv.VENDOR_DEFINED, DeviceError, "log"),
]


@pytest.fixture
def access(faulty: FaultyModule, softhsm: SoftHsm) -> KeyAccess:
    return KeyAccess(
        uri=Pkcs11Uri(token=softhsm.label),
        pin=FixedLogin(Pin(softhsm.pin), "a test"),
        module=Path(faulty.path),
        module_environment=faulty.environment,
        timeout=10,
        writable=True,
    )


@pytest.fixture
def device(access: KeyAccess) -> Iterator[Device]:
    with open_device(access) as device:
        yield device


@pytest.fixture(autouse=True)
def _tidy(faulty: FaultyModule, softhsm: SoftHsm, key: SoftHsmKey) -> Iterator[None]:
    """Restore the SoftHSM, whatever the test created."""
    (token,) = (softhsm.directory / "tokens").iterdir()
    before = set(token.iterdir())
    yield
    for file in set(token.iterdir()) - before:
        file.unlink()


def count(device: Device) -> int:
    """Return how many private and public keys the device holds."""

    def look(session: Session) -> int:
        kinds = ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY
        return sum(len(list(session.get_objects({Attribute.CLASS: kind}))) for kind in kinds)

    return device.call("looking", look)


class TestGenerate:
    @pytest.mark.parametrize(("rv", "kind", "advice"), REFUSALS)
    def test_a_refusal_is_explained(
        self, device: Device, faulty: FaultyModule, rv: int, kind: type[HsmSignerError], advice: str
    ) -> None:
        faulty.rule("C_GenerateKeyPair", rv=rv)
        with pytest.raises(kind, match=r"'faults' .* refused generating a key") as caught:
            generate_key(device, SPEC)
        assert type(caught.value) is kind
        assert advice in str(caught.value.hint)

    @pytest.mark.parametrize("rv", [DEVICE_MEMORY, Rv.GENERAL_ERROR, Rv.DEVICE_REMOVED, Rv.VENDOR_DEFINED])
    def test_a_key_that_was_generated_despite_an_error_is_deleted(
        self, device: Device, faulty: FaultyModule, rv: int
    ) -> None:
        before = count(device)
        faulty.rule("C_GenerateKeyPair", rv=rv, after_forward=True)
        with pytest.raises(DeviceError):
            generate_key(device, SPEC)
        assert count(device) == before

    @pytest.mark.parametrize("rv", [ATTRIBUTE_VALUE_INVALID, Rv.GENERAL_ERROR, TEMPLATE_INCONSISTENT])
    def test_a_device_that_refuses_the_template_gets_a_simpler_one(
        self, device: Device, faulty: FaultyModule, rv: int
    ) -> None:
        faulty.rule("C_GenerateKeyPair", rv=rv, times=1)
        assert generate_key(device, SPEC).info.label == "new"
        assert faulty.calls("C_GenerateKeyPair") == 2

    @pytest.mark.parametrize("rv", [DEVICE_MEMORY, USER_TYPE_INVALID, Rv.DEVICE_REMOVED])
    def test_after_any_other_failure_generation_is_not_repeated(
        self, device: Device, faulty: FaultyModule, rv: int
    ) -> None:
        faulty.rule("C_GenerateKeyPair", rv=rv)
        with pytest.raises(DeviceError):
            generate_key(device, SPEC)
        assert faulty.calls("C_GenerateKeyPair") == 1

    def test_a_device_that_cannot_generate_rsa_keys_is_not_asked_to(self, device: Device, faulty: FaultyModule) -> None:
        faulty.hide_mechanisms(Mechanism.RSA_PKCS_KEY_PAIR_GEN)
        with pytest.raises(MechanismUnsupported, match="CKM_RSA_PKCS_KEY_PAIR_GEN is missing"):
            generate_key(device, SPEC)
        assert faulty.calls("C_GenerateKeyPair") == 0

    def test_a_key_with_other_attributes_than_requested_is_deleted(self, device: Device, faulty: FaultyModule) -> None:
        before = count(device)
        faulty.always_authenticate(True)
        with pytest.raises(KeyUnfit, match=r"CKA_ALWAYS_AUTHENTICATE is True and should be False.* deleted again"):
            generate_key(device, SPEC)
        assert count(device) == before

    def test_the_error_says_if_a_key_with_other_attributes_cannot_be_deleted(
        self, device: Device, faulty: FaultyModule
    ) -> None:
        faulty.always_authenticate(True)
        faulty.rule("C_DestroyObject", rv=TOKEN_WRITE_PROTECTED)
        with pytest.raises(KeyUnfit, match=r"CKA_ALWAYS_AUTHENTICATE.* could not be deleted: 'faults'.*") as caught:
            generate_key(device, SPEC)
        assert str(caught.value.hint).startswith("Do not use this key")

    def test_if_the_device_is_lost_the_error_says_that_the_key_may_exist(
        self, device: Device, faulty: FaultyModule
    ) -> None:
        before = count(device)
        faulty.rule("C_GenerateKeyPair", rv=Rv.FUNCTION_FAILED, after_forward=True)
        faulty.rule("C_DestroyObject", rv=Rv.DEVICE_REMOVED)
        with pytest.raises(DeviceGone, match=r"It is unknown whether the key 'new', id .* was generated") as caught:
            generate_key(device, SPEC)
        assert "key list" in str(caught.value.hint)
        assert count(device) == before + 2

    def test_a_session_lost_before_the_generation_is_opened_again(self, device: Device, faulty: FaultyModule) -> None:
        faulty.rule("C_FindObjectsInit", rv=Rv.SESSION_HANDLE_INVALID, times=1)
        assert generate_key(device, SPEC).info.label == "new"

    def test_if_the_device_hangs_the_error_says_that_the_key_may_exist(
        self, access: KeyAccess, faulty: FaultyModule
    ) -> None:
        with open_device(replace(access, timeout=2)) as device:
            faulty.rule("C_GenerateKeyPair", hang=FOREVER)
            started = time.monotonic()
            with pytest.raises(
                DeviceTimeout, match=r"generating a key within 2 s.* is unknown whether the key .* was generated"
            ):
                generate_key(device, SPEC, timeout=0)
        assert time.monotonic() - started < 10

    def test_generating_may_take_longer_than_other_calls(self, access: KeyAccess, faulty: FaultyModule) -> None:
        with open_device(replace(access, timeout=2)) as device:
            faulty.rule("C_GenerateKeyPair", hang=2.5)
            assert generate_key(device, SPEC).info.label == "new"


class TestDelete:
    def test_a_deletion_that_was_cut_off_can_be_repeated(self, device: Device, faulty: FaultyModule) -> None:
        before = count(device)
        made = generate_key(device, SPEC)
        faulty.rule("C_DestroyObject", rv=Rv.DEVICE_REMOVED, skip=1, times=1)
        with pytest.raises(DeviceGone):
            delete_key(device, made.info)
        assert count(device) == before + 1
        delete_key(device, find_key(device, Pkcs11Uri.parse(made.uri)))
        assert count(device) == before

    @pytest.mark.parametrize(
        ("rv", "kind"), [(TOKEN_WRITE_PROTECTED, DeviceReadOnly), (FUNCTION_NOT_SUPPORTED, DeviceError)]
    )
    def test_a_refused_deletion_keeps_the_private_and_the_public_key(
        self, device: Device, faulty: FaultyModule, rv: int, kind: type[HsmSignerError]
    ) -> None:
        made = generate_key(device, SPEC)
        there = count(device)
        faulty.rule("C_DestroyObject", rv=rv)
        with pytest.raises(kind, match="refused deleting a key"):
            delete_key(device, made.info)
        assert count(device) == there


class TestCertificate:
    def test_storing_a_certificate_on_a_full_device_is_an_error(
        self, device: Device, faulty: FaultyModule, key: SoftHsmKey
    ) -> None:
        faulty.rule("C_CreateObject", rv=DEVICE_MEMORY)
        with pytest.raises(DeviceError, match="refused storing a certificate") as caught:
            store_certificate(device, b"0", subject=b"0", label="new", key_id=b"\x02")
        assert "full" in str(caught.value.hint)
        assert faulty.calls("C_CreateObject") == 1

    def test_a_certificate_that_the_device_refuses_to_delete_stays(
        self, device: Device, faulty: FaultyModule, key: SoftHsmKey
    ) -> None:
        assert key.certificate is not None
        faulty.rule("C_DestroyObject", rv=TOKEN_WRITE_PROTECTED)
        with pytest.raises(DeviceReadOnly, match="refused deleting a certificate"):
            delete_certificate(device, key.certificate)
        assert read_certificate(device, open_signer(device, Pkcs11Uri.parse(key.uri)).key.info) == key.certificate


def test_no_login_is_sent_to_a_write_protected_device(access: KeyAccess, faulty: FaultyModule) -> None:
    faulty.flags(set=TokenFlag.WRITE_PROTECTED)
    with pytest.raises(DeviceReadOnly, match="is write-protected"):
        open_device(access)
    assert faulty.calls("C_Login") == 0
