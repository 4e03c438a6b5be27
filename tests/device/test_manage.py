"""Keys and certificates are created, found and deleted on every writable device of the matrix; PIV is refused."""

import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from pkcs11 import Attribute, ObjectClass
from pkcs11.types import Session

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.manage.certificates import certificates_of_key, delete_certificate, store_certificate
from hsm_signer.device.manage.generate import SIZES, KeySpec, differences, generate_key
from hsm_signer.device.manage.keys import delete_key, find_key
from hsm_signer.device.match import KeyInfo
from hsm_signer.device.objects import Protection
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    CertificateNotFound,
    ConfigError,
    DeviceReadOnly,
    KeyAmbiguous,
    KeyExists,
    KeyNotFound,
    MechanismUnsupported,
)
from tests.support.certificates import common_name, make_certificate
from tests.support.fixtures import Running
from tests.support.stacks import Stack
from tests.support.stacks.opencryptoki import stacks
from tests.support.stacks.piv import PivStack

WRITABLE = stacks("softhsm", "p11-kit", "tpm")
MESSAGE = b"header.claims"
SPEC = KeySpec("new")
KINDS = (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.CERTIFICATE)

Objects = set[tuple[str, str, bytes]]


def access(stack: Stack, uri: str | None = None) -> KeyAccess:
    return KeyAccess(
        uri=Pkcs11Uri.parse(uri or stack.key.uri),
        pin=FixedLogin(Pin(stack.pin), "a test"),
        module=stack.module,
        module_environment=stack.environment,
        writable=True,
    )


def contents(device: Device) -> Objects:
    """Return class, label and id of every object on the device."""

    def look(session: Session) -> Objects:
        return {
            (kind.name, str(each[Attribute.LABEL]), bytes(each[Attribute.ID]))
            for kind in KINDS
            for each in list(session.get_objects({Attribute.CLASS: kind}))
        }

    return device.call("looking", look)


@pytest.fixture(params=WRITABLE)
def stack(request: pytest.FixtureRequest, running: Running) -> Iterator[Stack]:
    stack = running(request.param)
    stack.reset()
    yield stack
    stack.reset()


@pytest.fixture
def device(stack: Stack) -> Iterator[Device]:
    """The device; the fixture restores its contents afterwards."""
    with open_device(access(stack)) as device:
        before = contents(device)
        yield device

        def tidy(session: Session) -> None:
            for kind in KINDS:
                for each in list(session.get_objects({Attribute.CLASS: kind})):
                    if (kind.name, each[Attribute.LABEL], each[Attribute.ID]) not in before:
                        each.destroy()

        device.call("tidying up", tidy)


def certify(public_key: PublicKey) -> x509.Certificate:
    key = rsa.RSAPublicNumbers(public_key.exponent, public_key.modulus).public_key()
    return make_certificate(key, issuer=(common_name("issuer"), rsa.generate_private_key(65537, 2048)))


def store(device: Device, certificate: x509.Certificate, key_id: bytes) -> bytes:
    der = certificate.public_bytes(Encoding.DER)
    store_certificate(device, der, subject=certificate.subject.public_bytes(), label="new", key_id=key_id)
    return der


class TestGenerate:
    def test_a_generated_key_signs_by_its_uri(self, stack: Stack, device: Device) -> None:
        made = generate_key(device, SPEC)
        public_key = rsa.RSAPublicNumbers(made.public_key.exponent, made.public_key.modulus).public_key()
        with open_device(access(stack, made.uri)) as again:
            signature = open_signer(again).sign(Algorithm.RS256, MESSAGE)
        public_key.verify(signature, MESSAGE, padding.PKCS1v15(), hashes.SHA256())

    def test_another_key_of_the_device_signs_without_a_new_login(self, stack: Stack, device: Device) -> None:
        made = generate_key(device, SPEC)
        signer = open_signer(device, Pkcs11Uri.parse(made.uri))
        assert signer.public_key == made.public_key != open_signer(device).public_key

    def test_a_generated_key_is_protected_and_may_only_sign(self, device: Device) -> None:
        made = generate_key(device, SPEC)

        def look(session: Session) -> dict[str, object]:
            template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: made.info.id}
            (key,) = list(session.get_objects(template))
            names = "TOKEN PRIVATE SENSITIVE EXTRACTABLE NEVER_EXTRACTABLE LOCAL SIGN UNWRAP DERIVE ALWAYS_AUTHENTICATE"
            return {name: key[Attribute[name]] for name in names.split()}

        no = {"EXTRACTABLE", "UNWRAP", "DERIVE", "ALWAYS_AUTHENTICATE"}
        told = device.call("looking", look)
        assert told == {name: name not in no for name in told}

    @pytest.mark.parametrize("stack", ["softhsm", "p11-kit"], indirect=True)
    def test_a_generated_key_cannot_decrypt_if_the_device_supports_that_restriction(self, device: Device) -> None:
        made = generate_key(device, SPEC)

        def look(session: Session) -> list[object]:
            template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: made.info.id}
            return [key[Attribute.DECRYPT] for key in list(session.get_objects(template))]

        assert device.call("looking", look) == [False]

    def test_the_private_and_the_public_key_have_the_label_and_id(self, device: Device) -> None:
        before = contents(device)
        made = generate_key(device, KeySpec("named", b"\xa0\x01"))
        assert made.info == KeyInfo("named", b"\xa0\x01")
        assert contents(device) - before == {
            ("PRIVATE_KEY", "named", b"\xa0\x01"),
            ("PUBLIC_KEY", "named", b"\xa0\x01"),
        }

    def test_a_key_of_3072_bits_can_be_generated(self, device: Device) -> None:
        assert generate_key(device, replace(SPEC, bits=3072)).public_key.bits == 3072

    @pytest.mark.parametrize("stack", ["softhsm"], indirect=True)
    def test_a_key_of_4096_bits_can_be_generated(self, device: Device) -> None:
        assert generate_key(device, replace(SPEC, bits=4096)).public_key.bits == 4096

    @pytest.mark.parametrize("stack", ["tpm"], indirect=True)
    def test_more_bits_than_the_device_supports_are_refused_before_the_call(self, device: Device) -> None:
        before = contents(device)
        with pytest.raises(MechanismUnsupported, match="at most 3072 bits, not 4096") as caught:
            generate_key(device, replace(SPEC, bits=4096))
        assert caught.value.hint == "Use --bits 3072."
        assert contents(device) == before

    # openCryptoki generates such a key, but offers no way to send the PIN for it.
    @pytest.mark.parametrize("stack", [name for name in WRITABLE if name != "opencryptoki"], indirect=True)
    def test_a_key_can_be_generated_that_requires_the_pin_for_each_signature(self, device: Device) -> None:
        made = generate_key(device, replace(SPEC, always_authenticate=True))
        signer = open_signer(device, Pkcs11Uri.parse(made.uri))
        assert signer.key.always_authenticate
        assert made.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))

    def test_an_unused_id_is_chosen(self, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        of_a_key, of_a_certificate, free = b"\xa1\x01\x01\x01", b"\xa1\x02\x02\x02", b"\xa1\x03\x03\x03"
        taken = generate_key(device, KeySpec("taken", of_a_key))
        store(device, certify(taken.public_key), of_a_certificate)
        chosen = iter([of_a_key, of_a_certificate, free])
        monkeypatch.setattr(secrets, "token_bytes", lambda length: next(chosen))
        assert generate_key(device, SPEC).info.id == free

    @pytest.mark.parametrize(
        ("spec", "named"),
        [
            (KeySpec("taken"), "labelled 'taken'"),
            (KeySpec("new", b"\xa2"), "with the id a2"),
            (KeySpec("new", b"\xa3"), "with the id a3"),
        ],
        ids=["label", "id of a key", "id of a certificate"],
    )
    def test_a_label_or_id_that_is_in_use_is_refused(self, device: Device, spec: KeySpec, named: str) -> None:
        taken = generate_key(device, KeySpec("taken", b"\xa2"))
        store(device, certify(taken.public_key), b"\xa3")
        before = contents(device)
        with pytest.raises(KeyExists, match=named):
            generate_key(device, spec)
        assert contents(device) == before


class TestDelete:
    def test_deleting_removes_only_the_private_and_the_public_key(self, device: Device) -> None:
        before = contents(device)
        made = generate_key(device, SPEC)
        delete_key(device, made.info)
        assert contents(device) == before

    def test_deleting_a_missing_key_is_an_error(self, device: Device) -> None:
        with pytest.raises(KeyNotFound):
            delete_key(device, KeyInfo("new", b"\xa4"))

    def test_a_key_with_the_same_label_and_another_id_is_not_deleted(self, device: Device) -> None:
        made = generate_key(device, SPEC)
        with pytest.raises(KeyNotFound):
            delete_key(device, KeyInfo(made.info.label, b"\xa4"))

    def test_the_public_key_of_another_pair_with_the_same_id_is_not_deleted(self, device: Device) -> None:
        first = generate_key(device, KeySpec("first", b"\xa5"))
        second = generate_key(device, KeySpec("second"))

        def give_the_same_id(session: Session) -> None:
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
                (found,) = list(session.get_objects({Attribute.CLASS: kind, Attribute.ID: second.info.id}))
                found[Attribute.ID] = b"\xa5"

        device.call("renaming", give_the_same_id)
        delete_key(device, first.info)
        kept = {each for each in contents(device) if each[2] == b"\xa5"}
        assert kept == {("PRIVATE_KEY", "second", b"\xa5"), ("PUBLIC_KEY", "second", b"\xa5")}


class TestFind:
    def test_a_key_is_found_by_label_or_id(self, device: Device) -> None:
        info = generate_key(device, SPEC).info
        assert find_key(device, Pkcs11Uri(object=info.label)) == info
        assert find_key(device, Pkcs11Uri(id=info.id)) == info

    def test_several_matching_keys_are_refused(self, device: Device) -> None:
        generate_key(device, SPEC)
        with pytest.raises(KeyAmbiguous):
            find_key(device, Pkcs11Uri())


class TestCertificates:
    def test_the_certificates_of_a_key_are_found_whatever_their_ids(self, device: Device) -> None:
        first, second = generate_key(device, SPEC), generate_key(device, KeySpec("second"))
        ders = {store(device, certify(first.public_key), key_id) for key_id in (first.info.id, b"\xa6")}
        store(device, certify(second.public_key), first.info.id)
        assert {each.der for each in certificates_of_key(device, first.info)} == ders

    def test_storing_a_certificate_twice_stores_it_once(self, device: Device) -> None:
        made = generate_key(device, SPEC)
        certificate = certify(made.public_key)
        der = store(device, certificate, made.info.id)
        store(device, certificate, b"\xa7")
        assert [each.der for each in certificates_of_key(device, made.info)] == [der]

    def test_deleting_the_certificates_keeps_the_key(self, device: Device) -> None:
        made = generate_key(device, SPEC)
        before = contents(device)
        der = store(device, certify(made.public_key), made.info.id)
        delete_certificate(device, der)
        assert contents(device) == before

    def test_deleting_a_missing_certificate_is_an_error(self, device: Device) -> None:
        der = certify(open_signer(device).public_key).public_bytes(Encoding.DER)
        with pytest.raises(CertificateNotFound):
            delete_certificate(device, der)


class TestPiv:
    def test_changing_a_piv_card_is_refused_before_the_pin_prompt_and_its_own_tools_are_named(
        self, yubikey: PivStack
    ) -> None:
        with pytest.raises(DeviceReadOnly, match="is a PIV card") as caught:
            open_device(access(yubikey))
        assert caught.value.hint is not None
        assert "ykman piv keys generate --algorithm RSA2048 9a" in caught.value.hint
        assert "yubico-piv-tool -s 9a" in caught.value.hint
        assert yubikey.presented() == 0


class TestSpec:
    @pytest.mark.parametrize("label", ["", "two\nlines", "\x1b[2J", "\udc80"])
    def test_an_unprintable_label_is_refused(self, label: str) -> None:
        with pytest.raises(ConfigError, match="printable"):
            KeySpec(label)

    def test_an_empty_id_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="empty"):
            KeySpec("new", b"")

    @pytest.mark.parametrize("bits", [1024, 2047, 8192])
    def test_unsupported_key_sizes_are_refused(self, bits: int) -> None:
        with pytest.raises(ConfigError, match=str(SIZES[-1])):
            KeySpec("new", bits=bits)


GUARDED = Protection(True, False, True, True, None)


class TestDifferences:
    @pytest.mark.parametrize(
        ("spec", "told"),
        [
            (SPEC, GUARDED),
            (SPEC, replace(GUARDED, always_authenticate=False)),
            (replace(SPEC, always_authenticate=True), replace(GUARDED, always_authenticate=True)),
        ],
    )
    def test_a_key_as_requested_has_no_differences(self, spec: KeySpec, told: Protection) -> None:
        assert differences(spec, 2048, told) == []

    @pytest.mark.parametrize(
        ("told", "said"),
        [
            (replace(GUARDED, sensitive=False), "CKA_SENSITIVE is False and should be True"),
            (replace(GUARDED, extractable=True), "CKA_EXTRACTABLE is True and should be False"),
            (replace(GUARDED, never_extractable=False), "CKA_NEVER_EXTRACTABLE is False and should be True"),
            (replace(GUARDED, local=False), "CKA_LOCAL is False and should be True"),
            (replace(GUARDED, local=None), "CKA_LOCAL is not reported and should be True"),
            (replace(GUARDED, always_authenticate=True), "CKA_ALWAYS_AUTHENTICATE is True and should be False"),
        ],
    )
    def test_each_difference_is_named(self, told: Protection, said: str) -> None:
        assert differences(SPEC, 2048, told) == [said]

    def test_a_different_length_is_named(self) -> None:
        assert differences(SPEC, 1024, GUARDED) == ["its length in bits is 1024 and should be 2048"]
