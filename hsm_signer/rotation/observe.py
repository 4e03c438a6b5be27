"""Read the key file and the device, and return what the plan needs to decide the next step."""

from contextlib import suppress
from dataclasses import replace

from hsm_signer.config.keyfile import KeyEntry, KeyFile
from hsm_signer.device.manage.certificates import read_certificate
from hsm_signer.device.match import KeyInfo
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import CertificateNotFound, ConfigError, KeyAmbiguous, KeyNotFound, KeyUnfit
from hsm_signer.jwt.compact import thumbprints
from hsm_signer.rotation.context import RotationContext
from hsm_signer.rotation.plan import (
    Observed,
    Step,
    certificate_fits,
    complete_uri,
    days_left,
    first_change,
    is_due,
    next_step,
    with_until,
)
from hsm_signer.rotation.read_only import cannot_change
from hsm_signer.x509.certificate import Certificate, parse_certificates


def observe(context: RotationContext, file: KeyFile, grace: float) -> Observed:
    """Return what is known at the start of a run.

    Args:
        file: the content of the key file.
        grace: seconds for which a key stays registered after the switch to the next one.

    Raises:
        ConfigError: the next key is the current one, or the caller calls another key the current one.
        DeviceReadOnly: a step would change the device, and the PIN does not allow it.
        HsmSignerError: the current key, or the next one that the caller names, cannot be used.
    """
    _require_same_current(context, file)
    now, next_uri = context.clock.now(), context.request.next_key
    file = with_until(file, now, grace)
    unfinished = file.next is not None or bool(file.retired)
    observed = Observed(
        file,
        not unfinished,
        delete_old=context.request.delete_old,
        now=now,
        grace=grace,
        unwritten=not context.path.exists(),
        cancel=context.request.cancel,
        adopt=context.request.adopt,
    )
    if observed.cancel:
        _require_cancellable(context, observed)
        observed = replace(observed, start=False)
    if next_uri is None:
        observed = _with_days_left(context, observed)
        if next_step(observed) in (Step.WAIT, None):
            return observed  # no need to open the device
    # No step is possible without the current key's certificate.
    file = replace(file, current=_with_thumbprints(file.current, context.keys.certificate(file.current.uri)))
    observed = replace(observed, file=file)
    if next_uri is not None and not (file.next and file.next.registered):
        next_uri = complete_uri(next_uri, file.current.uri)
        if file.next is not None:  # started, and not yet registered
            observed = replace(observed, file=replace(file, next=KeyEntry(next_uri, registered=False)))
        else:
            keys = context.keys.public_keys(next_uri, file.current.uri)
            named = not replace(observed, keys=keys).is_current(KeyEntry(next_uri))
            if not named and not unfinished:
                raise _same_key(next_uri)
            observed = replace(observed, named=named)
        context.keys.signer(next_uri)  # raises the reason why it cannot be used
    observed = observe_device(context, observed)
    if next_uri is not None and observed.named:
        has_certificate = _has_certificate(context, KeyEntry(next_uri, registered=False))
        observed = replace(observed, has_key=True, has_certificate=has_certificate)
    _require_possible(context, observed, next_uri)
    return observed


def _require_possible(context: RotationContext, observed: Observed, next_uri: Pkcs11Uri | None) -> None:
    """Check what the device would refuse later, before the key file is written and Entra is asked."""
    change = first_change(observed)
    if change is Step.CERTIFY and next_uri is not None:
        require_own_id(context, context.keys.signer(next_uri).key.info, observed.file.current.uri)
    if change is not None and not observed.writable:
        raise cannot_change(context, observed, change, next_uri)


def require_own_id(context: RotationContext, key: KeyInfo, current: Pkcs11Uri) -> None:
    """Check that a certificate stored for the next key does not replace the current key's.

    Raises:
        KeyUnfit: both keys have the same id.
    """
    if key.id == context.keys.signer(current).key.info.id:
        raise KeyUnfit(
            f"The next key has the same id as the current one ({key}). Storing a certificate for it would "
            "replace the current key's certificate.",
            hint="Give the next key a different id, or generate another key and name it with --next.",
        )


def _require_cancellable(context: RotationContext, observed: Observed) -> None:
    """Check that the rotation has not yet switched to the next key."""
    waiting = [key for key in observed.file.retired if key.registered and (key.until or 0) > observed.now]
    if observed.file.next is None and waiting:
        command = context.profile.command_line("rotate", "--next", str(waiting[-1].uri))
        raise ConfigError(
            f"There is nothing to cancel: the rotation has switched to {observed.file.current.uri}.",
            hint="The old key is still registered. To go back to it:",
            commands=(command,),
        )


def _with_days_left(context: RotationContext, observed: Observed) -> Observed:
    """Return what is known, with whether a rotation is due. Logs in only if the certificate shows after a login."""
    warn_days = context.request.warn_days
    if not observed.start or observed.adopt or warn_days is None:
        return observed
    days = days_left(context.keys.shown_certificate(observed.file.current.uri), context.clock.utc_now())
    return observed if is_due(days, warn_days) else replace(observed, start=False, days_left=days)


def _require_same_current(context: RotationContext, file: KeyFile) -> None:
    """Check that the key file names the key that the caller calls the current one."""
    if context.request.current is None:
        return
    uri = complete_uri(context.request.current, file.current.uri)
    if uri == file.current.uri:
        return  # no need to open the device
    keys = context.keys.public_keys(uri, file.current.uri)
    if not Observed(file, start=False, keys=keys).is_current(KeyEntry(uri)):
        raise ConfigError(
            f"The current key is not {uri}: the key file {context.path} names {file.current.uri}.",
            hint="Omit --current: the key file says which key is in use. To replace that key with the one that you "
            "named, run: hsm-signer rotate --next URI",
        )


def observe_device(context: RotationContext, observed: Observed) -> Observed:
    """Return what is known, updated with what the device reports about the keys of the key file.

    Raises:
        ConfigError: the next key is the current one.
        KeyUnfit: the next key cannot be used.
    """
    current, next_key, retired = observed.file.current, observed.file.next, observed.file.retired
    keys = context.keys.public_keys(*(key.uri for key in (current, next_key, *retired) if key is not None))
    has_key, writable = next_key is not None and next_key.uri in keys, context.keys.read_only is None
    observed = replace(observed, keys=keys, has_key=has_key, writable=writable)
    if next_key is None:
        return observed
    if observed.cancel:
        has_certificate = observed.has_key and context.keys.retired_certificate(next_key.uri) is not None
        return replace(observed, has_certificate=has_certificate)
    if not observed.has_key:
        with suppress(KeyNotFound, KeyAmbiguous):
            context.keys.signer(next_key.uri)  # raises the reason why a key that exists cannot be used
    if observed.is_current(next_key):
        raise _same_key(next_key.uri)
    return replace(observed, has_certificate=observed.has_key and _has_certificate(context, next_key))


def _has_certificate(context: RotationContext, key: KeyEntry) -> bool:
    signer = context.keys.signer(key.uri)
    try:
        (found,) = parse_certificates(
            read_certificate(context.keys.device, signer.key.info), "The next key's certificate"
        )
    except (CertificateNotFound, KeyAmbiguous):
        return False
    return found.public_key == signer.public_key and certificate_fits(
        found, key, context.request.days, context.clock.utc_now()
    )


def _with_thumbprints(key: KeyEntry, certificate: Certificate) -> KeyEntry:
    """Return a key with its certificate's thumbprints, so that programs can tell whether theirs is still current."""
    if key.thumbprints == thumbprints(certificate) or (key.key_id is not None and not key.thumbprints):
        return key
    return replace(key, key_id=None, thumbprints=thumbprints(certificate))  # the ID belongs to another certificate


def _same_key(uri: Pkcs11Uri) -> ConfigError:
    return ConfigError(
        f"The next key, {uri}, is the current key. A rotation needs a different one.",
        hint='Name another key with --next, or omit --next. If the key file has "next", remove it.',
    )
