"""One error tree. Every failure has a stable code, an exit status, and room for a hint.

A message names what was looked for and what was found instead; the hint says what to do. Neither ever holds a PIN,
a token or an assertion. Errors survive pickling, for programs that hand them from one process to another.

Statuses are the contract of the command line: a service manager restarts on some and not on others.
"""

from typing import ClassVar


class HsmSignerError(Exception):
    """Any failure this package can explain.

    Args:
        message: one sentence that says what was looked for and what was found.
        hint: one sentence that says how to mend it, or None where the message says it all.

    Attributes:
        commands: to type for that, where the hint ends with a colon; each is shown on a line of its own.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.commands: tuple[str, ...] = ()


class ConfigError(HsmSignerError):
    """A setting is missing, malformed, or contradicts another."""

    code = "config_error"
    exit_status = 2


class UriError(ConfigError):
    """A PKCS#11 URI does not follow RFC 7512.

    Args:
        position: index of the first offending character, from 0, or None when the URI as a whole is at fault.
    """

    code = "uri_error"

    def __init__(self, message: str, *, hint: str | None = None, position: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.position = position


class ScopeError(ConfigError, ValueError):
    """No token can be asked for by these scopes. A ValueError too, which the Azure SDKs raise for such."""

    code = "scope_error"


class JwtError(ConfigError):
    """Text that should be a compact JWT is not one."""

    code = "jwt_malformed"


class DeviceError(HsmSignerError):
    """The device or its module failed in a way no narrower class describes."""

    code = "device_error"
    exit_status = 3


class ModuleLoadError(DeviceError):
    """No PKCS#11 module was found, or the one named cannot be loaded."""

    code = "module_load_error"


class DeviceNotFound(DeviceError):
    """No device matches the URI."""

    code = "device_not_found"


class DeviceAmbiguous(DeviceError):
    """More than one device matches the URI."""

    code = "device_ambiguous"


class DeviceGone(DeviceError):
    """The device was there and is not any more, or its session was lost."""

    code = "device_gone"


class LoginInterrupted(DeviceGone):
    """The device failed during a login, and nobody can tell whether it checked the PIN."""

    code = "login_interrupted"


class DeviceReadOnly(DeviceError):
    """The device cannot be changed with what the user's PIN allows."""

    code = "device_read_only"


class MechanismUnsupported(DeviceError):
    """The device offers no mechanism for the algorithm asked for."""

    code = "mechanism_unsupported"


class TouchMissed(DeviceError):
    """The device waited for a touch, and none came."""

    code = "touch_missed"


class SignatureInvalid(DeviceError):
    """The device returned a signature that its own public key does not verify."""

    code = "signature_invalid"


class DeviceTimeout(HsmSignerError):
    """A call into the module did not return in time."""

    code = "device_timeout"
    exit_status = 8


class PinError(HsmSignerError):
    """The PIN stands between us and the key. Never retried.

    Attributes:
        source_state: of a PIN that a device refused, the state of the source that it was read from; else empty.
    """

    code = "pin_error"
    exit_status = 4
    source_state = ""


class PinIncorrect(PinError):
    """The device refused the PIN."""

    code = "pin_incorrect"


class PinLocked(PinError):
    """The PIN is locked after too many wrong tries."""

    code = "pin_locked"


class PinLastTry(PinError):
    """One more wrong PIN would lock the device, and nobody allowed that try."""

    code = "pin_last_try"


class PinRefusedBefore(PinError):
    """The record says that the device has refused this PIN. It was not presented again."""

    code = "pin_refused_before"


class PinOutcomeUnknown(PinError):
    """The record says that logins with this PIN ended without a result. It was not sent again."""

    code = "pin_outcome_unknown"


class PinUnavailable(PinError):
    """The source could not give a PIN."""

    code = "pin_unavailable"


class KeyLookupError(HsmSignerError):
    """The key or its certificate cannot be used as asked."""

    code = "key_error"
    exit_status = 5


class KeyNotFound(KeyLookupError):
    """No private key on the device matches the URI."""

    code = "key_not_found"


class KeyAmbiguous(KeyLookupError):
    """More than one private key matches the URI."""

    code = "key_ambiguous"


class KeyExists(KeyLookupError):
    """The label or the id of a key to be made is taken."""

    code = "key_exists"


class KeyUnfit(KeyLookupError):
    """The key cannot sign what Entra accepts, or is not what was asked for."""

    code = "key_unfit"


class CertificateNotFound(KeyLookupError):
    """There is no certificate for the key."""

    code = "certificate_not_found"


class CertificateExists(KeyLookupError):
    """The key has a certificate already, and nobody allowed to replace it."""

    code = "certificate_exists"


class CertificateMismatch(KeyLookupError):
    """Certificate and key do not share the public key."""

    code = "certificate_mismatch"


class CertificateUnusable(KeyLookupError):
    """The certificate is malformed, outside its validity, or not for digital signatures."""

    code = "certificate_unusable"


class NetworkError(HsmSignerError):
    """The token endpoint could not be reached, or stayed unwell after the retries, or answered no sense."""

    code = "network_error"
    exit_status = 6


class EntraError(HsmSignerError):
    """Entra refused the request.

    Args:
        error: the OAuth error code, for example ``invalid_client`` (RFC 6749 section 5.2).
        aadsts: the number behind ``AADSTS``, from ``error_codes``, or None.
        correlation_id: what Microsoft's support asks for.
        trace_id: likewise.
    """

    code = "entra_error"
    exit_status = 7

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        error: str | None = None,
        aadsts: int | None = None,
        correlation_id: str | None = None,
        trace_id: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.error = error
        self.aadsts = aadsts
        self.correlation_id = correlation_id
        self.trace_id = trace_id


class OutputError(HsmSignerError):
    """The result could not be written. Nothing was left half-written."""

    code = "output_error"
    exit_status = 74
