"""The keys of a rotation, which are all on one device."""

from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property

from hsm_signer.config.profile import Profile
from hsm_signer.credential.certificate_source import certificates_of
from hsm_signer.credential.client import Client
from hsm_signer.credential.identity import Identity
from hsm_signer.credential.key_access import key_access
from hsm_signer.crypto import PublicKey
from hsm_signer.device.access import Operator
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.manage.certificates import read_public_certificate
from hsm_signer.device.match import matches_device
from hsm_signer.device.signer import DeviceSigner, open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceReadOnly, KeyLookupError, KeyNotFound
from hsm_signer.rotation.clock import Clock
from hsm_signer.x509.certificate import Certificate, parse_certificates
from hsm_signer.x509.requirements import require_usable


class DeviceKeys:
    """The keys of a rotation, on the device of the current key. It is opened, with one login, when first needed.

    Args:
        profile: how to open the device.
        client: the application.
        current: the current key.
        operator: who enters the PIN.
        clock: the time.

    Attributes:
        read_only: the error, once the device was opened and is write-protected.
    """

    def __init__(self, profile: Profile, client: Client, current: Pkcs11Uri, operator: Operator, clock: Clock) -> None:
        self._profile, self._client, self._current = profile, client, current
        self._operator, self._clock = operator, clock
        self._identities: dict[str, Identity] = {}
        self._undo = ExitStack()
        self.read_only: DeviceReadOnly | None = None

    def close(self) -> None:
        """Close the device, if it was opened."""
        self._undo.close()

    @cached_property
    def device(self) -> Device:
        """The device, writable unless it is write-protected."""
        access = key_access(self._profile, self._current, self._operator)
        try:
            device = open_device(replace(access, writable=True))
        except DeviceReadOnly as error:
            # Raised before the PIN is asked for. Keys that were generated with another tool can still be rotated.
            self.read_only = error
            device = open_device(access)
        return self._undo.enter_context(device)

    def signer(self, uri: Pkcs11Uri) -> DeviceSigner:
        """Return a signer for a key.

        Raises:
            KeyNotFound: the key is not on the device, or the URI names another device.
            KeyAmbiguous, KeyUnfit: the URI names several keys, or one that cannot sign.
        """
        if not matches_device(uri, self.device.info):
            raise KeyNotFound(
                f"{uri} is not on {self.device.info}, which holds the current key.",
                hint="Both keys of a rotation must be on the same device. Check --next and the key file.",
            )
        return open_signer(self.device, uri)

    def public_keys(self, *uris: Pkcs11Uri) -> dict[Pkcs11Uri, PublicKey]:
        """Return the public keys of the URIs that name exactly one key on the device."""
        found = {}
        for uri in uris:
            with suppress(KeyLookupError):
                found[uri] = self.signer(uri).public_key
        return found

    def identity(self, uri: Pkcs11Uri) -> Identity:
        """Return the identity of a key whose certificate is usable now.

        Raises:
            KeyLookupError: the key or its certificate cannot be used.
        """
        name = str(uri)
        if name not in self._identities:
            signer = self.signer(uri)
            certificates = certificates_of(self._profile, self.device, signer)
            require_usable(certificates.certificate(), signer.public_key, self._clock.utc_now())
            self._identities[name] = Identity(self._client, signer, certificates, now=self._clock.now)
        return self._identities[name]

    def shown_certificate(self, uri: Pkcs11Uri) -> Certificate:
        """Return the certificate of a key, expired or not if the device shows it without a login."""
        der = read_public_certificate(key_access(self._profile, uri, self._operator))
        return (
            self.certificate(uri) if der is None else parse_certificates(der, "The certificate of the current key")[0]
        )

    def certificate(self, uri: Pkcs11Uri) -> Certificate:
        """Return the certificate of a key, which is usable now."""
        return self.identity(uri).certificates.certificate()

    def forget(self, uri: Pkcs11Uri) -> None:
        """Forget a key's identity, so that the key is looked up again when it is next needed."""
        self._identities.pop(str(uri), None)

    def retired_identity(self, uri: Pkcs11Uri) -> Identity | None:
        """Return the identity of a key, or None if the key was deleted or its certificate has expired."""
        try:
            return self.identity(uri)
        except KeyLookupError:
            return None

    def retired_certificate(self, uri: Pkcs11Uri) -> Certificate | None:
        """Return the certificate of a key, expired or not, or None if the key or the certificate was deleted.

        The certificate with a key's id may be another key's: devices allow two keys with the same id.
        """
        try:
            signer = self.signer(uri)
            certificate = certificates_of(self._profile, self.device, signer).certificate()
        except KeyLookupError:
            return None
        return certificate if certificate.public_key == signer.public_key else None
