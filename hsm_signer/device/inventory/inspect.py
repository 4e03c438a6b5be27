"""Examine a module, or one device, and return the facts. Changes nothing."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pkcs11
from pkcs11 import Attribute, ObjectClass, TokenFlag, UserType
from pkcs11.types import Object, Session

from hsm_signer.crypto import PublicKey
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.failures import explain_failure, explain_module_failure
from hsm_signer.device.inventory.facts import (
    CertificateFacts,
    Contents,
    DeviceFacts,
    KeyFacts,
    ModuleFacts,
    Problem,
    mechanism_facts,
)
from hsm_signer.device.locate import (
    PresentDevice,
    browse,
    describe,
    describe_library,
    present_devices,
    present_tokens,
    read_token,
)
from hsm_signer.device.match import DeviceInfo, KeyInfo, device_uris, key_uris, led_by
from hsm_signer.device.module import Module, load_module
from hsm_signer.device.module_search import find_module, way_to
from hsm_signer.device.objects import (
    label_and_id,
    private_keys,
    read_attribute,
    read_certificates,
    read_protection,
    signing_key,
    signing_mechanisms,
)
from hsm_signer.device.search import find_way
from hsm_signer.device.stack.pcscd import pcscd_problem, reader_library
from hsm_signer.device.stack.stack import reason_of_absence
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import CertificateUnusable, HsmSignerError, KeyLookupError, KeyUnfit
from hsm_signer.x509.certificate import Certificate, parse_certificates
from hsm_signer.x509.requirements import require_length, require_usable

_READING = "reading its objects"


def look_through(path: Path, name: str | None, timeout: float, *, contents: bool = False) -> ModuleFacts:
    """List the devices of a module in this process, without a login. Errors are part of the facts.

    Args:
        path: the shared library. The environment variables that it reads are set already.
        name: what a URI's module-name takes for it, or None.
        timeout: seconds one call into the module may take.
        contents: whether to list the keys and certificates, too, as far as devices show them without a login.
    """
    facts = ModuleFacts(name, str(path), None, ())
    origin = Pkcs11Uri(module_name=name)
    try:
        # Found in the same way as by the URIs that are returned.
        module = load_module(find_module(None if name else path, origin), {}, timeout)
        facts = replace(facts, path=str(module.path))
        facts = replace(facts, library=module.call("asking for its name", lambda: describe_library(module), timeout))
        facts = replace(facts, uses_readers=reader_library() is not None)
        origin = origin if name else way_to(path)
        devices = module.call("looking for devices", lambda: _devices(module, origin), timeout)
        if not devices:
            if (complaint := module.call("asking pcscd", pcscd_problem, timeout)) is not None:
                raise complaint
            absence = module.call("looking for the reason", lambda: reason_of_absence(module.path), timeout)
            return replace(facts, absence=None if absence is None else Problem.of(absence))
        if contents:
            devices = module.call(_READING, lambda: _with_contents(module, origin, devices), timeout)
        return replace(facts, devices=devices)
    except pkcs11.PKCS11Error as error:
        failure = explain_module_failure(error, "looking for devices", facts.path)
        return replace(facts, problem=Problem.of(failure))
    except HsmSignerError as error:
        return replace(facts, problem=Problem.of(error))


def examine(access: KeyAccess, now: datetime, *, login: bool) -> ModuleFacts:
    """List what is on the one device that `access` names. The key attributes of its URI are ignored.

    Args:
        now: the current time, timezone-aware, to check certificates.
        login: log in first, as `open_device` does. Without a login, private objects may be hidden.

    Returns:
        The module with that one device.

    Raises:
        ModuleLoadError, DeviceNotFound, DeviceAmbiguous, DeviceError: the device cannot be read.
        PinError: the login did not succeed.
        DeviceTimeout: a call into the module did not return in time.
    """
    access = find_way(access)
    if not login:
        return browse(access, _READING, lambda module, session: _examine(module, session, access.uri, now))
    with open_device(access) as device:
        return examine_open(device, access, now)


def examine_open(device: Device, access: KeyAccess, now: datetime) -> ModuleFacts:
    """Return the same for a device that is open.

    Args:
        access: what it was opened with.
    """
    return device.call(_READING, lambda session: _examine(device.module, session, access.uri, now))


def _devices(module: Module, origin: Pkcs11Uri) -> tuple[DeviceFacts, ...]:
    present = present_devices(module, origin)
    uris = device_uris([found.info for found in present])
    return tuple(_device(found, led_by(origin, uri)) for found, uri in zip(present, uris, strict=True))


def _device(found: PresentDevice, uri: Pkcs11Uri) -> DeviceFacts:
    facts = DeviceFacts(
        info=found.info,
        uri=str(uri),
        pin=found.pin,
        pad=found.has_pin_pad,
        mechanisms=(),
    )
    try:
        return replace(facts, mechanisms=mechanism_facts(signing_mechanisms(found.slot)))
    except pkcs11.PKCS11Error as error:
        failure = explain_failure(error, "listing its mechanisms", str(found.info))
        return replace(facts, problem=Problem.of(failure))


def _with_contents(module: Module, origin: Pkcs11Uri, devices: tuple[DeviceFacts, ...]) -> tuple[DeviceFacts, ...]:
    now = datetime.now(UTC)

    def read(present: PresentDevice, facts: DeviceFacts) -> DeviceFacts:
        try:
            session = read_token(present.slot).open()
            try:
                return _examine(module, session, origin, now).devices[0]
            finally:
                session.close()
        except pkcs11.PKCS11Error as error:
            return replace(facts, problem=Problem.of(explain_failure(error, _READING, str(facts.info))))

    return tuple(map(read, present_devices(module, origin), devices))


def _examine(module: Module, session: Session, origin: Pkcs11Uri, now: datetime) -> ModuleFacts:
    found = describe(module, read_token(session.token.slot))
    others = [describe(module, token).info for token in present_tokens(module, origin)]
    uri = device_uris([found.info, *(info for info in others if info != found.info)])[0]
    uri = led_by(origin, uri)
    keys = _keys(session, found.info, uri)
    nobody = session.user_type == UserType.NOBODY  # type: ignore[attr-defined]  # missing from the stubs
    contents = Contents(
        hidden=bool(found.flags & TokenFlag.LOGIN_REQUIRED) and nobody,
        keys=tuple(key for key, _ in keys),
        certificates=tuple(_certificates(session, keys, now)),
    )
    device = replace(_device(found, uri), contents=contents)
    return ModuleFacts(origin.module_name, str(module.path), describe_library(module), (device,))


def _keys(session: Session, device: DeviceInfo, uri: Pkcs11Uri) -> list[tuple[KeyFacts, PublicKey | None]]:
    found = private_keys(session, {Attribute.CLASS: ObjectClass.PRIVATE_KEY})
    selectors = key_uris(device, [info for info, _ in found])
    return [
        _key(session, info, handle, device, replace(uri, object=selector.object, id=selector.id))
        for (info, handle), selector in zip(found, selectors, strict=True)
    ]


def _key(
    session: Session, info: KeyInfo, handle: Object, device: DeviceInfo, uri: Pkcs11Uri
) -> tuple[KeyFacts, PublicKey | None]:
    public_key, problem = None, None
    try:
        public_key = signing_key(session, info, handle, device).public_key
        require_length(public_key, f"The key {info} on {device}")
    except KeyUnfit as error:
        problem = Problem.of(error)
    kind = read_attribute(handle, Attribute.KEY_TYPE)
    facts = KeyFacts(
        uri=str(uri),
        label=info.label,
        id=info.id,
        kind=None if kind is None else str(getattr(kind, "name", kind)),
        bits=public_key.bits if public_key else None,
        protection=read_protection(handle),
        problem=problem,
    )
    return facts, public_key


def _certificates(
    session: Session, keys: Sequence[tuple[KeyFacts, PublicKey | None]], now: datetime
) -> list[CertificateFacts]:
    return [certificate_facts(der, label_and_id(found), keys, now) for found, der in read_certificates(session)]


def certificate_facts(
    der: bytes, info: KeyInfo, keys: Sequence[tuple[KeyFacts, PublicKey | None]], now: datetime
) -> CertificateFacts:
    """Return the facts about a certificate, checked against the private keys of its device; pure.

    Args:
        der: the certificate.
        info: its CKA_LABEL and CKA_ID.
        keys: the private keys, each with its public key, or None if that is unknown or cannot be used.
        now: the current time, timezone-aware.
    """
    with_same_id = [public_key for key, public_key in keys if info.id and key.id == info.id]
    facts = CertificateFacts(
        label=info.label,
        id=info.id,
        subject=None,
        not_before=None,
        not_after=None,
        days_left=None,
        sha1=hashlib.sha1(der, usedforsecurity=False).digest(),
        sha256=hashlib.sha256(der).digest(),
        key=None,
        problem=None,
    )
    try:
        certificate = parse_certificates(der, "It")[0]
    except CertificateUnusable as error:
        return replace(facts, problem=Problem.of(error))
    # One key may be on the device under several ids: prefer the one with the certificate's id.
    certified = sorted(
        (key.id != info.id, key.uri) for key, public_key in keys if public_key and public_key == certificate.public_key
    )
    return replace(
        facts,
        subject=certificate.subject,
        not_before=certificate.not_before,
        not_after=certificate.not_after,
        days_left=(certificate.not_after - now).days,
        key=certified[0][1] if certified else None,
        problem=None if certificate.is_attestation else _problem(certificate, with_same_id, now),
        attestation=certificate.is_attestation,
    )


def _problem(certificate: Certificate, public_keys: Sequence[PublicKey | None], now: datetime) -> Problem | None:
    for public_key in public_keys:
        if public_key is not None:
            try:
                require_usable(certificate, public_key, now)
            except KeyLookupError as error:
                return Problem.of(error)
    return None
