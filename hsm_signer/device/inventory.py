"""What there is: modules, their devices, and the keys and certificates in those. Looks, and changes nothing.

`survey` looks through a module without a login, in a process of its own: one that hangs or crashes costs its own entry
and no other. `examine` looks into the one device a reference means, in this process.

What fails is a fact like any other, for as long as something else can still be said.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import NoReturn, Self

import pkcs11
from pkcs11 import Attribute, Mechanism, MechanismFlag, ObjectClass, TokenFlag, UserType
from pkcs11.types import Object, Session, Slot

from hsm_signer.certificate import Certificate, parse_certificates, require_usable
from hsm_signer.crypto import MINIMUM_BITS, Algorithm, PublicKey
from hsm_signer.device.device import KeyReference, _describe, _find, _Found, _tokens, open_device
from hsm_signer.device.failures import explain_failure
from hsm_signer.device.lane import MOMENT, Slow
from hsm_signer.device.match import DeviceInfo, device_uris, key_uris
from hsm_signer.device.mechanisms import USED, plan, supported
from hsm_signer.device.module import Module, configured_modules, find_module, load_module
from hsm_signer.device.signer import _private_keys, _read, _signing_key
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import CertificateUnusable, DeviceError, DeviceTimeout, HsmSignerError, KeyUnfit

_START = 5.0
"""Seconds a survey may take beside its calls into the module: starting Python and importing."""


@dataclass(frozen=True)
class Problem:
    """Why something could not be learnt, or cannot be used: an error, as a fact."""

    code: str
    message: str
    hint: str | None

    @classmethod
    def of(cls, error: HsmSignerError) -> Self:
        """Return what `error` says."""
        return cls(error.code, error.message, error.hint)


class PinState(StrEnum):
    """What the flags of a device say of its user PIN (PKCS#11 v3.1 section 3.2, CK_TOKEN_INFO)."""

    NOT_NEEDED = "not needed"
    FINE = "fine"
    COUNT_LOW = "count low"
    LAST_TRY = "last try"
    LOCKED = "locked"
    NOT_SET = "not set"


@dataclass(frozen=True)
class MechanismFacts:
    """A mechanism of the device that can sign for us.

    Attributes:
        name: "CKM_SHA256_RSA_PKCS".
        algorithm: that it can sign.
        work: who does what of it: "hashed by the device".
        chosen: whether it is the one we sign `algorithm` with.
    """

    name: str
    algorithm: Algorithm
    work: str
    chosen: bool


@dataclass(frozen=True)
class KeyFacts:
    """A private key. None stands for what the device does not tell.

    Attributes:
        uri: what ``--key`` takes.
        kind: "RSA".
        bits: of the modulus.
        sensitive: CKA_SENSITIVE: never shown in clear.
        extractable: CKA_EXTRACTABLE: it can leave the device, wrapped.
        never_extractable: CKA_NEVER_EXTRACTABLE: it never could.
        local: CKA_LOCAL: it was made on the device.
        always_authenticate: CKA_ALWAYS_AUTHENTICATE: it wants the PIN with each signature.
        problem: why it cannot sign for us, or None.
    """

    uri: str
    label: str
    id: bytes
    kind: str | None
    bits: int | None
    sensitive: bool | None
    extractable: bool | None
    never_extractable: bool | None
    local: bool | None
    always_authenticate: bool | None
    problem: Problem | None


@dataclass(frozen=True)
class CertificateFacts:
    """A certificate.

    Attributes:
        days_left: whole days of its validity left; negative when it is over.
        sha1: the thumbprint in ``x5t``.
        sha256: the thumbprint in ``x5t#S256``.
        key: the URI of the private key it certifies, of those that were seen.
        found_with_key: whether a private key has its CKA_ID, so that it is used with that key unless a file is given.
        problem: why it cannot be parsed, or used with the key that has its CKA_ID; or None.
    """

    label: str
    id: bytes
    subject: str | None
    not_before: datetime | None
    not_after: datetime | None
    days_left: int | None
    sha1: bytes
    sha256: bytes
    key: str | None
    found_with_key: bool
    problem: Problem | None


@dataclass(frozen=True)
class Contents:
    """What a device holds.

    Attributes:
        hidden: whether there may be private keys that were not seen, for want of a login.
    """

    hidden: bool
    keys: tuple[KeyFacts, ...]
    certificates: tuple[CertificateFacts, ...]


@dataclass(frozen=True)
class DeviceFacts:
    """A device.

    Attributes:
        uri: what ``--key`` takes when the device has only one key.
        pad: whether it has a PIN pad of its own.
        mechanisms: those that can sign for us, the best of each algorithm first.
        contents: None where nobody looked.
        problem: why the mechanisms are not known, or None.
    """

    info: DeviceInfo
    uri: str
    pin: PinState
    pad: bool
    mechanisms: tuple[MechanismFacts, ...]
    contents: Contents | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class LibraryFacts:
    """What a module says of itself (PKCS#11 v3.1 section 3.1, CK_INFO)."""

    manufacturer: str
    description: str
    version: tuple[int, int]


@dataclass(frozen=True)
class ModuleFacts:
    """A module and the devices seen through it.

    Attributes:
        name: in p11-kit's configuration, or None.
        library: None when it could not be loaded.
        problem: why it could not be loaded or looked through, or None.
    """

    name: str | None
    path: str
    library: LibraryFacts | None
    devices: tuple[DeviceFacts, ...]
    problem: Problem | None = None


@dataclass(frozen=True)
class ModuleReference:
    """A module to look through.

    Attributes:
        path: the shared library.
        name: in p11-kit's configuration, or None when it was named by its file.
    """

    path: Path
    name: str | None = None


def known_modules(explicit: Path | None) -> list[ModuleReference]:
    """Return the modules of p11-kit's configuration, after `explicit` unless that is one of them."""
    named = [ModuleReference(path, name) for name, path in configured_modules().items()]
    known = {os.path.realpath(module.path) for module in named}
    if explicit is None or os.path.realpath(explicit) in known:
        return named
    return [ModuleReference(explicit), *named]


def survey(
    module: ModuleReference, environment: dict[str, str], timeout: float, slow: Slow | None = None
) -> ModuleFacts:
    """Look through a module in a process of its own. Nobody is logged in. Whatever goes wrong is in the facts.

    Args:
        environment: variables set before the module loads.
        timeout: seconds one call into the module may take. The process is killed some seconds after it.
        slow: shows a person that it takes longer than a moment; or None.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        # -P: whoever can write to the current directory does not choose what is imported.
        with subprocess.Popen(  # noqa: S603  # this Python
            [sys.executable, "-P", "-c", "from hsm_signer.device.inventory import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment, "PYTHONPATH": path},
        ) as process:
            try:
                answer = _communicate(process, pickle.dumps((module, timeout)), timeout + _START, slow, module)
            finally:
                process.kill()
        if process.returncode == 0:
            facts: ModuleFacts = pickle.loads(answer)  # noqa: S301  # from ourselves
            return facts
        raise _died(module, process.returncode)
    except HsmSignerError as error:
        return ModuleFacts(module.name, str(module.path), None, (), Problem.of(error))


def main() -> NoReturn:
    """Survey the module that stdin names, in this process, and write the facts to stdout."""
    # Modules print to stdout as they like.
    facts = os.dup(1)
    os.dup2(2, 1)
    module, timeout = pickle.load(sys.stdin.buffer)  # noqa: S301  # from ourselves
    with open(facts, "wb") as stream:
        pickle.dump(survey_here(module, timeout), stream)
    # Finalizers call C_Finalize, which can hang.
    os._exit(0)


def survey_here(reference: ModuleReference, timeout: float) -> ModuleFacts:
    """Look through a module in this process; else as `survey`."""
    # What has to stand in a URI so that it leads to this module, without --module.
    origin = Pkcs11Uri(module_name=reference.name)
    unknown = ModuleFacts(reference.name, str(reference.path), None, ())
    try:
        path = find_module(None if reference.name else reference.path, origin)
        module = load_module(path, {}, timeout)
        unknown = replace(unknown, path=str(path), library=module.call("asking the module", module_facts, timeout))
    except HsmSignerError as error:
        return replace(unknown, problem=Problem.of(error))
    return unknown
