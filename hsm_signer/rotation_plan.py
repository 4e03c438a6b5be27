"""What a rotation does next, from what is seen on the device and written in the key file; pure.

The order keeps one promise: at every moment the current key is registered and works. The next key becomes current only
after a token was obtained with it, and only then is the old one taken away. A run that was cut off anywhere is gone on
with by looking again.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from hsm_signer.certificate import Certificate, certificate_details
from hsm_signer.keyfile import FiledKey, KeyFile


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
    UNREGISTER = "unregister"
    DELETE = "delete"
    """Delete the oldest retired key from the device."""
    KEEP = "keep"
    """Leave it there, and forget it."""


@dataclass(frozen=True)
class Observed:
    """What is known when a step is decided.

    Attributes:
        file: what the key file says.
        wanted: a new key is wanted in this run, and none has been begun.
        has_key: the next key is on the device.
        has_certificate: a certificate that will do is beside it.
        proven: a token was obtained with it in this run.
        delete_old: retired keys are to be deleted.
    """

    file: KeyFile
    wanted: bool
    has_key: bool = False
    has_certificate: bool = False
    proven: bool = False
    delete_old: bool = False


def next_step(observed: Observed) -> Step | None:
    """Return what to do next, or None when all is done."""
    following, retired = observed.file.next, observed.file.retired
    if following is not None:
        complete = observed.has_key and observed.has_certificate
        if following.registered:
            if not complete:
                return Step.ABANDON
            return Step.SWITCH if observed.proven else Step.PROVE
        if complete:
            return Step.REGISTER
        return Step.CERTIFY if observed.has_key else Step.GENERATE
    if retired:
        if retired[0].registered:
            return Step.UNREGISTER
        return Step.DELETE if observed.delete_old else Step.KEEP
    return Step.NAME if observed.wanted else None


def after(step: Step, observed: Observed, key: FiledKey | None = None) -> Observed:
    """Return what is known once a step was done.

    Args:
        key: for NAME the next key, for REGISTER the same with what Entra calls it; None for a prediction.
    """
    file = observed.file
    following = file.next or FiledKey(file.current.uri, registered=False)
    match step:
        case Step.NAME:
            return replace(observed, file=replace(file, next=key or following), wanted=False)
        case Step.GENERATE:
            return replace(observed, has_key=True)
        case Step.CERTIFY:
            return replace(observed, has_certificate=True)
        case Step.REGISTER:
            return replace(observed, file=replace(file, next=key or replace(following, registered=True)))
        case Step.PROVE:
            return replace(observed, proven=True)
        case Step.SWITCH:
            retired = (*file.retired, file.current)
            return replace(observed, file=replace(file, current=following, next=None, retired=retired))
        case Step.ABANDON:
            given_up = replace(file, next=None, retired=(*file.retired, following))
            return Observed(given_up, wanted=True, delete_old=observed.delete_old)
        case Step.UNREGISTER:
            oldest = replace(file.retired[0], registered=False)
            return replace(observed, file=replace(file, retired=(oldest, *file.retired[1:])))
        case Step.DELETE | Step.KEEP:
            return replace(observed, file=replace(file, retired=file.retired[1:]))


def plan(observed: Observed) -> list[Step]:
    """Return every step from here to the end, if each succeeds."""
    steps = []
    while (step := next_step(observed)) is not None:
        steps.append(step)
        observed = after(step, observed)
    return steps


def will_do(certificate: Certificate, key: FiledKey, days: int, now: datetime) -> bool:
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
