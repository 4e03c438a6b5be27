"""Decide the next step of a rotation from the device and the key file; pure.

The order of the steps guarantees that the current key is always registered and works. The next key becomes the current
key only after a token was obtained with it, and only then is the old key removed. After an interruption, the next run
reads everything again and continues.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum

from hsm_signer.config.keyfile import KeyEntry, KeyFile
from hsm_signer.crypto import PublicKey
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.jwt.assertion import FILE_LIFETIME, KEPT_BY_READERS
from hsm_signer.jwt.compact import thumbprints
from hsm_signer.x509.certificate import Certificate, certificate_details

_OF_A_KEY = ("object", "id", "type", "pin_value")
_OF_A_MODULE = ("module_name", "module_path")
_NOT_NAMED_YET = Pkcs11Uri(vendor_path=(("x-next", ""),))  # of a predicted key; no other key has this URI


class Step(StrEnum):
    """One step of a rotation. After each step the key file is written, if it changed."""

    ADOPT = "adopt"
    """Write the current key into a new key file, and nothing else."""
    NAME = "name"
    """Write the label and id of the next key into the key file, so that a later run finds the key."""
    GENERATE = "generate"
    CERTIFY = "certify"
    REGISTER = "register"
    PROVE = "prove"
    """Get a token with the next key."""
    SWITCH = "switch"
    """Make the next key the current one."""
    ABANDON = "abandon"
    """Give up the next key: it or its certificate was deleted from the device after it was registered."""
    CANCEL = "cancel"
    """Give up the next key because the caller says so. What was done for it is undone in the steps after that."""
    FORGET = "forget"
    """Only remove a retired key from the key file: it is the current key, perhaps under another URI."""
    WAIT = "wait"
    """A retired key must stay registered for some time. The run ends here, and a later one continues."""
    UNREGISTER = "unregister"
    """Remove a retired key's certificate from Entra."""
    DELETE = "delete"
    """Delete a retired key from the device."""
    KEEP = "keep"
    """Leave a retired key on the device, and remove it from the key file."""


_CHANGES = frozenset({Step.GENERATE, Step.CERTIFY, Step.DELETE})


@dataclass(frozen=True)
class Observed:
    """What is known when the next step is decided.

    Attributes:
        file: the content of the key file.
        start: this run starts a rotation, because none is unfinished and one is due.
        named: the caller named the next key. The switch to it comes before the remaining steps of the last rotation.
        keys: the public keys of the file's keys that are on the device. We compare keys by them, because one key can
            have many URIs.
        has_key: the next key, or the one that the caller named, is on the device.
        has_certificate: the device holds a certificate for it that can be used.
        proven: a token was obtained with it in this run.
        delete_old: retired keys are deleted from the device.
        now: epoch seconds.
        grace: seconds for which a key stays registered after the switch to the next one.
        writable: the PIN allows changing the device.
        unwritten: there is no key file yet.
        cancel: the caller gives up the rotation that was begun.
        adopt: the caller only wants a key file that names the current key.
        days_left: whole days until the current certificate expires, if that is why no rotation starts; else None.
    """

    file: KeyFile
    start: bool
    named: bool = False
    keys: Mapping[Pkcs11Uri, PublicKey] = field(default_factory=dict)
    has_key: bool = False
    has_certificate: bool = False
    proven: bool = False
    delete_old: bool = False
    now: float = 0
    grace: float = 0
    writable: bool = True
    unwritten: bool = False
    cancel: bool = False
    adopt: bool = False
    days_left: int | None = None

    def is_current(self, key: KeyEntry) -> bool:
        """Return whether a key of the file is the current key."""
        current = self.file.current.uri
        return key.uri == current or (key.uri in self.keys and self.keys[key.uri] == self.keys.get(current))


def next_step(observed: Observed) -> Step | None:
    """Return what to do next, or None if nothing is left to do."""
    coming, retired = observed.file.next, observed.file.retired
    if observed.adopt:
        return Step.ADOPT if observed.unwritten else None
    if any(map(observed.is_current, retired)):
        return Step.FORGET
    if coming is not None and observed.cancel:
        return Step.CANCEL
    if coming is not None:
        complete = observed.has_key and observed.has_certificate
        if coming.registered:
            if not complete:
                return Step.ABANDON
            return Step.SWITCH if observed.proven else Step.PROVE
        if complete:
            return Step.REGISTER
        return Step.CERTIFY if observed.has_key else Step.GENERATE
    if observed.named:
        return Step.NAME
    if old := next(_removable(observed), None):
        if old.registered:
            return Step.UNREGISTER
        # The caller of an earlier run may have asked for what this device does not allow.
        return Step.DELETE if observed.delete_old or (old.delete and observed.writable) else Step.KEEP
    if observed.start:
        return Step.NAME
    if retired:
        return Step.WAIT
    return Step.ADOPT if observed.unwritten else None


def next_key(observed: Observed) -> KeyEntry:
    """Return the next key, for a step that needs one."""
    assert observed.file.next is not None  # noqa: S101  # next_step returns such steps only with a next key
    return observed.file.next


def retired_key(step: Step, observed: Observed) -> KeyEntry:
    """Return the retired key that a step is about."""
    if step is Step.FORGET:
        return next(filter(observed.is_current, observed.file.retired))
    return next(_removable(observed))


def _removable(observed: Observed) -> Iterator[KeyEntry]:
    return (key for key in observed.file.retired if not key.registered or (key.until or 0) <= observed.now)


def days_left(certificate: Certificate, now: datetime) -> int:
    """Return for how many whole days a certificate is still valid; negative if it has expired.

    Args:
        now: timezone-aware.
    """
    return (certificate.not_after - now).days


def is_due(days: int, warn_days: int) -> bool:
    """Return whether a certificate must be replaced now.

    Args:
        days: whole days until it expires.
        warn_days: it is due this many days before that.
    """
    return days < warn_days


def default_grace(lifetime: int) -> int:
    """Return for how many seconds after the switch programs may still hold an assertion that the old key signed.

    Args:
        lifetime: configured lifetime of assertions, in seconds. For an assertion file, the default is one hour.
    """
    return max(lifetime, FILE_LIFETIME) + KEPT_BY_READERS


def with_until(file: KeyFile, now: float, grace: float) -> KeyFile:
    """Return the file with an `until` for each retired key. For a key without one, the grace period starts now.

    Args:
        grace: seconds; 0 means that every key can be removed now.
    """
    until = int(now + grace)
    return replace(
        file,
        retired=tuple(
            replace(key, until=until if key.until is None or not grace else key.until) if key.registered else key
            for key in file.retired
        ),
    )


def after(step: Step, observed: Observed, key: KeyEntry | None = None) -> Observed:
    """Return what is known after a step.

    Args:
        key: for NAME the next key, for REGISTER the registered key; None to predict the step.
    """
    file = observed.file
    coming = file.next or KeyEntry(_NOT_NAMED_YET, registered=False)

    def with_retired(change: Callable[[KeyEntry], tuple[KeyEntry, ...]]) -> Observed:
        """Return what is known after the retired key of this step was replaced."""
        about = retired_key(step, observed)
        changed = tuple(new for each in file.retired for new in (change(each) if each is about else (each,)))
        return replace(observed, file=replace(file, retired=changed))

    match step:
        case Step.ADOPT:
            return replace(observed, unwritten=False)
        case Step.NAME:
            file = replace(file, next=key or coming)
            return replace(observed, file=file, start=False, named=False, unwritten=False)
        case Step.GENERATE:
            return replace(observed, has_key=True)
        case Step.CERTIFY:
            return replace(observed, has_certificate=True)
        case Step.REGISTER:
            return replace(observed, file=replace(file, next=key or replace(coming, registered=True)))
        case Step.PROVE:
            return replace(observed, proven=True)
        case Step.SWITCH:
            # The current key was in use, so it is registered, even if a hand-written file does not say so.
            until = int(observed.now + observed.grace)
            old = replace(file.current, registered=True, until=until, delete=observed.delete_old)
            return replace(observed, file=replace(file, current=coming, next=None, retired=(*file.retired, old)))
        case Step.ABANDON:
            # No program holds an assertion that it signed.
            given_up = replace(coming, until=int(observed.now), delete=observed.delete_old)
            file = replace(file, next=None, retired=(*file.retired, given_up))
            return replace(observed, file=file, start=True, has_key=False, has_certificate=False, proven=False)
        case Step.CANCEL:
            # A run that was interrupted may have registered the certificate without writing that down.
            registered = coming.registered or observed.has_certificate
            given_up = replace(coming, registered=registered, until=int(observed.now), delete=observed.delete_old)
            anything = registered or observed.has_key
            file = replace(file, next=None, retired=(*file.retired, given_up) if anything else file.retired)
            # Of the keys in the file, only this one is deleted because the caller asks for it now.
            return replace(observed, file=file, has_key=False, has_certificate=False, delete_old=False)
        case Step.WAIT:
            return replace(observed, now=min(key.until or 0 for key in file.retired))
        case Step.UNREGISTER:
            return with_retired(lambda old: (replace(old, registered=False),))
        case Step.DELETE | Step.KEEP | Step.FORGET:
            return with_retired(lambda old: ())


def as_registered(key: KeyEntry, certificate: Certificate, key_id: str | None) -> KeyEntry:
    """Return a key as registered, with the ID of its key credential and the thumbprints of its certificate."""
    return replace(key, registered=True, key_id=key_id, thumbprints=thumbprints(certificate))


def plan(observed: Observed) -> list[Step]:
    """Return all remaining steps, if each succeeds."""
    steps = []
    while (step := next_step(observed)) is not None:
        steps.append(step)
        observed = after(step, observed)
    return steps


def first_change(observed: Observed) -> Step | None:
    """Return the first step that changes the device; None if there is none, or if the next key is given up before."""
    steps = itertools.takewhile(lambda step: step is not Step.ABANDON, plan(observed))
    return next((step for step in steps if step in _CHANGES), None)


def complete_uri(uri: Pkcs11Uri, current: Pkcs11Uri) -> Pkcs11Uri:
    """Return the URI of a key on the current key's device, with that key's device and module attributes added.

    Programs find the key by this URI, so it must have the same device attributes as the current key's URI.
    """
    own = {*_OF_A_KEY, *(_OF_A_MODULE if uri.module_name or uri.module_path else ())}
    left_out = [each.name for each in fields(uri) if each.name not in own and getattr(uri, each.name) in (None, ())]
    return replace(uri, **{name: getattr(current, name) for name in left_out})


def certificate_fits(certificate: Certificate, key: KeyEntry, days: int, now: datetime) -> bool:
    """Return whether a certificate stored for the next key can be used. If not, a new one must be created.

    Args:
        days: the validity that the caller asks for.
        now: the current time, timezone-aware.
    """
    if now > certificate.not_after:
        return False
    # Our own certificate, valid for longer than the caller asks for: most likely, a policy refused it.
    ours = certificate_details(certificate).issuer == certificate.subject
    return key.registered or not ours or (certificate.not_after - certificate.not_before).days <= days


def next_label(current: str, taken: frozenset[str], today: str) -> str:
    """Return a label for the next key: the current one with the date, and a number if that label is taken.

    Args:
        today: as YYYYMMDD.
    """
    stem = re.sub(r"-\d{8}(-\d+)?\Z", "", current) or "key"
    label, number = f"{stem}-{today}", 1
    while label in taken:
        number += 1
        label = f"{stem}-{today}-{number}"
    return label
