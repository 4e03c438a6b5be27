"""Which key of a device to use, and with which certificate; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from hsm_signer.device.inventory.facts import CertificateFacts, Contents, KeyFacts
from hsm_signer.device.match import KeyInfo, matches_key
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import KeyNotFound


@dataclass(frozen=True)
class KeyOption:
    """A key that Entra can use.

    Attributes:
        certificate: the one that the device holds for it, or None. It may have expired.
    """

    key: KeyFacts
    certificate: CertificateFacts | None

    @property
    def is_ready(self) -> bool:
        """Whether it has a certificate that can be used."""
        return self.certificate is not None and self.certificate.problem is None

    @property
    def name(self) -> str:
        """What people call the key."""
        return self.key.label or f"id {self.key.id.hex()}"

    def __str__(self) -> str:
        certificate = self.certificate
        said = "no certificate" if certificate is None else f"certificate {certificate.subject}"
        if certificate is not None and certificate.days_left is not None and certificate.days_left < 0:
            said += " (expired)"
        return f"{self.name} (id {self.key.id.hex() or 'none'}, RSA {self.key.bits}, {said})"


def usable_keys(contents: Contents) -> list[KeyOption]:
    """Return the keys that Entra can use, those with a certificate first."""
    options = [KeyOption(key, _certificate(key, contents.certificates)) for key in contents.keys if key.problem is None]
    return sorted(options, key=lambda option: (not option.is_ready, option.certificate is None))


def matching_keys(options: Sequence[KeyOption], wanted: Pkcs11Uri | None, label: str | None) -> list[KeyOption]:
    """Return those that a URI means and that have a label, as far as these are given."""
    return [
        option
        for option in options
        if (wanted is None or matches_key(wanted, KeyInfo(option.key.label, option.key.id)))
        and (label is None or option.key.label == label)
    ]


def names_key(uri: Pkcs11Uri | None) -> bool:
    """Return whether a URI names a key, and not only its device."""
    return uri is not None and (uri.object is not None or uri.id is not None)


def no_such_key(options: Sequence[KeyOption], contents: Contents, wanted: Pkcs11Uri, device: str) -> KeyNotFound:
    """Return the error for a URI that means no key that Entra can use."""
    for key in contents.keys:
        if key.problem is not None and matches_key(wanted, KeyInfo(key.label, key.id)):
            return KeyNotFound(
                f"The key {wanted.redacted} cannot be used. {key.problem.message}", hint=key.problem.hint
            )
    seen = ", ".join(option.key.uri for option in options) or "none"
    return KeyNotFound(
        f"No key on {device} matches --key {wanted.redacted}. Keys that Entra can use: {seen}.",
        hint="Correct --key, or leave it out to choose a key.",
    )


def _certificate(key: KeyFacts, certificates: Sequence[CertificateFacts]) -> CertificateFacts | None:
    """Return the certificate by which the key is found: with its CKA_ID, for this key, and not an attestation."""
    own = [each for each in certificates if not each.attestation and key.id and each.id == key.id]
    return min(own, key=lambda each: each.problem is not None, default=None)
