"""What to do if Entra does not know the certificate of an assertion (AADSTS700027): which one it is, where to look."""

from hsm_signer.config.profile import Profile
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import EntraError
from hsm_signer.x509.certificate import Certificate

KEY_UNKNOWN = 700027


def with_certificate(error: EntraError, certificate: Certificate, profile: Profile, uri: Pkcs11Uri) -> EntraError:
    """Return an error that names what a person compares with the portal, and the command that exports the certificate.

    Args:
        error: returned unchanged unless it is AADSTS700027.
        certificate: the one that the assertion names.
        profile: of the assertion.
        uri: of the key.
    """
    if error.aadsts != KEY_UNKNOWN:
        return error
    hint = (
        f"This is the certificate {certificate.subject} with the thumbprint {certificate.sha1.hex().upper()}. Look for "
        f"the thumbprint in the Microsoft Entra admin center: App registrations > the app {profile.client_id} > "
        "Certificates & secrets > Certificates. Upload the certificate if it is missing, and wait a few minutes."
    )
    export = profile.command_line("certificate", "export", "--key", str(uri.redacted), "--output-file", "app.pem")
    commands: tuple[str, ...] = (f"{export}  # writes the file to upload",)
    if profile.certificate is not None:
        hint, commands = f"{hint} It is the file {profile.certificate}.", ()
    return EntraError(
        error.message,
        hint=hint,
        commands=commands,
        error=error.error,
        aadsts=error.aadsts,
        correlation_id=error.correlation_id,
        trace_id=error.trace_id,
    )
