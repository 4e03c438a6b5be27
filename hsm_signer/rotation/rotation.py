"""From one key to the next without a gap: `rotation_plan` decides each step, here it is done.

    with Rotation(profile, RotationRequest(days=180), report=print) as rotation:
        rotation.run()

There is one login. What was done is on the device, at Entra and in the key file, and nowhere else: a run that was cut
off, by whatever, is gone on with by the next.

After the switch the old key stays registered for a while: other programs may hold assertions that it signed. Nobody
waits for that. The run ends, and a later one takes the remaining steps.
"""

import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Self

from cryptography import x509

from hsm_signer.config.keyfile import KeyEntry, KeyFile, lock_key_file, read_key_file, write_key_file
from hsm_signer.config.profile import Profile
from hsm_signer.credential.certificate_source import certificates_of
from hsm_signer.credential.identity import Identity
from hsm_signer.credential.key_access import key_access
from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.manage.certificates import (
    certificates_of_key,
    delete_certificate,
    read_certificate,
    replace_certificates,
)
from hsm_signer.device.manage.generate import KeySpec, generate_key
from hsm_signer.device.manage.keys import delete_key, key_labels
from hsm_signer.device.match import matches_device
from hsm_signer.device.signer import DeviceSigner, open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.entra.graph import Registration, demands_an_authority
from hsm_signer.errors import (
    CertificateNotFound,
    ConfigError,
    DeviceReadOnly,
    EntraError,
    KeyAmbiguous,
    KeyExists,
    KeyLookupError,
    KeyNotFound,
    KeyUnfit,
)
from hsm_signer.jwt.compact import thumbprints
from hsm_signer.rotation.plan import (
    Observed,
    Step,
    after,
    beside,
    default_grace,
    next_label,
    next_step,
    plan,
    retired_key,
    will_do,
    with_times,
)
from hsm_signer.rotation.registration import Clock, Registrar
from hsm_signer.x509.certificate import Certificate, parse_certificates
from hsm_signer.x509.issuance import DEFAULT_DAYS, create_certificate, parse_subject
from hsm_signer.x509.requirements import require_usable


@dataclass(frozen=True)
class RotationRequest:
    """What is wanted of a rotation.

    Attributes:
        current: the key in use, where there is no key file yet.
        following: a key on the device that is to be the next, in place of one made now.
        bits: of a key that is made; None is as the current one.
        subject: of its certificate (RFC 4514); None is as the current one.
        days: its certificate's validity.
        delete_old: delete the old key and its certificate from the device at the end.
        old_key_id: of the old key's credential, where Graph will not tell.
        propagation: seconds to wait for Entra to take notice of a change.

    Raises:
        ConfigError: there are no keys of that size, or the subject is malformed.
    """

    current: Pkcs11Uri | None = None
    following: Pkcs11Uri | None = None
    bits: int | None = None
    subject: str | None = None
    days: int = DEFAULT_DAYS
    delete_old: bool = False
    old_key_id: str | None = None
    propagation: float = 600.0

    def __post_init__(self) -> None:
        # Before a key is named or made, not when its turn comes.
        if self.bits is not None:
            KeySpec("next", bits=self.bits)
        if self.subject is not None:
            parse_subject(self.subject)


Report = Callable[[Step, str], None]
"""Told of each step when it is done, and of waits: which, and in a sentence what became of it."""


class Rotation:
    """One run of `rotate`. The device is opened and logged in to when it is first needed.

    A context manager: at its end the device is closed, and the next run may begin.

    Args:
        profile: its `key` names the key file.
        request: what is wanted.
        operator: who can be asked and told.
        report: see `Report`.
        clock: tells the time, and lets it pass.

    Attributes:
        file: what the key file says by now.
        grace: seconds for which a key stays registered after the switch to the next one.

    Raises:
        ConfigError: the profile names no key file, or another rotation is under way, or a setting is missing; or the
            old certificate would stay registered for longer than half of the next one's life.
    """

    def __init__(
        self,
        profile: Profile,
        request: RotationRequest,
        operator: Operator = UNATTENDED,
        *,
        report: Report = lambda step, text: None,
        clock: Clock = Clock(),  # noqa: B008  # frozen
    ) -> None:
        self.path = require_key_file(profile)
        self.grace = default_grace(profile.lifetime) if profile.grace is None else profile.grace
        if self.grace > request.days * 86400 / 2:
            raise ConfigError(
                f"The old certificate would stay registered for {self.grace} s, and no other rotation can start before "
                f"then. The new certificate is valid for {request.days} days.",
                hint="Choose a --grace of less than half of the --days.",
            )
        self._profile, self._request, self._operator = profile, request, operator
        self._report, self._clock = report, clock
        self._registrar = Registrar(profile, request.propagation, self._say_waiting, clock)
        self._identities: dict[str, Identity] = {}
        self._step = Step.NAME
        self._unchangeable: DeviceReadOnly | None = None
        with ExitStack() as undo:
            undo.callback(os.close, lock_key_file(self.path))
            self.file = _load(self.path, request.current)
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def plan(self) -> list[Step]:
        """Return the steps that `run` would take, and after a wait a later run, if each succeeds.

        Raises:
            HsmSignerError: the current key cannot be opened, or the next key is the current one.
        """
        return plan(self._first_look())

    def run(self) -> None:
        """Take every step that can be taken now.

        Raises:
            HsmSignerError: a step failed. What was done before it stands, and the current key works.
        """
        observed = self._first_look()
        while (step := next_step(observed)) is not None:
            if step is Step.WAIT:
                self._write(observed.file)
                self._say_what_remains()
                return
            if self._unchangeable is not None and self._would_change_device(step):
                raise self._unchangeable
            self._step = step
            observed = replace(_DOING[step](self, observed), now=self._clock.now())
            self._write(observed.file)

    def _first_look(self) -> Observed:
        """Return what is known at the beginning of a run."""
        now, following = self._clock.now(), self._request.following
        file = with_times(self.file, now, self.grace)
        unfinished = file.next is not None or bool(file.retired)
        observed = Observed(file, not unfinished, delete_old=self._request.delete_old, now=now, grace=self.grace)
        if following is None and next_step(observed) is Step.WAIT:
            return observed  # which nobody needs the device for
        # Without its certificate there is nothing to go on from.
        file = replace(file, current=_noted(file.current, self._certificate(file.current.uri)))
        named = False
        if following is not None and not (file.next and file.next.registered):
            following = beside(following, file.current.uri)
            if file.next is not None:  # begun, and not yet registered
                file = replace(file, next=KeyEntry(following, registered=False))
            else:
                named = not self._is_current(following)
                if not named and not unfinished:
                    raise _not_another(following)
        return self._look(replace(observed, file=file, named=named))

    def _is_current(self, uri: Pkcs11Uri) -> bool:
        current = self.file.current.uri
        found = self._public_keys(uri, current)
        return uri == current or (uri in found and found[uri] == found.get(current))

    def _public_keys(self, *uris: Pkcs11Uri) -> dict[Pkcs11Uri, PublicKey]:
        """Return the public keys of those keys that are on the device, and are one key and not several."""
        found = {}
        for uri in uris:
            with suppress(KeyLookupError):
                found[uri] = self._signer(uri).public_key
        return found

    def _would_change_device(self, step: Step) -> bool:
        makes = step is Step.NAME and self._request.following is None
        return makes or step in (Step.GENERATE, Step.CERTIFY, Step.DELETE)

    def _look(self, observed: Observed) -> Observed:
        """Return what is known, with what the device says of the file's keys by now."""
        current, following, retired = observed.file.current, observed.file.next, observed.file.retired
        keys = self._public_keys(*(key.uri for key in (current, following, *retired) if key is not None))
        observed = replace(observed, keys=keys, has_key=following is not None and following.uri in keys)
        if following is None:
            return observed
        if not observed.has_key:
            with suppress(KeyNotFound, KeyAmbiguous):
                self._signer(following.uri)  # one that is there and cannot be used says so
        if observed.is_current(following):
            raise _not_another(following.uri)
        return replace(observed, has_certificate=observed.has_key and self._has_certificate(following))

    def _has_certificate(self, key: KeyEntry) -> bool:
        signer = self._signer(key.uri)
        try:
            (found,) = parse_certificates(read_certificate(self._device, signer.key.info), "The next key's certificate")
        except (CertificateNotFound, KeyAmbiguous):
            return False
        return found.public_key == signer.public_key and will_do(found, key, self._request.days, self._now)

    def _name(self, observed: Observed) -> Observed:
        current = self.file.current.uri
        if self._request.following is not None:
            uri = beside(self._request.following, current)
        else:
            label = self._signer(current).key.info.label
            label = next_label(label, key_labels(self._device), self._now.strftime("%Y%m%d"))
            uri = replace(current, object=label, id=secrets.token_bytes(4))
        observed = self._look(after(Step.NAME, observed, KeyEntry(uri, registered=False)))
        self._report(Step.NAME, f"The next key is {uri.object or uri}.")
        return observed

    def _generate(self, observed: Observed) -> Observed:
        current = observed.file.current
        uri, old = _following(observed).uri, self._signer(current.uri)
        if self._request.following is not None or uri.id is None or uri.object is None:
            raise KeyNotFound(f"{uri} is not on {self._device.info}.", hint="Check --next.")
        # Beside another key, a URI that leaves out label or id would mean both.
        label, key_id = old.key.info.label or None, old.key.info.id or None
        pinned = replace(current.uri, object=current.uri.object or label, id=current.uri.id or key_id)
        observed = replace(observed, file=replace(observed.file, current=replace(current, uri=pinned)))
        self._write(observed.file)
        bits = self._request.bits or old.public_key.bits
        spec = KeySpec(uri.object, uri.id, bits, always_authenticate=old.key.always_authenticate)
        try:
            generate_key(self._device, spec)
        except KeyExists:
            # Half of it is there, from a run that was cut off; or somebody else took the name.
            return self._name(observed)
        self._report(Step.GENERATE, f"{self._device.info} has made it: RSA, {bits} bits.")
        return after(Step.GENERATE, observed)

    def _certify(self, observed: Observed) -> Observed:
        signer = self._signer(_following(observed).uri)
        if signer.key.info.id == self._signer(self.file.current.uri).key.info.id:
            raise KeyUnfit(
                f"The next key has the id of the current one ({signer.key.info}), and a certificate stored for it "
                "would replace the current key's.",
                hint="Give it an id of its own, or make another key and name it with --next.",
            )
        subject = self._subject()
        der = create_certificate(signer, Algorithm.RS256, subject, self._request.days, self._now)
        replace_certificates(self._device, signer.key.info, der)
        self._report(Step.CERTIFY, f"Its certificate: {subject}, valid for {self._request.days} days.")
        return after(Step.CERTIFY, observed)

    def _register(self, observed: Observed) -> Observed:
        key, current = _following(observed), self.file.current
        identity, prover = self._identity(key.uri), self._identity(current.uri)
        certificate = identity.certificates.certificate()
        self._registrar.authenticate(prover)
        listed = self._registrar.listed()
        # What was found out is written with the step, and need not be found out again without permission to list.
        object_id = self._object_id(listed)
        if listed is not None:
            current = _filed(current, prover.certificates.certificate(), listed.find(prover.certificates.certificate()))
        key_id = None if listed is None else listed.find(certificate)
        if key_id is None:
            try:
                key_id = self._registrar.add(identity, object_id, prover)
            except EntraError as error:
                if not demands_an_authority(error):
                    raise
                raise self._wants_an_authority(error, key.uri) from None
        self._report(Step.REGISTER, f"Entra knows its certificate, thumbprint {certificate.sha1.hex().upper()}.")
        file = replace(observed.file, current=current, object_id=object_id)
        return after(Step.REGISTER, replace(observed, file=file), _filed(key, certificate, key_id))

    def _wants_an_authority(self, refusal: EntraError, uri: Pkcs11Uri) -> EntraError:
        command = self._profile.command_line
        request = ("certificate", "request", "--key", str(uri), "--subject", self._subject())
        error = EntraError(
            refusal.message,
            hint="A policy of this tenant requires a certificate from a trusted CA. Make a request for the next key, "
            "have the CA sign it, store the certificate beside that key, and run rotate again:",
            error=refusal.error,
            correlation_id=refusal.correlation_id,
            trace_id=refusal.trace_id,
        )
        error.commands = (
            command(*request, "--output-file", "next.csr"),
            command("certificate", "import", "--key", str(uri), "--replace", "next.pem"),
        )
        return error

    def _subject(self) -> str:
        """Return the subject of the next certificate (RFC 4514)."""
        current = x509.load_der_x509_certificate(self._certificate(self.file.current.uri).der)
        return self._request.subject or current.subject.rfc4514_string()

    def _prove(self, observed: Observed) -> Observed:
        self._registrar.await_acceptance(self._identity(_following(observed).uri))
        self._report(Step.PROVE, "A token was obtained with it.")
        return after(Step.PROVE, observed)

    def _switch(self, observed: Observed) -> Observed:
        current, old_key_id = observed.file.current, self._request.old_key_id
        if old_key_id not in (None, current.key_id):
            # For the run that needs it, which may be another.
            current = replace(current, key_id=old_key_id, thumbprints={})
        done = after(Step.SWITCH, replace(observed, file=replace(observed.file, current=current)))
        self._write(done.file)  # before it is said
        self._report(Step.SWITCH, f"{self.path} names it: programs that follow the file use it from now on.")
        return self._look(done)

    def _abandon(self, observed: Observed) -> Observed:
        uri = _following(observed).uri
        self._report(Step.ABANDON, f"{uri} is registered, and not whole on the device any more. It is given up.")
        return after(Step.ABANDON, observed)

    def _forget(self, observed: Observed) -> Observed:
        uri = retired_key(Step.FORGET, observed).uri
        self._report(Step.FORGET, f"{self.path} lists {uri} as retired, but it is the current key. It stays in use.")
        return after(Step.FORGET, observed)

    def _unregister(self, observed: Observed) -> Observed:
        old, prover = retired_key(Step.UNREGISTER, observed), self._identity(self.file.current.uri)
        self._registrar.authenticate(prover)
        listed = self._registrar.listed()
        if listed is None:
            self._remove_unlisted(observed, old, prover)
        elif key_id := self._listed_credential(old, listed, prover.certificates.certificate()):
            object_id = self._object_id(listed)
            self._registrar.remove(key_id, object_id, prover, lambda: self._retired_identity(old.uri))
        self._report(Step.UNREGISTER, "Entra does not know the old key any more.")
        return self._look(after(Step.UNREGISTER, observed))

    def _listed_credential(self, old: KeyEntry, listed: Registration, kept: Certificate) -> str | None:
        """Return the id of a retired key's credential, which is never the current key's, whatever the file says."""
        certificate = self._retired_certificate(old.uri)
        key_id = (listed.find(certificate) if certificate else None) or self._request.old_key_id or old.key_id
        return key_id if key_id in listed.key_ids - {listed.find(kept)} else None

    def _remove_unlisted(self, observed: Observed, old: KeyEntry, prover: Identity) -> None:
        """Remove a retired key's credential where Graph does not say which credential is whose."""
        current, kept = observed.file.current, prover.certificates.certificate()
        certificate, identity = self._retired_certificate(old.uri), self._retired_identity(old.uri)
        key_id = self._request.old_key_id or old.key_id
        # The file may be written by hand. An id is certain where this program has noted the certificate with it.
        noted = old.thumbprints if key_id == old.key_id else {}
        certain = bool(noted) and (certificate is None or noted == thumbprints(certificate))
        if key_id in (None, current.key_id) or noted == thumbprints(kept):
            raise self._credential_unknown("The id of the old key's credential is not known", old)
        if not certain and identity is None and key_id != self._request.old_key_id:
            raise self._credential_unknown(f"Nothing shows that the credential {key_id} is the old key's", old)
        object_id = self._object_id(None)
        self._registrar.remove(key_id, object_id, prover, lambda: identity)
        if certain or identity is None:
            return
        restored = self._registrar.restore(prover, object_id, identity)
        if restored is not None:
            current, wrong = _filed(current, kept, restored), replace(old, key_id=None)
            retired = tuple(wrong if each is old else each for each in observed.file.retired)
            self._write(replace(observed.file, current=current, retired=retired))
            mistake = f"The credential {key_id} belonged to the current key, and was registered again at once"
            raise self._credential_unknown(f"{mistake}. The old key's is not known", old)

    def _credential_unknown(self, what: str, old: KeyEntry) -> ConfigError:
        return ConfigError(
            f"{what}, and Graph does not list credentials ({old.uri}).",
            hint=f"Find it with: az ad app credential list --cert --id {self._profile.client_id}  "
            "and run rotate again with --old-key-id.",
        )

    def _delete(self, observed: Observed) -> Observed:
        uri = retired_key(Step.DELETE, observed).uri
        # A file may say that a key is not registered, and be wrong: no key goes before the current one has worked.
        self._registrar.authenticate(self._identity(self.file.current.uri))
        self._identities.pop(str(uri), None)
        with suppress(KeyNotFound):  # a run that was cut off may have deleted it
            key = self._signer(uri).key.info
            # The certificates first: they are found by their key. Another key's may stand beside it.
            for certificate in certificates_of_key(self._device, key):
                delete_certificate(self._device, certificate.der)
            delete_key(self._device, key)
        self._report(Step.DELETE, f"The old key is deleted: {uri.object or uri}.")
        return after(Step.DELETE, observed)

    def _keep(self, observed: Observed) -> Observed:
        uri = retired_key(Step.KEEP, observed).uri
        command = self._profile.command_line("key", "delete", "--certificate", "--key", str(uri))
        self._report(Step.KEEP, f"The old key stays on the device. To delete it: {command}")
        return after(Step.KEEP, observed)

    def _say_what_remains(self) -> None:
        for old in self.file.retired:
            until = datetime.fromtimestamp(old.until or 0, UTC)
            self._report(
                Step.WAIT,
                f"The old key {old.uri.object or old.uri} stays registered until {until:%Y-%m-%d %H:%M:%S} UTC: "
                "programs may hold assertions that it signed. Run rotate again after that.",
            )

    def _write(self, file: KeyFile) -> None:
        if file != self.file:
            write_key_file(self.path, file)
            self.file = file

    @cached_property
    def _device(self) -> Device:
        access = key_access(self._profile, self.file.current.uri, self._operator)
        try:
            device = open_device(replace(access, writable=True))
        except DeviceReadOnly as error:
            # Said before anybody was asked for a PIN; and keys made there by other means can be rolled over.
            self._unchangeable = error
            device = open_device(access)
        return self._undo.enter_context(device)

    def _signer(self, uri: Pkcs11Uri) -> DeviceSigner:
        if not matches_device(uri, self._device.info):
            raise KeyNotFound(
                f"{uri} is not on {self._device.info}, where the current key is.",
                hint="Both keys of a rotation must be on the same device. Check --next and the key file.",
            )
        return open_signer(self._device, uri)

    def _identity(self, uri: Pkcs11Uri) -> Identity:
        name = str(uri)
        if name not in self._identities:
            signer = self._signer(uri)
            certificates = certificates_of(self._profile, self._device, signer)
            require_usable(certificates.certificate(), signer.public_key, self._now)
            self._identities[name] = Identity(self._registrar.client, signer, certificates, now=self._clock.now)
        return self._identities[name]

    def _retired_identity(self, uri: Pkcs11Uri) -> Identity | None:
        """Return the identity of a key, or None where it is gone, or its certificate is over."""
        try:
            return self._identity(uri)
        except KeyLookupError:
            return None

    def _retired_certificate(self, uri: Pkcs11Uri) -> Certificate | None:
        """Return the certificate of a key, over or not; or None where one of them is gone.

        What stands beside the key may be another's: devices let two keys have one id.
        """
        try:
            signer = self._signer(uri)
            certificate = certificates_of(self._profile, self._device, signer).certificate()
        except KeyLookupError:
            return None
        return certificate if certificate.public_key == signer.public_key else None

    def _certificate(self, uri: Pkcs11Uri) -> Certificate:
        return self._identity(uri).certificates.certificate()

    def _object_id(self, listed: Registration | None) -> str:
        return self._registrar.object_id(self._profile.object_id or self.file.object_id, listed)

    def _say_waiting(self) -> None:
        self._report(self._step, "Waiting for Entra to take notice of the change…")

    @property
    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)


_DOING: dict[Step, Callable[[Rotation, Observed], Observed]] = {
    Step.NAME: Rotation._name,
    Step.GENERATE: Rotation._generate,
    Step.CERTIFY: Rotation._certify,
    Step.REGISTER: Rotation._register,
    Step.PROVE: Rotation._prove,
    Step.SWITCH: Rotation._switch,
    Step.ABANDON: Rotation._abandon,
    Step.FORGET: Rotation._forget,
    Step.UNREGISTER: Rotation._unregister,
    Step.DELETE: Rotation._delete,
    Step.KEEP: Rotation._keep,
}


def require_key_file(profile: Profile) -> Path:
    """Return the key file of a profile.

    Raises:
        ConfigError: it has none, or names a certificate, which would stay behind when the key changes.
    """
    if profile.key_file is None:
        raise ConfigError(
            "rotate replaces the key that a profile uses, so the profile must name it by a file that can be replaced.",
            hint='Write key = "file:PATH" in the profile, and begin with: rotate --current URI',
        )
    if profile.certificate is not None:
        raise ConfigError(
            "The profile names a certificate file, which would not follow the key.",
            hint="Leave certificate out: the certificate is stored on the device, beside its key.",
        )
    return profile.key_file


def _following(observed: Observed) -> KeyEntry:
    assert observed.file.next is not None  # noqa: S101  # the plan sees to it
    return observed.file.next


def _filed(key: KeyEntry, certificate: Certificate, key_id: str | None) -> KeyEntry:
    """Return a key that is registered, with its credential and the certificate that this is known to be of."""
    return replace(key, registered=True, key_id=key_id, thumbprints=thumbprints(certificate))


def _noted(key: KeyEntry, certificate: Certificate) -> KeyEntry:
    """Return a key with the certificate that it has by now, for programs that look whether theirs is still in use."""
    if key.thumbprints == thumbprints(certificate) or (key.key_id is not None and not key.thumbprints):
        return key
    return replace(key, key_id=None, thumbprints=thumbprints(certificate))  # an id was another certificate's


def _not_another(uri: Pkcs11Uri) -> ConfigError:
    return ConfigError(
        f"The next key, {uri}, is the current key. A rotation needs a different one.",
        hint='Name another key with --next, or leave it out. If the key file has "next", remove it.',
    )


def _load(path: Path, current: Pkcs11Uri | None) -> KeyFile:
    if path.exists():
        return read_key_file(path)
    if current is None:
        raise ConfigError(
            f"The key file {path} does not exist, so it is not known which key is in use.",
            hint="Begin with: rotate --current URI",
        )
    return KeyFile(KeyEntry(current))
