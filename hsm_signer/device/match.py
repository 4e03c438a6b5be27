"""Which device and which key a URI names, and which URI to write for them; pure.

Exactly one device and one key must match: a PIN sent to the wrong card can lock it.
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceAmbiguous, DeviceNotFound, KeyAmbiguous, KeyNotFound
from hsm_signer.system.display import displayable


@dataclass(frozen=True)
class DeviceInfo:
    """What a device, its slot and its module report about themselves (PKCS#11 v3.1 section 3.2)."""

    label: str
    manufacturer: str
    model: str
    serial: str
    slot_id: int
    slot_description: str
    slot_manufacturer: str
    library_manufacturer: str
    library_description: str
    library_version: tuple[int, int]

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What stays the same wherever the device is plugged in. A serial alone is not enough: it may not be unique."""
        return self.manufacturer, self.model, self.serial, self.label

    @property
    def short_name(self) -> str:
        """What a person calls it: its label. It cannot control a terminal."""
        return displayable(self.label or self.model or self.slot_description)

    def __str__(self) -> str:
        name = self.label or self.model or self.slot_description
        details = ", ".join(part for part in (self.manufacturer, self.model, self.serial) if part)
        return f"{name!r} ({displayable(details)})"


@dataclass(frozen=True)
class KeyInfo:
    """The label and the id of a key or certificate: CKA_LABEL and CKA_ID."""

    label: str
    id: bytes

    @property
    def selector(self) -> Pkcs11Uri:
        """A URI that names this key, on any device."""
        return Pkcs11Uri(object=self.label or None, id=self.id or None)

    def __str__(self) -> str:
        return f"{self.label or 'without a label'!r}, id {self.id.hex() or 'none'}"


def select_device(uri: Pkcs11Uri, devices: Sequence[DeviceInfo], module: str) -> int:
    """Return the index of the one device that `uri` names.

    Args:
        uri: without an attribute of a device, it means the only device that is plugged in. It leads to the module.
        devices: all that are plugged in.
        module: the module that found them, for messages.

    Raises:
        DeviceNotFound: none matches.
        DeviceAmbiguous: several match; the commands have a URI for each.
    """
    matching = [index for index, device in enumerate(devices) if matches_device(uri, device)]
    if len(matching) == 1:
        return matching[0]
    wanted = device_uri_text(uri)
    if not devices:
        raise DeviceNotFound(
            f"{module} shows no device. Looked for {wanted}.",
            hint="Check that the device is plugged in, and that what the module needs below it is running.",
        )
    if not matching:
        raise DeviceNotFound(
            f"No device matches {wanted}. {module} shows {_number(len(devices), 'device')}.",
            hint=f"Plug the device in, or use {_this(len(devices))}:",
            commands=key_options(led_by(uri, each) for each in device_uris(devices)),
        )
    candidates = device_uris([devices[index] for index in matching])
    commands = key_options(led_by(uri, each) for each in candidates)
    raise DeviceAmbiguous(several_devices(len(matching), uri), hint="Choose one of them:", commands=commands)


def select_key(uri: Pkcs11Uri, keys: Sequence[KeyInfo], device: DeviceInfo) -> int:
    """Return the index of the one private key that `uri` names, among those of `device`.

    Raises:
        KeyNotFound: none matches.
        KeyAmbiguous: several match; the commands have a URI for each.
    """
    matching = [index for index, key in enumerate(keys) if matches_key(uri, key)]
    if len(matching) == 1:
        return matching[0]
    wanted = Pkcs11Uri(object=uri.object, id=uri.id)
    if not keys:
        raise KeyNotFound(
            f"No private key on {device} matches {wanted}. The device has none.",
            hint="Generate a key: hsm-signer key generate. If you use --pin-source none, choose another PIN source: "
            "without a login, private keys may be hidden.",
        )
    if not matching:
        raise KeyNotFound(
            f"No private key on {device} matches {wanted}. The device has {_number(len(keys), 'private key')}.",
            hint=f"Use {_this(len(keys))}:",
            commands=key_options(led_by(uri, each) for each in key_uris(device, keys)),
        )
    candidates = key_uris(device, [keys[index] for index in matching])
    raise KeyAmbiguous(
        f"{len(matching)} private keys on {device} match.",
        hint="Choose one of them:",
        commands=key_options(led_by(uri, each) for each in candidates),
    )


def several_devices(count: int, uri: Pkcs11Uri) -> str:
    """Return the sentence that several devices match."""
    wanted = device_uri_text(uri)
    return f"There are {count} devices." if wanted == str(Pkcs11Uri()) else f"{count} devices match {wanted}."


def led_by(origin: Pkcs11Uri, uri: Pkcs11Uri) -> Pkcs11Uri:
    """Return `uri` with the attributes of `origin` that lead to its module, so that it can be pasted."""
    return replace(uri, module_name=origin.module_name, module_path=origin.module_path)


def key_options(uris: Iterable[Pkcs11Uri]) -> tuple[str, ...]:
    """Return the option that chooses each URI, in order, quoted for a shell."""
    return tuple(f"--key {quoted}" for quoted in sorted(shlex.quote(str(uri)) for uri in uris))


def matches_device(uri: Pkcs11Uri, device: DeviceInfo) -> bool:
    """Return whether a device has every device, slot and library attribute of `uri` (RFC 7512 section 2.5)."""
    pairs: tuple[tuple[object, object], ...] = (
        (uri.token, device.label),
        (uri.manufacturer, device.manufacturer),
        (uri.model, device.model),
        (uri.serial, device.serial),
        (uri.slot_id, device.slot_id),
        (uri.slot_description, device.slot_description),
        (uri.slot_manufacturer, device.slot_manufacturer),
        (uri.library_manufacturer, device.library_manufacturer),
        (uri.library_description, device.library_description),
        (uri.library_version, device.library_version),
    )
    return all(wanted is None or wanted == found for wanted, found in pairs)


def matches_key(uri: Pkcs11Uri, key: KeyInfo) -> bool:
    """Return whether a key has the label and the id that `uri` gives, if it gives them."""
    return (uri.object is None or uri.object == key.label) and (uri.id is None or uri.id == key.id)


def device_uris(devices: Sequence[DeviceInfo]) -> list[Pkcs11Uri]:
    """Return for each device the shortest URI that none of the others matches."""
    return [_shortest(device, devices) for device in devices]


def key_uris(device: DeviceInfo, keys: Sequence[KeyInfo]) -> list[Pkcs11Uri]:
    """Return for each key of a device a URI that none of the others matches, unless two have the same label and id."""
    return [_shortest_key(device, key, keys) for key in keys]


def short_names(devices: Sequence[DeviceInfo]) -> list[str]:
    """Return for each of the devices that are present its short name, with the serial where others share that name."""
    names = [device.short_name for device in devices]
    return [
        f"{name} #{displayable(device.serial)}" if names.count(name) > 1 else name
        for name, device in zip(names, devices, strict=True)
    ]


def device_uri_text(uri: Pkcs11Uri) -> str:
    """Return the part of `uri` that names a device, for messages."""
    return str(
        Pkcs11Uri(
            token=uri.token,
            manufacturer=uri.manufacturer,
            model=uri.model,
            serial=uri.serial,
            slot_id=uri.slot_id,
            slot_description=uri.slot_description,
            slot_manufacturer=uri.slot_manufacturer,
            library_manufacturer=uri.library_manufacturer,
            library_description=uri.library_description,
            library_version=uri.library_version,
        )
    )


# Serials are not unique: tpm2-pkcs11 reports zeros for every TPM.
_SHAPES: tuple[Callable[[DeviceInfo], Pkcs11Uri], ...] = (
    lambda d: Pkcs11Uri(token=d.label, serial=d.serial),
    lambda d: Pkcs11Uri(token=d.label, serial=d.serial, manufacturer=d.manufacturer, model=d.model),
    lambda d: Pkcs11Uri(token=d.label, serial=d.serial, slot_description=d.slot_description),
)


def _shortest(device: DeviceInfo, devices: Sequence[DeviceInfo]) -> Pkcs11Uri:
    for shape in _SHAPES:
        uri = shape(device)
        if sum(matches_device(uri, other) for other in devices) == 1:
            return uri
    return Pkcs11Uri(token=device.label, serial=device.serial, slot_id=device.slot_id)


def _shortest_key(device: DeviceInfo, key: KeyInfo, keys: Sequence[KeyInfo]) -> Pkcs11Uri:
    uri = Pkcs11Uri(token=device.label, serial=device.serial, object=key.label or None, id=key.id or None)
    if sum(matches_key(uri, other) for other in keys) == 1:
        return uri
    # An attribute that is left out matches any value; an empty one matches only an empty value.
    return replace(uri, object=key.label, id=key.id)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _this(count: int) -> str:
    return "this one" if count == 1 else "one of these"
