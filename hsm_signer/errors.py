"""All errors of this package. Each has a stable code, an exit status, and perhaps a hint.

A message says what was looked for and what was found instead; the hint says what to do. Neither contains a PIN, a token
or an assertion. Errors can be pickled, for programs that pass them from one process to another.

Scripts rely on the exit statuses: a service manager may restart the command after some of them, and not after others.
"""

from typing import ClassVar, Self


class HsmSignerError(Exception):
    """Any failure that this package can explain.

    Args:
        message: what was looked for and what was found, in one or two sentences.
        hint: how to fix it, in one or two sentences, or None if the message says that. A traceback shows it, too.
        commands: the commands or options to type, each shown on its own line below the hint.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str | None = None, commands: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.commands = commands
        if hint:
            # Shown below the message in a traceback (PEP 678).
            self.add_note("\n  ".join([f"hint: {hint}", *commands]))

    def __copy__(self) -> Self:
        # With notes of its own: a note that a caller adds to one error must not show on another.
        copied = type(self)(*self.args)
        vars(copied).update(vars(self))
        if hasattr(self, "__notes__"):
            copied.__notes__ = list(self.__notes__)
        return copied


class ConfigError(HsmSignerError):
    """A setting is missing, malformed, or contradicts another."""

    code = "config_error"
    exit_status = 2


class UriError(ConfigError):
    """A PKCS#11 URI does not follow RFC 7512.

    Args:
        position: index of the first invalid character, from 0, or None if the whole URI is invalid.
    """

    code = "uri_error"

    def __init__(self, message: str, *, hint: str | None = None, position: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.position = position


class ScopeError(ConfigError, ValueError):
    """These scopes cannot be requested. Also a ValueError, as in the Azure SDKs."""

    code = "scope_error"


class JwtError(ConfigError):
    """A string is not a compact JWT."""

    code = "jwt_malformed"


class DeviceError(HsmSignerError):
    """The device or its module failed, and no subclass describes how."""

    code = "device_error"
    exit_status = 3


class ModuleLoadError(DeviceError):
    """No PKCS#11 module was found, or the module cannot be loaded."""

    code = "module_load_error"


class DeviceNotFound(DeviceError):
    """No device matches the URI."""

    code = "device_not_found"


class DeviceAmbiguous(DeviceError):
    """More than one device matches the URI."""

    code = "device_ambiguous"


class DeviceGone(DeviceError):
    """The device was removed, or its session was lost."""

    code = "device_gone"


class LoginInterrupted(DeviceGone):
    """The device failed during a login. It is unknown whether it checked the PIN."""

    code = "login_interrupted"


class DeviceReadOnly(DeviceError):
    """The device does not let the user's PIN change it."""

    code = "device_read_only"


class MechanismUnsupported(DeviceError):
    """The device has no mechanism for the requested algorithm."""

    code = "mechanism_unsupported"


class TouchMissed(DeviceError):
    """The device waited for a touch, and nobody touched it in time."""

    code = "touch_missed"


class SignatureInvalid(DeviceError):
    """The device returned a signature that does not verify with the public key."""

    code = "signature_invalid"


class DeviceTimeout(HsmSignerError):
    """A call into the module did not return in time."""

    code = "device_timeout"
    exit_status = 8


class PinError(HsmSignerError):
    """The device refused the PIN, or there is no PIN that can be sent. Nothing is tried again.

    Attributes:
        source_state: if the device refused a PIN, the state of the source when the PIN was read; else empty.
    """

    code = "pin_error"
    exit_status = 4
    source_state = ""


class PinIncorrect(PinError):
    """The device reported that the PIN is wrong."""

    code = "pin_incorrect"


class PinLocked(PinError):
    """The PIN is locked after too many wrong PINs."""

    code = "pin_locked"


class PinLastTry(PinError):
    """One more wrong PIN would lock the device, and nobody allowed the last try."""

    code = "pin_last_try"


class PinRefusedBefore(PinError):
    """The device has refused this PIN before, according to our record. It was not sent again."""

    code = "pin_refused_before"


class PinOutcomeUnknown(PinError):
    """Earlier logins with this PIN ended without a result, according to our record. It was not sent again."""

    code = "pin_outcome_unknown"


class PinUnavailable(PinError):
    """The PIN could not be read from its source."""

    code = "pin_unavailable"


class KeyLookupError(HsmSignerError):
    """The key or its certificate does not exist, or cannot be used."""

    code = "key_error"
    exit_status = 5


class KeyNotFound(KeyLookupError):
    """No private key on the device matches the URI."""

    code = "key_not_found"


class KeyAmbiguous(KeyLookupError):
    """More than one private key matches the URI."""

    code = "key_ambiguous"


class KeyExists(KeyLookupError):
    """Another key already has the label or the id of the new key."""

    code = "key_exists"


class KeyUnfit(KeyLookupError):
    """The key cannot sign client assertions that Entra accepts, or a new key is not as requested."""

    code = "key_unfit"


class CertificateNotFound(KeyLookupError):
    """There is no certificate for the key."""

    code = "certificate_not_found"


class CertificateExists(KeyLookupError):
    """The key already has a certificate, and replacing it was not allowed."""

    code = "certificate_exists"


class CertificateMismatch(KeyLookupError):
    """The certificate is for another key."""

    code = "certificate_mismatch"


class CertificateUnusable(KeyLookupError):
    """The certificate is malformed, expired, not yet valid, or not for digital signatures."""

    code = "certificate_unusable"


class NetworkError(HsmSignerError):
    """The server could not be reached, was still unavailable after the retries, or sent an invalid answer."""

    code = "network_error"
    exit_status = 6


class EntraError(HsmSignerError):
    """Entra refused the request.

    Args:
        error: the OAuth error code, for example ``invalid_client`` (RFC 6749 section 5.2).
        aadsts: the number behind ``AADSTS``, from ``error_codes``, or None.
        correlation_id: identifies the request; Microsoft's support asks for it.
        trace_id: also identifies the request.
    """

    code = "entra_error"
    exit_status = 7

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        commands: tuple[str, ...] = (),
        error: str | None = None,
        aadsts: int | None = None,
        correlation_id: str | None = None,
        trace_id: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, commands=commands)
        self.error = error
        self.aadsts = aadsts
        self.correlation_id = correlation_id
        self.trace_id = trace_id


class OutputError(HsmSignerError):
    """The result could not be written. No file is left half-written."""

    code = "output_error"
    exit_status = 74
