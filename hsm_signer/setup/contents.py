"""The device that is set up, open, and the key and certificate on it: found, made or explained."""

import dataclasses
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hsm_signer.config.profile import Profile
from hsm_signer.credential.key_access import key_access
from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess, Operator
from hsm_signer.device.piv import is_piv
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import CertificateUnusable, DeviceError, DeviceReadOnly, KeyNotFound
from hsm_signer.setup import advice
from hsm_signer.setup.devices import Candidate
from hsm_signer.setup.guide import Guide
from hsm_signer.setup.keys import KeyOption, matching_keys, names_key, no_such_key, usable_keys
from hsm_signer.x509.certificate import Certificate, parse_certificates, select_certificate
from hsm_signer.x509.issuance import create_certificate
from hsm_signer.x509.requirements import require_usable

if TYPE_CHECKING:
    from hsm_signer.device.device import Device
    from hsm_signer.device.inventory.facts import Contents

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wishes:
    """What the options say of a key and a certificate that may have to be made.

    Attributes:
        key: the URI that was given.
        label: of the key: one that has it is used, else it is made.
        default_label: of a key that is made, if no label was given.
        subject: of the certificate, as RFC 4514 writes it; None: the label of the key.
        bits: of the key.
        days: how long the certificate is valid.
    """

    key: Pkcs11Uri | None
    label: str | None
    default_label: str
    subject: str | None
    bits: int
    days: int

    @property
    def subject_or_default(self) -> str:
        return self.subject or f"CN={self.label or self.default_label}"


class LookAgain(Exception):
    """Somebody has changed the device with another program. It may even have another name now."""


class OpenDevice:
    """A device to set up. It is opened when its key is looked for, and stays open until `close`.

    Args:
        candidate: which device.
        profile: how it is opened; its variables are those that the module needs.
        operator: who types the PIN.
        guide: answers questions.
        now: the clock, timezone-aware.
    """

    def __init__(
        self,
        candidate: Candidate,
        profile: Profile,
        operator: Operator,
        guide: Guide,
        now: Callable[[], datetime],
    ) -> None:
        self.candidate = candidate
        self._access: KeyAccess = key_access(profile, candidate.uri, operator)
        self._guide = guide
        self._now = now
        self._resources = ExitStack()
        self._device: Device | None = None

    def close(self) -> None:
        """Log out."""
        self._resources.close()
        self._device = None

    @property
    def device(self) -> "Device":
        """The device, which the first use opens. It can be changed if a PIN is enough for that."""
        from hsm_signer.device.device import open_device

        if self._device is None:
            try:
                opened = open_device(dataclasses.replace(self._access, writable=True))
            except DeviceReadOnly:
                opened = open_device(self._access)
            self._device = self._resources.enter_context(opened)
        return self._device

    @property
    def can_be_changed(self) -> bool:
        """Whether a key or certificate can be stored with the PIN."""
        from hsm_signer.device.failures import require_changeable
        from hsm_signer.device.locate import find_device

        try:
            require_changeable(self.candidate.device.info, find_device(self.device.module, self._access).flags)
        except DeviceReadOnly:
            return False
        return True

    def find_or_make_key(self, wishes: Wishes) -> KeyOption:
        """Return the key to use.

        Raises:
            KeyNotFound: there is none, and none can be made.
            LookAgain: somebody has made one. The device is to be looked for again.
            HsmSignerError: the device failed, or the login did.
        """
        info = self.candidate.device.info
        if is_piv(info):
            self._require_piv_key(wishes)
        while True:
            contents = self._contents()
            usable = usable_keys(contents)
            wanted = wishes.key if names_key(wishes.key) else None
            found = matching_keys(usable, wanted, wishes.label)
            if found:
                return self._choose(found)
            if wanted is not None:
                raise no_such_key(usable, contents, wanted, self.candidate.name)
            if self.can_be_changed:
                self._make_key(wishes)
            elif is_piv(info):
                self._advise(advice.piv_key(info, wishes.subject_or_default))
            else:
                raise self._no_key("it is write-protected")

    def certificate_of(self, option: KeyOption) -> Certificate | None:
        """Return the certificate that the device holds for a key, if it can be used.

        Raises:
            CertificateUnusable: there is one, and it cannot be used.
        """
        from hsm_signer.device.manage.certificates import read_certificate
        from hsm_signer.device.signer import open_signer

        if option.certificate is None:
            return None
        signer = open_signer(self.device, Pkcs11Uri.parse(option.key.uri))
        der = read_certificate(self.device, signer.key.info)
        certificate = parse_certificates(der, f"The certificate on {self.candidate.name}")[0]
        require_usable(certificate, signer.public_key, self._now())
        return certificate

    def certificate_in(self, file: Path, option: KeyOption) -> Certificate:
        """Return the certificate of a key that a file holds.

        Raises:
            CertificateUnusable, CertificateMismatch: it cannot be used.
            OSError: the file cannot be read.
        """
        from hsm_signer.device.signer import open_signer

        signer = open_signer(self.device, Pkcs11Uri.parse(option.key.uri))
        certificate = select_certificate(parse_certificates(file.read_bytes(), str(file)), signer.public_key, str(file))
        if certificate.is_attestation:
            raise CertificateUnusable(
                f"{file} holds only the device's attestation certificate, which cannot be used to sign in.",
                hint="Omit --certificate: then init makes one.",
            )
        require_usable(certificate, signer.public_key, self._now())
        return certificate

    def make_certificate(self, option: KeyOption, subject: str, days: int) -> Certificate:
        """Have the key sign a certificate for itself. Nothing is stored."""
        from hsm_signer.device.signer import open_signer

        signer = open_signer(self.device, Pkcs11Uri.parse(option.key.uri))
        der = create_certificate(signer, Algorithm.RS256, subject, days, self._now())
        return parse_certificates(der, "The new certificate")[0]

    def store_certificate(self, option: KeyOption, certificate: Certificate) -> bool:
        """Store a certificate beside its key. Return whether the device did: then it is the only one there."""
        from hsm_signer.device.manage.certificates import replace_certificates
        from hsm_signer.device.signer import open_signer

        signer = open_signer(self.device, Pkcs11Uri.parse(option.key.uri))
        if not signer.key.info.id or not self.can_be_changed:
            return False
        try:
            replace_certificates(self.device, signer.key.info, certificate.der)
        except DeviceError as error:
            logger.info("%s", error.message)
            return False
        return True

    def _contents(self) -> "Contents":
        from hsm_signer.device.inventory.inspect import examine_open

        contents = examine_open(self.device, self._access, self._now()).devices[0].contents
        assert contents is not None  # noqa: S101  # it was looked into
        return contents

    def _choose(self, found: list[KeyOption]) -> KeyOption:
        index = 0
        if len(found) > 1:
            # A script takes the one key that is ready, and no other.
            clear = 0 if found[0].is_ready and not found[1].is_ready else None
            index = self._guide.choose("Which key?", [str(each) for each in found], option="--key URI", default=clear)
        self._guide.tell(f"Key: {found[index]}")
        return found[index]

    def _make_key(self, wishes: Wishes) -> None:
        from hsm_signer.device.manage.generate import KeySpec, generate_key

        label = wishes.label or wishes.default_label
        question = f"{self.candidate.name} has no key that Entra can use. Make one?"
        if wishes.label is None and not self._guide.confirm(question, option="--label NAME"):
            raise self._no_key("none was made")
        try:
            generate_key(self.device, KeySpec(label, bits=wishes.bits))
        except DeviceError as error:
            if not advice.is_tpm(self.candidate.device.info, self.candidate.module):
                raise
            logger.info("%s", error.message)
            self._advise(advice.tpm_key(self.candidate.device.info, label))
        else:
            self._guide.tell(f"Generated the key {label!r}: RSA {wishes.bits}. It cannot leave the device.")

    def _require_piv_key(self, wishes: Wishes) -> None:
        """Have a key made on a PIV card before the PIN is asked for: empty slots are seen without it."""
        from hsm_signer.device.inventory.inspect import examine

        contents = examine(self._access, self._now(), login=False).devices[0].contents
        assert contents is not None  # noqa: S101  # it was looked into
        # A key that the card attests is there, even if only a login shows it.
        if not contents.keys and all(each.id == advice.ATTESTATION_KEY for each in contents.certificates):
            self._advise(advice.piv_key(self.candidate.device.info, wishes.subject_or_default))

    def _advise(self, what: advice.Advice) -> NoReturn:
        from hsm_signer.device.locate import load

        self.close()
        if not self._guide.wait_for_person(what.instruction, what.commands):
            raise self._no_key("another tool has to make it", what.commands)
        # OpenSC remembers what was on the card.
        load(self._access).reinitialize(self._access.timeout, self._access.operator.slow)
        raise LookAgain

    def _no_key(self, why: str, commands: tuple[str, ...] = ()) -> KeyNotFound:
        return KeyNotFound(
            f"{self.candidate.name} has no key that Entra can use, and {why}.",
            hint=f"Make an RSA key of at least 2048 bits, then run the command again{':' if commands else '.'}",
            commands=commands,
        )
