"""Modules, devices, keys and certificates as text, and as plain data for JSON; pure."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import datetime

from hsm_signer.cli.text.certificate import ATTESTATION
from hsm_signer.cli.text.layout import commands, heading, row, uri_line, validity_in_words
from hsm_signer.device.inventory.facts import CertificateFacts, Contents, DeviceFacts, KeyFacts, ModuleFacts, Problem
from hsm_signer.device.objects import Protection
from hsm_signer.device.pin.state import PinState


def module_text(module: ModuleFacts) -> str:
    """Return a module and its devices as lines, without a newline at the end."""
    lines = [*heading(0, f"MODULE {module.path}", _library(module))]
    lines += _problem(2, module.problem)
    for device in module.devices:
        lines += _device(device)
    if not module.devices and not module.problem:
        lines += _problem(2, module.absence, label="device") if module.absence else ["  no device"]
    return "\n".join(lines)


def plain(facts: object) -> object:
    """Return facts as dictionaries, lists, strings and numbers: bytes in hexadecimal, times by RFC 3339."""
    if is_dataclass(facts):
        members: dict[str, object] = {}
        for field in fields(facts):
            value = getattr(facts, field.name)
            # How a key is guarded is not apart from what else is known of it.
            members |= vars(value) if isinstance(value, Protection) else {field.name: plain(value)}
        return members
    match facts:
        case tuple():
            return [plain(item) for item in facts]
        case bytes():
            return facts.hex()
        case datetime():
            return facts.strftime("%Y-%m-%dT%H:%M:%SZ")
    return facts


def _library(module: ModuleFacts) -> str:
    if module.library is None:
        return ""
    library = module.library
    return f'{library.manufacturer} {library.version}, "{library.description}"'


def _device(device: DeviceFacts) -> Iterator[str]:
    info = device.info
    serial = f"serial {info.serial}" if info.serial else ""
    maker = ", ".join(part for part in (info.manufacturer, info.model, serial) if part)
    yield from heading(2, f"DEVICE {info.label or info.model or info.slot_description!r}", maker)
    yield from uri_line(4, device.uri)
    yield from row(4, "PIN", _pin(device))
    if device.contents is None or not device.mechanisms:
        yield from row(4, "signs", _algorithms(device))
    else:
        yield from row(4, "signs", *_mechanisms(device, chosen=True))
        yield from row(4, "unused", *_mechanisms(device, chosen=False))
    yield from _problem(4, device.problem)
    if device.contents is not None:
        yield from _contents(device.contents)


def _pin(device: DeviceFacts) -> str:
    pad = "; enter it on the device's own PIN pad" if device.pad else ""
    match device.pin:
        case PinState.NOT_NEEDED:
            return "no login required"
        case PinState.FINE:
            return f"ok; login required{pad}"
        case PinState.COUNT_LOW:
            return f"a wrong PIN was entered since the last login; login required{pad}"
        case PinState.LAST_TRY:
            return f"LAST TRY: one more wrong PIN locks the device; login required{pad}"
        case PinState.LOCKED:
            return "LOCKED after too many wrong PINs: unblock it with the device's own tool"
        case PinState.NOT_SET:
            return "not set: set the user PIN with the device's own tool"


def _algorithms(device: DeviceFacts) -> str:
    chosen = [f"{each.algorithm} ({each.name})" for each in device.mechanisms if each.chosen]
    return ", ".join(chosen) or "no algorithm that Entra accepts"


def _mechanisms(device: DeviceFacts, *, chosen: bool) -> list[str]:
    width = max((len(each.name) for each in device.mechanisms), default=0)
    return [
        f"{each.algorithm} with {each.name:{width}}  {each.work}" for each in device.mechanisms if each.chosen is chosen
    ]


def _contents(contents: Contents) -> Iterator[str]:
    if contents.hidden:
        yield "    Not logged in: the device may hide its private keys. --login shows them."
    elif not contents.keys:
        yield "    no private key"
    for key in contents.keys:
        yield from _key(key)
    for certificate in contents.certificates:
        yield from _certificate(certificate, contents)


def _key(key: KeyFacts) -> Iterator[str]:
    bits = f"{key.bits} bits" if key.bits else ""
    kind = " ".join(part for part in (key.kind, bits) if part)
    yield from heading(4, f"KEY {key.label!r}", ", ".join(part for part in (f"id {_id(key.id)}", kind) if part))
    yield from uri_line(6, key.uri)
    yield from row(6, "protected", ", ".join(_protection(key.protection)))
    yield from _problem(6, key.problem)


def _protection(protection: Protection) -> Iterator[str]:
    yield {True: "sensitive", False: "NOT SENSITIVE", None: "sensitive: not reported"}[protection.sensitive]
    match protection.extractable, protection.never_extractable:
        case True, _:
            yield "EXTRACTABLE"
        case _, True:
            yield "never extractable"
        case False, _:
            yield "not extractable"
        case _:
            yield "extractable: not reported"
    origin = {
        True: "generated on the device",
        False: "not generated on the device, so copies may exist",
        None: "origin not reported",
    }
    yield origin[protection.local]
    if protection.always_authenticate:
        yield "requires the PIN with each signature"


def _certificate(certificate: CertificateFacts, contents: Contents) -> Iterator[str]:
    yield from heading(4, f"CERTIFICATE {certificate.label!r}", f"id {_id(certificate.id)}")
    if certificate.attestation:
        yield from row(6, "kind", ATTESTATION)
    if certificate.subject is not None:
        yield from row(6, "subject", certificate.subject)
    if certificate.not_before and certificate.not_after and certificate.days_left is not None:
        yield from row(
            6, "valid", validity_in_words(certificate.not_before, certificate.not_after, certificate.days_left)
        )
    yield from row(6, "SHA-1", certificate.sha1.hex().upper())
    yield from row(6, "SHA-256", certificate.sha256.hex().upper())
    yield from row(6, "certifies", _certified(certificate, contents))
    yield from _problem(6, certificate.problem)


def _certified(certificate: CertificateFacts, contents: Contents) -> str:
    key = next((key for key in contents.keys if key.uri == certificate.key), None)
    if key is None:
        return "none of these keys"
    name = f"key {key.label!r}, id {_id(key.id)}"
    return (
        name if key.id == certificate.id else f"{name}; the IDs differ, so name the certificate with --certificate FILE"
    )


def _problem(indent: int, problem: Problem | None, label: str = "problem") -> Iterator[str]:
    if problem is not None:
        yield from row(indent, label, problem.message)
        if problem.hint:
            yield from row(indent, "hint", problem.hint)
        yield from commands(indent, problem.commands)


def _id(octets: bytes) -> str:
    return octets.hex() or "none"
