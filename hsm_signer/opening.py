"""From a profile and the person who may be asked to an identity whose device is open."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsm_signer.certificate import Certificate
from hsm_signer.certificate_source import CertificateFile, StoredCertificate
from hsm_signer.config import Profile
from hsm_signer.crypto import PublicKey, Signer
from hsm_signer.device.lane import Slow, log_slow
from hsm_signer.device.pin import Pin, PinRequest, PinSource
from hsm_signer.device.pin_sources import FixedLogin, NobodyToAsk, parse_pin_source
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, HsmSignerError
from hsm_signer.identity import Identity
from hsm_signer.settings import missing

if TYPE_CHECKING:
    from hsm_signer.device.device import Device, KeyReference
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


NOBODY = Operator()


def open_identity(profile: Profile, uri: Pkcs11Uri, operator: Operator = NOBODY, *, isolated: bool = False) -> Identity:
    """Open one key of a profile, and return the identity it gives.

    Args:
        isolated: have a process of its own serve the device, which may hang or crash alone.

    Raises:
        ConfigError: the profile has no client id, or its PIN source is malformed.
        DeviceError, DeviceTimeout, PinError, KeyLookupError: the key cannot be used.
    """
    if not profile.client_id:
        raise missing("client_id")
    reference = key_reference(profile, uri, operator)
    with ExitStack() as undo:
        signer: Signer
        if isolated:
            from hsm_signer.device.worker import open_worker

            signer = worker = undo.enter_context(open_worker(reference))
            certificates = _certificates(profile, signer.public_key, worker.certificate, worker.device)
        else:
            from hsm_signer.device.device import open_device

            device = undo.enter_context(open_device(reference))
            signer = device.signer()
            certificates = certificates_of(profile, device, signer)
        certificates()
        return make_identity(profile, signer, certificates, close=undo.pop_all().close)


def make_identity(
    profile: Profile,
    signer: Signer,
    certificates: Callable[[], tuple[Certificate, ...]],
    *,
    close: Callable[[], None] = lambda: None,
    now: Callable[[], float] = time.time,
) -> Identity:
    """Return the identity that a key of a profile gives, once it is open.

    Args:
        certificates: what `certificates_of` returned.
        close: lets go of the device.
        now: the clock, epoch seconds.

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
    )


def key_reference(profile: Profile, uri: Pkcs11Uri, operator: Operator = NOBODY) -> "KeyReference":
    """Return how to get to one key of a profile.

    Raises:
        ConfigError: the PIN source is malformed.
        PinUnavailable: it is the prompt, and nobody can be asked.
    """
    from hsm_signer.device.device import KeyReference

    return KeyReference(
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
        return parse_pin_source(profile.pin_source, prompt=prompt, directory=profile.pin_directory)
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
