"""What a rotation does next, from what is seen on the device and written in the key file; pure.

The order keeps one promise: at every moment the current key is registered and works. The next key becomes current only
after a token was obtained with it, and only then is the old one taken away. A run that was cut off anywhere is gone on
with by looking again.
"""

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
_NOT_NAMED_YET = Pkcs11Uri(vendor_path=(("x-next", ""),))  # where a key is only predicted; no other key has it


class Step(StrEnum):
    """One thing to do. After each the key file is written, where it changed."""

    NAME = "name"
    """Write down what the next key will be called: what is made afterwards is found again."""
    GENERATE = "generate"
    CERTIFY = "certify"
    REGISTER = "register"
    PROVE = "prove"
    """Get a token with the next key."""
    SWITCH = "switch"
    """Let the next key be the current one."""
    ABANDON = "abandon"
    """Give the next key up: it, or its certificate, was taken from the device after it was registered."""
    FORGET = "forget"
    """Drop a retired key from the key file and leave it alone: it is the current key, perhaps under another name."""
    WAIT = "wait"
    """Nothing can be done before a retired key's time is over. The run ends here, and a later one goes on."""
    UNREGISTER = "unregister"
    DELETE = "delete"
    """Delete a retired key from the device."""
    KEEP = "keep"
    """Leave it there, and forget it."""


@dataclass(frozen=True)
class Observed:
    """What is known when a step is decided.

    Attributes:
        file: what the key file says.
        wanted: a new key is wanted in this run, and none has been begun.
        named: this run was told which key is to be the next, and that comes before what is left of the last rotation.
        keys: the public keys of those of the file's keys that are on the device. Only they tell one key from another:
            the same key has many URIs.
        has_key: the next key is on the device.
        has_certificate: a certificate that will do is beside it.
        proven: a token was obtained with it in this run.
        delete_old: retired keys are to be deleted.
        now: epoch seconds.
        grace: seconds for which a key stays registered after the switch to the next one.
    """

    file: KeyFile
    wanted: bool
    named: bool = False
    keys: Mapping[Pkcs11Uri, PublicKey] = field(default_factory=dict)
    has_key: bool = False
    has_certificate: bool = False
    proven: bool = False
    delete_old: bool = False
    now: float = 0
    grace: float = 0

    def is_current(self, key: KeyEntry) -> bool:
        """Return whether a key of the file is the current key."""
        current = self.file.current.uri
        return key.uri == current or (key.uri in self.keys and self.keys[key.uri] == self.keys.get(current))


def next_step(observed: Observed) -> Step | None:
    """Return what to do next, or None when all is done."""
    following, retired = observed.file.next, observed.file.retired
    if any(map(observed.is_current, retired)):
        return Step.FORGET
    if following is not None:
        complete = observed.has_key and observed.has_certificate
        if following.registered:
            if not complete:
                return Step.ABANDON
            return Step.SWITCH if observed.proven else Step.PROVE
        if complete:
            return Step.REGISTER
        return Step.CERTIFY if observed.has_key else Step.GENERATE
    if observed.named:
        return Step.NAME
    if old := next(_whose_time_is_over(observed), None):
        if old.registered:
            return Step.UNREGISTER
        return Step.DELETE if observed.delete_old or old.delete else Step.KEEP
    if observed.wanted:
        return Step.NAME
    return Step.WAIT if retired else None


def next_key(observed: Observed) -> KeyEntry:
    """Return the next key, for a step that needs one."""
    assert observed.file.next is not None  # noqa: S101  # next_step returns such steps only with a next key
    return observed.file.next


def retired_key(step: Step, observed: Observed) -> KeyEntry:
    """Return the retired key that a step is about."""
    if step is Step.FORGET:
        return next(filter(observed.is_current, observed.file.retired))
    return next(_whose_time_is_over(observed))


def _whose_time_is_over(observed: Observed) -> Iterator[KeyEntry]:
    return (key for key in observed.file.retired if not key.registered or (key.until or 0) <= observed.now)


def default_grace(lifetime: int) -> int:
    """Return for how many seconds after the switch somebody may still hold an assertion by the old key.

    Args:
        lifetime: the longest that is configured for assertions; those in a file live for an hour unless told otherwise.
    """
    return max(lifetime, FILE_LIFETIME) + KEPT_BY_READERS


def with_times(file: KeyFile, now: float, grace: float) -> KeyFile:
    """Return the file with a time for each retired key. Nobody knows since when one without is retired: since now.

    Args:
        grace: seconds; with 0 the time of every key is over.
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
    """Return what is known once a step was done.

    Args:
        key: for NAME the next key, for REGISTER the same with what Entra calls it; None for a prediction.
    """
    file = observed.file
    following = file.next or KeyEntry(_NOT_NAMED_YET, registered=False)

    def with_retired(change: Callable[[KeyEntry], tuple[KeyEntry, ...]]) -> Observed:
        """Return what is known once the retired key that the step is about was replaced by others."""
        about = retired_key(step, observed)
        changed = tuple(new for each in file.retired for new in (change(each) if each is about else (each,)))
        return replace(observed, file=replace(file, retired=changed))

    match step:
        case Step.NAME:
            return replace(observed, file=replace(file, next=key or following), wanted=False, named=False)
        case Step.GENERATE:
            return replace(observed, has_key=True)
        case Step.CERTIFY:
            return replace(observed, has_certificate=True)
        case Step.REGISTER:
            return replace(observed, file=replace(file, next=key or replace(following, registered=True)))
        case Step.PROVE:
            return replace(observed, proven=True)
        case Step.SWITCH:
            # It was in use, whatever a file that somebody wrote says of it.
            until = int(observed.now + observed.grace)
            old = replace(file.current, registered=True, until=until, delete=observed.delete_old)
            return replace(observed, file=replace(file, current=following, next=None, retired=(*file.retired, old)))
        case Step.ABANDON:
            # Nobody holds an assertion by it.
            given_up = replace(following, until=int(observed.now), delete=observed.delete_old)
            file = replace(file, next=None, retired=(*file.retired, given_up))
            return replace(observed, file=file, wanted=True, has_key=False, has_certificate=False, proven=False)
        case Step.WAIT:
            return replace(observed, now=min(key.until or 0 for key in file.retired))
        case Step.UNREGISTER:
            return with_retired(lambda old: (replace(old, registered=False),))
        case Step.DELETE | Step.KEEP | Step.FORGET:
            return with_retired(lambda old: ())


def as_registered(key: KeyEntry, certificate: Certificate, key_id: str | None) -> KeyEntry:
    """Return a key as registered, with its credential's id and the thumbprints of that credential's certificate."""
    return replace(key, registered=True, key_id=key_id, thumbprints=thumbprints(certificate))


def plan(observed: Observed) -> list[Step]:
    """Return every step from here to the end, if each succeeds."""
    steps = []
    while (step := next_step(observed)) is not None:
        steps.append(step)
        observed = after(step, observed)
    return steps


def beside(uri: Pkcs11Uri, current: Pkcs11Uri) -> Pkcs11Uri:
    """Return the URI of a key on the current key's device, with what it leaves out about the way to that device.

    Programs will find the key by it, and so it must say as much as the current key's.
    """
    own = {*_OF_A_KEY, *(_OF_A_MODULE if uri.module_name or uri.module_path else ())}
    left_out = [each.name for each in fields(uri) if each.name not in own and getattr(uri, each.name) in (None, ())]
    return replace(uri, **{name: getattr(current, name) for name in left_out})


def will_do(certificate: Certificate, key: KeyEntry, days: int, now: datetime) -> bool:
    """Tell whether the certificate beside the next key is one to go on with.

    Args:
        days: of validity that are asked for.
        now: timezone-aware.
    """
    if now > certificate.not_after:
        return False
    # One of ours that is valid for longer than is now asked for was refused by a policy, most likely.
    ours = certificate_details(certificate).issuer == certificate.subject
    return key.registered or not ours or (certificate.not_after - certificate.not_before).days <= days


def next_label(current: str, taken: frozenset[str], today: str) -> str:
    """Return a label for the next key: that of the current one with the date, and a number where that is taken.

    Args:
        today: as YYYYMMDD.
    """
    stem = re.sub(r"-\d{8}(-\d+)?\Z", "", current) or "key"
    label, number = f"{stem}-{today}", 1
    while label in taken:
        number += 1
        label = f"{stem}-{today}-{number}"
    return label
