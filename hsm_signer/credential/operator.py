"""From a profile and the person who may be asked to an identity whose device is open."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsm_signer.config.profile import Profile
from hsm_signer.config.settings import missing
from hsm_signer.credential.certificate_source import CertificateFile, StoredCertificate
from hsm_signer.credential.identity import Identity
from hsm_signer.crypto import PublicKey, Signer
from hsm_signer.device.lane import Slow, log_slow
from hsm_signer.device.pin.pin import Pin, PinRequest, PinSource
from hsm_signer.device.pin.sources import FixedLogin, NobodyToAsk, parse_pin_source
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import CertificateNotFound, ConfigError, HsmSignerError, KeyNotFound
from hsm_signer.x509.certificate import Certificate

if TYPE_CHECKING:
    from hsm_signer.device.access import KeyAccess
    from hsm_signer.device.device import Device
    from hsm_signer.device.signer import DeviceSigner


@dataclass(frozen=True)
class Operator:
    """The person at the terminal, as far as there is one.

    Attributes:
        prompt: asks for the PIN where no other source is set.
        confirm: asks whether the last PIN try may be taken.
        slow: shows that a call into the device takes longer than a moment, perhaps because it waits for a touch.
        wait: told why there is no device yet; returns when it is time to look again. None: do not wait for one.
    """

    prompt: PinSource | None = None
    confirm: Callable[[PinRequest], None] | None = None
    slow: Slow = log_slow
    wait: Callable[[HsmSignerError], None] | None = None


UNATTENDED = Operator()


def open_identity(
    profile: Profile,
    uri: Pkcs11Uri,
    operator: Operator = UNATTENDED,
    *,
    isolated: bool = False,
    replaced: Identity | None = None,
) -> Identity:
    """Open one key of a profile, and return the identity it gives.

    Args:
        isolated: have a process of its own serve the device, which may hang or crash alone.
        replaced: of the key that this one takes the place of, and gone with that. On the same device its login, or the
            PIN that was accepted, serves this key too: the source may give it only once.

    Raises:
        ConfigError: the profile has no client id, or its PIN source is malformed.
        DeviceError, DeviceTimeout, PinError, KeyLookupError: the key cannot be used.
    """
    if not profile.client_id:
        raise missing("client_id")
    access = key_access(profile, uri, operator)
    return (_open_worker if isolated else _open_device)(profile, access, replaced)


def _open_device(profile: Profile, access: "KeyAccess", replaced: Identity | None) -> Identity:
    from hsm_signer.device.device import Device, open_device

    if replaced is not None:
        if isinstance(replaced.opened, Device) and replaced.opened.serves(access):
            # A module may not see what another process has stored, before the device is opened again.
            with suppress(KeyNotFound, CertificateNotFound):
                return _identity_on(profile, replaced.opened, access.uri)
        # Before the next one is opened: the end of the session that logged in ends the login for all.
        replaced.close()
    with ExitStack() as undo:
        identity = _identity_on(profile, undo.enter_context(open_device(access)), access.uri)
        undo.pop_all()
        return identity


def _identity_on(profile: Profile, device: "Device", uri: Pkcs11Uri) -> Identity:
    signer = device.signer(uri)
    certificates = certificates_of(profile, device, signer)
    certificates()
    return make_identity(profile, signer, certificates, close=device.close, opened=device)


def _open_worker(profile: Profile, access: "KeyAccess", replaced: Identity | None) -> Identity:
    from hsm_signer.device.worker.pool import WorkerSigner, open_worker

    before = None
    if replaced is not None:
        before = replaced.opened if isinstance(replaced.opened, WorkerSigner) else None
        replaced.close()
    with ExitStack() as undo:
        worker = undo.enter_context(open_worker(access, before=before))
        certificates = _certificates(profile, worker.public_key, worker.certificate, worker.device)
        certificates()
        return make_identity(profile, worker, certificates, close=undo.pop_all().close, opened=worker)


def make_identity(
    profile: Profile,
    signer: Signer,
    certificates: Callable[[], tuple[Certificate, ...]],
    *,
    close: Callable[[], None] = lambda: None,
    now: Callable[[], float] = time.time,
    opened: object = None,
) -> Identity:
    """Return the identity that a key of a profile gives, once it is open.

    Args:
        certificates: what `certificates_of` returned.
        close: lets go of the device.
        now: the clock, epoch seconds.
        opened: see `Identity`.

    Raises:
        ConfigError: the profile has no client id.
    """
    if not profile.client_id:
        raise missing("client_id")
    return Identity(
        client_id=profile.client_id,
        signer=signer,
        certificates=certificates,
        algorithm=profile.algorithm,
        thumbprint=profile.thumbprint,
        send_chain=profile.send_chain,
        close=close,
        now=now,
        opened=opened,
    )


def key_access(profile: Profile, uri: Pkcs11Uri, operator: Operator = UNATTENDED) -> "KeyAccess":
    """Return how to get to one key of a profile.

    Raises:
        ConfigError: the PIN source is malformed.
        PinUnavailable: it is the prompt, and nobody can be asked.
    """
    from hsm_signer.device.access import KeyAccess

    return KeyAccess(
        uri=uri,
        pin=pin_source(profile, uri, operator.prompt),
        module=profile.module,
        module_environment=profile.module_environment,
        timeout=profile.device_timeout,
        allow_last_try=profile.allow_last_try,
        pin_record=profile.state_directory / "pins" if profile.pin_record else None,
        confirm=operator.confirm,
        slow=operator.slow,
        wait=operator.wait,
    )


def pin_source(profile: Profile, uri: Pkcs11Uri, prompt: PinSource | None) -> PinSource:
    """Return where the PIN for one key of a profile comes from.

    Raises:
        ConfigError: the PIN source is malformed.
        PinUnavailable: it is the prompt, and nobody can be asked.
    """
    # RFC 7512 section 2.4 leaves it to us. Whoever wrote the URI must not choose a program that we run, nor seem to.
    if (uri.pin_source or "").startswith(("|", "command:")):
        raise ConfigError(
            "The pin-source of a URI may not name a program to run.",
            hint="Take it out of the URI, and use --pin-source command:ARGV.",
        )
    if profile.pin_source is not None:
        return parse_pin_source(profile.pin_source, prompt=prompt)
    if uri.pin_source is not None:
        return parse_pin_source(uri.pin_source, prompt=prompt)
    if uri.pin_value is not None:
        return FixedLogin(Pin(uri.pin_value), "the pin-value of the URI")
    return prompt or NobodyToAsk()


def certificates_of(
    profile: Profile, device: "Device", signer: "DeviceSigner"
) -> Callable[[], tuple[Certificate, ...]]:
    """Return what returns the certificate of a key, then any that lead from it to its issuer.

    Raises:
        CertificateNotFound, CertificateUnusable, KeyAmbiguous: the device does not hold exactly one that can be read.
    """
    return _certificates(profile, signer.public_key, lambda: device.certificate(signer), str(device.info))


def _certificates(
    profile: Profile, public_key: PublicKey, read: Callable[[], bytes], device: str
) -> Callable[[], tuple[Certificate, ...]]:
    if profile.certificate is not None:
        return CertificateFile(profile.certificate, public_key)
    return StoredCertificate(read, device)
