"""openCryptoki's soft token: a library, its daemon pkcsslotd, and files and shared memory between them.

Their paths are fixed, so the tests need private ones: `command` runs a program in new namespaces for mounts and
System V shared memory (namespaces(7)), where they are empty. The stack is created only there.

Debian packages: opencryptoki and libopencryptoki0. It requires root: the library serves only root and the group pkcs11,
and for an ordinary user in such namespaces the files of the system's root belong to nobody, so that hsm-signer refuses
to load the module.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.manage.certificates import store_certificate
from hsm_signer.device.manage.generate import KeySpec, generate_key
from hsm_signer.device.module_search import find_module
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.x509.issuance import create_certificate

from . import StackKey

INSIDE = Path("/etc/opencryptoki/of-the-tests")
"""A file that is there in such namespaces only."""

_LABEL = "opencryptoki tests"
_CONFIGURATION = Path("/etc/opencryptoki/opencryptoki.conf")
_TOKENS = Path("/var/lib/opencryptoki")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # ours only, in the namespace
_PROCESS_IDS = (Path("/run/pkcsslotd.pid"), Path("/run/opencryptoki/pkcsslotd.pid"))
_SECONDS = 10.0

# The daemon creates the others itself, and then (since version 3.21) changes to its own user.
_MAKE_PLACES = """
set -e
for place in /run /dev/shm /var/log /var/lib/opencryptoki; do mount -t tmpfs tmpfs $place; done
cp -a /etc/opencryptoki /run/configuration
mount --bind /run/configuration /etc/opencryptoki
mkdir -p /run/lock /var/lib/opencryptoki/swtok/TOK_OBJ
chgrp -R pkcs11 /var/lib/opencryptoki
chmod -R 770 /var/lib/opencryptoki
touch "$0"
set +e
"$@"
status=$?
kill -9 $(cat /run/pkcsslotd.pid /run/opencryptoki/pkcsslotd.pid 2>/dev/null) 2>/dev/null
exit $status
"""


class OpenCryptokiStack:
    """The soft token, in separate namespaces. It locks at the third wrong PIN.

    A process that has opened it can sign whatever happens to the daemon and the files: it has the key in memory.
    """

    def __init__(self) -> None:
        if not INSIDE.exists():
            raise RuntimeError("openCryptoki is used in namespaces of its own only; see `command`.")
        self.name = "opencryptoki"
        self.module = find_module(None, Pkcs11Uri(module_name="libopencryptoki"))
        self.environment: Mapping[str, str] = {}
        self.pin = "01234567"
        self.wrong_pin = "76543210"
        self.has_pss = True
        self.locks = True
        self.always_authenticate_key: StackKey | None = None
        self._token, self._away = _TOKENS / "swtok", _TOKENS / "away"
        _CONFIGURATION.write_text("version opencryptoki-3.1\nslot 0\n{\nstdll = libpkcs11_sw.so\n}\n", encoding="ascii")
        self._start()
        try:
            # The security officer's default PIN is public, and must be changed before it can set the user's PIN.
            _pkcsconf("-I", "-S", "87654321", stdin=f"{_LABEL}\n")
            _pkcsconf("-P", "-S", "87654321", "-n", "00112233")
            _pkcsconf("-u", "-S", "00112233", "-n", self.pin)
            self.key = self._make_key("key", b"\x01")
            self._files = {file: file.read_bytes() for file in self._token.rglob("*") if file.is_file()}
        except BaseException:
            self.close()
            raise

    def unplug(self) -> None:
        """Kill the daemon, and move the token's files away."""
        self._stop()
        self._token.rename(self._away)

    def plug(self) -> None:
        """Move them back, and start the daemon."""
        self._away.rename(self._token)
        self._start()

    def reset(self) -> None:
        """Restore the original files and start again: one of them and shared memory hold the count of wrong PINs."""
        self._stop()
        if self._away.exists():
            self._away.rename(self._token)
        for file in self._token.rglob("*"):
            if file.is_file() and file not in self._files:
                file.unlink()
        for file, content in self._files.items():
            file.write_bytes(content)
        for segment in _SHARED_MEMORY.iterdir():
            segment.unlink()
        self._start()

    def close(self) -> None:
        """Kill the daemon; the files go with the namespaces."""
        self._stop()

    def _start(self) -> None:
        # It returns when it listens. It writes its process id a little later.
        subprocess.run(["pkcsslotd"], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, check=True, timeout=_SECONDS)
        deadline = time.monotonic() + _SECONDS
        while not any(file.exists() and file.read_text() for file in _PROCESS_IDS):
            if time.monotonic() > deadline:
                raise RuntimeError("pkcsslotd did not write down its process id")
            time.sleep(0.01)

    def _stop(self) -> None:
        """Kill the daemon with SIGKILL: while a process has initialized the library, it ignores other signals."""
        for file in _PROCESS_IDS:
            if file.exists():
                with suppress(ProcessLookupError):
                    os.kill(int(file.read_text()), signal.SIGKILL)
                file.unlink()

    def _make_key(self, label: str, key_id: bytes) -> StackKey:
        uri = Pkcs11Uri(token=_LABEL, object=label, id=key_id)
        pin = FixedLogin(Pin(self.pin), "the PIN of the test token")
        with open_device(KeyAccess(uri, pin, self.module, writable=True)) as device:
            numbers = generate_key(device, KeySpec(label, key_id)).public_key
            der = create_certificate(open_signer(device), Algorithm.RS256, f"CN={label}", 30, datetime.now(UTC))
            subject = x509.load_der_x509_certificate(der).subject.public_bytes()
            store_certificate(device, der, subject=subject, label=label, key_id=key_id)
        public_key = rsa.RSAPublicNumbers(numbers.exponent, numbers.modulus).public_key()
        return StackKey(str(uri), public_key, der)


def stacks(*names: str) -> list[str]:
    """Return the stacks that a test runs on: the named ones, or in openCryptoki's namespaces only openCryptoki."""
    return ["opencryptoki"] if INSIDE.exists() else list(names)


def why_not() -> str | None:
    """Return why this machine cannot create its namespaces, or None."""
    if os.geteuid() != 0:
        return "openCryptoki serves root and the group pkcs11"
    done = subprocess.run(["unshare", *_propagation(), "true"], capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else None


def command(*argv: str) -> list[str]:
    """Return the command that runs a program where the stack can be created."""
    return ["unshare", *_propagation(), "sh", "-c", _MAKE_PLACES, str(INSIDE), *argv]


def _propagation() -> list[str]:
    """Return options for the namespaces, and for keeping their mounts private.

    In a chroot, / is not a mount point, so the creator of the chroot is responsible for that.
    """
    namespaces = ["--mount", "--ipc"]
    private = subprocess.run(["unshare", *namespaces, "true"], capture_output=True)
    return namespaces if private.returncode == 0 else [*namespaces, "--propagation", "unchanged"]


def _pkcsconf(*arguments: str, stdin: str = "") -> None:
    """Run openCryptoki's own tool. It takes PINs only as arguments; these PINs protect nothing."""
    done = subprocess.run(
        ["pkcsconf", *arguments, "-c", "0"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode != 0:
        raise RuntimeError(f"pkcsconf {arguments[0]} failed: {done.stdout}{done.stderr}")
