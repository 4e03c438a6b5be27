"""Generate a key pair, and check that it has the requested attributes.

The new key is read back from the device. If only half of it exists, or an attribute is different, it is deleted again.
"""

import secrets
from dataclasses import dataclass, fields, replace
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.constants import DEFAULT
from pkcs11.types import Session, Slot

from hsm_signer.crypto import PublicKey
from hsm_signer.device.device import Device
from hsm_signer.device.failures import GONE, explain_refusal
from hsm_signer.device.manage.keys import delete_key
from hsm_signer.device.match import DeviceInfo, KeyInfo
from hsm_signer.device.objects import Protection, private_keys, search
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    ConfigError,
    DeviceGone,
    DeviceTimeout,
    HsmSignerError,
    KeyExists,
    KeyUnfit,
    MechanismUnsupported,
)
from hsm_signer.x509.requirements import MINIMUM_BITS

SIZES = (MINIMUM_BITS, 3072, 4096)
"""The sizes of the keys that can be generated, in bits."""

GENERATION_TIMEOUT = 300.0
"""Seconds that generating a key may take: for 4096 bits a card needs minutes to find the primes."""

_ID_BYTES = 4  # short enough to read aloud; it only has to differ from the others on its device
_WITH_ID = (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.CERTIFICATE, ObjectClass.SECRET_KEY)

# The key must only sign. tpm2-pkcs11 only generates RSA keys that can also decrypt: it returns CKR_GENERAL_ERROR for a
# template that forbids it. Other devices allow what a template does not forbid (PKCS#11 v3.1 section 4.9: the default
# is the token's own). So the first template forbids encryption; if that is refused, the second leaves it open.
_USES: tuple[tuple[dict[Attribute, Any], dict[Attribute, Any]], ...] = (
    ({Attribute.ENCRYPT: False}, {Attribute.DECRYPT: False}),
    ({Attribute.ENCRYPT: DEFAULT}, {Attribute.DECRYPT: DEFAULT}),
)
_TEMPLATE_REFUSED = (
    pkcs11.AttributeReadOnly,
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.GeneralError,
    pkcs11.TemplateInconsistent,
)
# Returned by a device that was lost, and also by one that is plugged in and refuses.
_REFUSED_OR_GONE = (pkcs11.GeneralError, pkcs11.UserNotLoggedIn)


@dataclass(frozen=True)
class KeySpec:
    """The key to generate.

    Args:
        label: CKA_LABEL of both halves.
        key_id: CKA_ID of both halves; None chooses one that is free on the device.
        bits: length of the modulus, one of `SIZES`.
        always_authenticate: whether it requires the PIN for each signature (CKA_ALWAYS_AUTHENTICATE).

    Raises:
        ConfigError: a key like this cannot be generated.
    """

    label: str
    key_id: bytes | None = None
    bits: int = MINIMUM_BITS
    always_authenticate: bool = False

    def __post_init__(self) -> None:
        if not self.label or not self.label.isprintable():
            raise ConfigError("The label of a key must be printable text.", hint="Name the key, as in --label signing.")
        if self.key_id == b"":
            raise ConfigError("The id of a key is empty.", hint="Give an --id, or omit it to have one chosen.")
        if self.bits not in SIZES:
            raise ConfigError(
                f"A key cannot have {self.bits} bits. Possible sizes are {', '.join(map(str, SIZES))}.",
                hint=f"Use --bits {MINIMUM_BITS}, which is enough for Entra.",
            )


@dataclass(frozen=True)
class MadeKey:
    """A key pair that the device has generated.

    Attributes:
        info: its label and id; what `delete_key` takes.
        public_key: its public half.
        uri: the key's URI, for ``--key``.
    """

    info: KeyInfo
    public_key: PublicKey
    uri: str


def generate_key(device: Device, spec: KeySpec, *, timeout: float = GENERATION_TIMEOUT) -> MadeKey:
    """Generate an RSA key pair that never leaves the device and can only sign.

    The private key is a token object, private, sensitive and not extractable. With tpm2-pkcs11 it can decrypt as well.

    Args:
        device: opened writable.
        timeout: seconds it may take, if the device's own timeout is shorter.

    Raises:
        KeyExists: the label or the id is taken.
        KeyUnfit: the device generated a key with other attributes. It was deleted, or the message says why not.
        MechanismUnsupported: the device generates no RSA keys, or none of this size.
        DeviceGone, DeviceTimeout: the device was lost, and whether it generated the key is unknown.
        DeviceError: the device refused, and nothing was generated.
    """
    key_id = device.call("looking for a free id", lambda session: _free_id(session, spec, device.info))
    info = KeyInfo(spec.label, key_id)

    def generate(session: Session) -> None:
        _generate(session, spec, info, device.info)

    try:
        device.call("generating a key", generate, repeat=False, at_least=timeout)
        return _read_back(device, spec, info)
    except (DeviceGone, DeviceTimeout) as error:
        raise type(error)(
            f"{error.message} It is unknown whether the key {info} was generated.",
            hint=f"{error.hint} Then run `hsm-signer key list`. If it shows the key, delete it before you generate it "
            "again.",
        ) from error


def _free_id(session: Session, spec: KeySpec, device: DeviceInfo) -> bytes:
    """Return the id for a new key, or raise if there can be no such key. Changes nothing."""
    _require_offered(session.token.slot, spec.bits, device)
    if private_keys(session, {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: spec.label}):
        raise KeyExists(
            f"{device} already has a private key labelled {spec.label!r}.",
            hint="Choose another --label, or first delete that key with `hsm-signer key delete`.",
        )
    if spec.key_id is None:
        while _is_taken(session, chosen := secrets.token_bytes(_ID_BYTES)):
            pass
        return chosen
    if _is_taken(session, spec.key_id):
        raise KeyExists(
            f"{device} already has a key or a certificate with the id {spec.key_id.hex()}.",
            hint="Choose another --id, or omit it to have a free one chosen.",
        )
    return spec.key_id


def _is_taken(session: Session, key_id: bytes) -> bool:
    return any(search(session, {Attribute.CLASS: kind, Attribute.ID: key_id}) for kind in _WITH_ID)


def _require_offered(slot: Slot, bits: int, device: DeviceInfo) -> None:
    making = Mechanism.RSA_PKCS_KEY_PAIR_GEN
    if making not in slot.get_mechanisms():
        raise MechanismUnsupported(
            f"{device} does not generate RSA keys through PKCS#11 (CKM_{making.name} is missing).",
            hint="Generate the key with the vendor's own tool.",
        )
    longest = slot.get_mechanism_info(making).max_key_length or 0
    # Some devices report none, or the length in bytes.
    if SIZES[0] <= longest < bits:
        raise MechanismUnsupported(
            f"{device} generates RSA keys of at most {longest} bits, not {bits}.",
            hint=f"Use --bits {max(size for size in SIZES if size <= longest)}.",
        )


def _generate(session: Session, spec: KeySpec, key: KeyInfo, device: DeviceInfo) -> None:
    for attempt, (public_uses, private_uses) in enumerate(_USES, 1):
        try:
            session.generate_keypair(
                KeyType.RSA,
                spec.bits,
                id=key.id,
                label=key.label,
                store=True,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                public_template=public_uses,
                private_template={
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                    # Only if it was asked for: not every device knows the attribute.
                    Attribute.ALWAYS_AUTHENTICATE: spec.always_authenticate or DEFAULT,
                    **private_uses,
                },
            )
            return
        except pkcs11.PKCS11Error as error:
            # If the session is lost, this fails as well, and that error is raised.
            _destroy(session, key)
            if isinstance(error, GONE) and not isinstance(error, _REFUSED_OR_GONE):
                raise
            if attempt == len(_USES) or not isinstance(error, _TEMPLATE_REFUSED):
                raise explain_refusal(error, "generating a key", str(device)) from error


def _destroy(session: Session, key: KeyInfo) -> None:
    """Delete whatever exists of the new key. Nothing else has its id."""
    for kind in (ObjectClass.PUBLIC_KEY, ObjectClass.PRIVATE_KEY):
        for found in search(session, {Attribute.CLASS: kind, Attribute.ID: key.id}):
            found.destroy()


def _read_back(device: Device, spec: KeySpec, key: KeyInfo) -> MadeKey:
    """Return the key as the device now reports it. If an attribute is not as requested, delete the key and raise."""
    try:
        signer = open_signer(device, key.selector)
    except KeyUnfit as error:
        wrong = [error.message]
    else:
        wrong = differences(spec, signer.public_key.bits, signer.protection())
        if not wrong:
            return MadeKey(key, signer.public_key, str(_uri(device, key)))
    made = f"{device.info} generated a key that is not as requested: {'; '.join(wrong)}."
    try:
        delete_key(device, key)
    except HsmSignerError as error:
        raise KeyUnfit(
            f"{made} It could not be deleted: {error.message}",
            hint=f"Do not use this key. Delete it with `hsm-signer key delete`. {error.hint}",
        ) from error
    raise KeyUnfit(
        f"{made} It was deleted again.",
        hint="Choose options that the device supports, or generate the key with the vendor's own tool.",
    )


def differences(spec: KeySpec, bits: int, reported: Protection) -> list[str]:
    """Return how a key differs from the requested one; pure. What the device does not report counts as a difference."""
    requested = Protection(
        sensitive=True,
        extractable=False,
        never_extractable=True,
        local=True,
        always_authenticate=spec.always_authenticate,
    )
    # PKCS#11 v3.1 section 4.9: false where it is absent.
    reported = replace(reported, always_authenticate=bool(reported.always_authenticate))
    pairs = [
        (f"CKA_{each.name.upper()}", getattr(reported, each.name), getattr(requested, each.name))
        for each in fields(reported)
    ]
    return [
        f"{name} is {'not reported' if found is None else found} and should be {wanted}"
        for name, found, wanted in [("its length in bits", bits, spec.bits), *pairs]
        if found != wanted
    ]


def _uri(device: Device, key: KeyInfo) -> Pkcs11Uri:
    """Return a URI of the key: the one the device was opened with, without its PIN attributes."""
    return replace(
        device.uri.redacted,
        token=device.info.label,
        serial=device.info.serial,
        object=key.label,
        id=key.id,
        type=None,
    )
