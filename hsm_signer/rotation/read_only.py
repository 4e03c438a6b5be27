"""Errors for a rotation on a device that the PIN cannot change: they name the commands of the device's own tool."""

import shlex
from dataclasses import replace

from hsm_signer.device.manage.keys import read_key_names
from hsm_signer.device.piv import id_for_next_key, is_piv, slot_of
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceReadOnly, KeyLookupError
from hsm_signer.rotation.context import RotationContext
from hsm_signer.rotation.plan import Observed, Step


def cannot_change(context: RotationContext, observed: Observed, step: Step, named: Pkcs11Uri | None) -> DeviceReadOnly:
    """Return the error for a step that would change the device.

    Args:
        named: the next key, if the caller names one.
    """
    refusal = context.keys.read_only
    assert refusal is not None  # noqa: S101  # the caller has asked
    if step is Step.DELETE:
        return DeviceReadOnly(
            refusal.message, hint="Omit --delete-old-key. At the end, rotate says how to delete the old key."
        )
    about = observed.file.next.uri if observed.file.next else named
    if step is Step.CERTIFY and about is not None:
        return _without_certificate(context, refusal, about, observed.file.current.uri)
    return _without_next_key(context, refusal, observed.file.current.uri)


def how_to_delete(context: RotationContext, uri: Pkcs11Uri) -> str:
    """Return a sentence that says how to delete a key that a rotation leaves on the device."""
    if context.keys.read_only is None:
        command = context.profile.command_line("key", "delete", "--certificate", "--key", str(uri))
        return f"To delete it: {command}"
    slot = _slot(context, uri)
    if slot is None:
        return "Delete it with the device's own tool."
    return (
        f"It is in slot {slot}. To delete it: ykman piv certificates delete {slot} && ykman piv keys delete {slot} "
        "(a YubiKey with firmware before 5.7 cannot delete keys: generate the next one in that slot instead)"
    )


def _without_certificate(
    context: RotationContext, refusal: DeviceReadOnly, uri: Pkcs11Uri, current: Pkcs11Uri
) -> DeviceReadOnly:
    what = f"The next key, {uri}, has no certificate that can be used, and rotate cannot store one. {refusal.message}"
    slot = _slot(context, uri)
    if slot is None:
        return DeviceReadOnly(what, hint="Store its certificate with the device's own tool. Then run rotate again.")
    return DeviceReadOnly(
        what,
        hint="Create its certificate with the card's own tool. Then run rotate again:",
        commands=(f"ykman piv keys export {slot} public.pem", _make_certificate(context, current, slot)),
    )


def _without_next_key(context: RotationContext, refusal: DeviceReadOnly, current: Pkcs11Uri) -> DeviceReadOnly:
    if not is_piv(context.keys.device.info):
        return DeviceReadOnly(
            refusal.message,
            hint="Generate the next key and its certificate with the device's own tool, and name it: rotate --next URI",
        )
    taken = frozenset(key.id for key in read_key_names(context.keys.device))
    chosen = id_for_next_key(context.keys.signer(current).key.info.id, taken)
    slot = slot_of(chosen) or ""
    # OpenSC shows no key without a certificate: a slot that looks free may have one.
    loses = "This replaces the key" if chosen in taken else "This replaces any key that is"
    return DeviceReadOnly(
        refusal.message,
        hint=f"Generate the next key with the card's own tool, and name it with --next. {loses} in slot {slot}:",
        commands=(
            f"ykman piv keys generate --algorithm RSA2048 {slot} public.pem",
            _make_certificate(context, current, slot),
            context.profile.command_line("rotate", "--next", str(replace(current, object=None, id=chosen))),
        ),
    )


def _make_certificate(context: RotationContext, current: Pkcs11Uri, slot: str) -> str:
    subject = context.next_subject(current)
    return shlex.join(["ykman", "piv", "certificates", "generate", "--subject", subject, slot, "public.pem"])


def _slot(context: RotationContext, uri: Pkcs11Uri) -> str | None:
    """Return the slot of a key on a PIV card; None if the key was deleted, or is on another kind of device."""
    if not is_piv(context.keys.device.info):
        return None
    try:
        return slot_of(context.keys.signer(uri).key.info.id)
    except KeyLookupError:
        return None
