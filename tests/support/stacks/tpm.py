"""A TPM: swtpm, tpm2-abrmd on a separate D-Bus, and a tpm2-pkcs11 store, all in one temporary directory.

Debian packages: swtpm, tpm2-abrmd, libtss2-tcti-tabrmd0, libtpm2-pkcs11-1, libtpm2-pkcs11-tools, tpm2-tools and
dbus-daemon. The module goes through tpm2-abrmd as on a server: a TPM has room for three objects, and without a broker
that swaps them tpm2-pkcs11 runs out of room.
"""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_signer.device.module_search import find_module
from hsm_signer.device.uri import Pkcs11Uri
from tests.support.certificates import common_name, make_certificate

from . import StackKey
from .daemon import Daemon

_LABEL = "device tests"
_SECONDS = 20.0

_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
"""

# A command and its answer in swtpm's log. Both begin with a tag (2 bytes) and a size (4 bytes), then the code.
_EXCHANGE = re.compile(
    r"SWTPM_IO_Read: length \d+\n (?:.. ){6}(.. .. .. ..) .*?SWTPM_IO_Write: length \d+\n (?:.. ){6}(.. .. .. ..) ",
    re.DOTALL,
)
# TPM 2.0 Library part 2, sections 6.5.2 and 6.6.3.
_UNSEAL = "00 00 01 5E"
_RETRY = "00 00 09 22"


class TpmStack:
    """A TPM with an ordinary and an always-authenticate key, both generated in it.

    Three wrong PINs lock the whole TPM, and no PIN flag warns before that. `tpm2_ptool --id 01` stores the two bytes
    30 31 as CKA_ID. TSS2_LOG silences the TPM libraries, but nothing silences the module's own ERROR lines on stderr.

    A process that had the TPM open while it was off gets CKR_GENERAL_ERROR until it initializes the module again, and
    the module lists the TPM even while it is off.
    """

    def __init__(self) -> None:
        self.name = "tpm"
        self.module = find_module(None, Pkcs11Uri(module_name="tpm2_pkcs11"))
        self.pin = "123456"
        self.wrong_pin = "654321"
        self.has_pss = True
        self.locks = True
        with ExitStack() as resources:
            self._directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="tpm-")))
            store = self._directory / "store"
            store.mkdir()
            self.environment: Mapping[str, str] = {
                "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self._directory / 'bus'}",
                "TPM2_PKCS11_STORE": str(store),
                "TPM2_PKCS11_TCTI": "tabrmd:bus_type=session",
                "TSS2_LOG": "all+none",
            }
            resources.enter_context(self._start_bus())
            self._power = resources.enter_context(ExitStack())
            self.plug()
            self._tool("tpm2_ptool", "init")
            self.add_token(_LABEL)
            self.key = self._add_identity("key", "01")
            self.always_authenticate_key: StackKey | None = self._add_identity(
                "always", "02", "--attr-always-authenticate"
            )
            self.reset()
            self._resources = resources.pop_all()

    def add_token(self, label: str) -> None:
        """Create another, empty token with the same PIN."""
        self._tool(
            *("tpm2_ptool", "addtoken", "--pid=1", f"--label={label}"),
            *(f"--userpin={self.pin}", "--sopin=of the administrator"),
        )

    def unplug(self) -> None:
        """Switch off the TPM and its broker in order, as a kernel does.

        Without TPM2_Shutdown the TPM counts a wrong PIN (TPM 2.0 Library part 1, "Dictionary Attack Protection"):
        pulling the plug three times locks it.
        """
        self._tool("tpm2_shutdown", "--clear")
        self._power.close()

    def plug(self) -> None:
        """Switch it on again; return when the broker is on the bus."""
        with ExitStack() as power:
            power.enter_context(self._start_tpm())
            tpm = f"swtpm:path={self._directory / 'tpm'}"
            power.enter_context(self._start("tpm2-abrmd", "--allow-root", "--session", f"--tcti={tpm}"))
            self._wait_for("tpm2-abrmd", self._has_broker)
            self._power.push(power.pop_all())

    def presented(self) -> int:
        """Return how often the TPM was asked to unseal what the PIN protects: once for each login of both kinds.

        While it is locked the module does not get that far. After TPM_RC_RETRY the libraries send the command again.
        """
        exchanges = _EXCHANGE.finditer(self._log.read_text(encoding="ascii"))
        return len([exchange for exchange in exchanges if exchange[1] == _UNSEAL and exchange[2] != _RETRY])

    def reset(self) -> None:
        """Clear the lock-out, after switching the TPM on if the last test left it off."""
        if not self._has_broker():
            self._power.close()
            self.plug()
        self._tool("tpm2_dictionarylockout", "--clear-lockout")
        self._log.write_bytes(b"")  # swtpm appends

    def close(self) -> None:
        """Stop everything and remove the directory."""
        self._resources.close()

    @property
    def _log(self) -> Path:
        return self._directory / "tpm.log"

    def _start_bus(self) -> Daemon:
        path = self._directory / "bus"
        configuration = self._directory / "bus.conf"
        configuration.write_text(_BUS.format(socket=path), encoding="utf-8")
        bus = self._start("dbus-daemon", f"--config-file={configuration}", "--nofork", "--nopidfile")
        self._wait_for("dbus-daemon", lambda: self._bus_says("GetId") is not None)
        return bus

    def _start_tpm(self) -> Daemon:
        # The sockets listen already, so an early client waits for the TPM instead of failing.
        with self._listen("tpm") as data, self._listen("tpm.ctrl") as control:  # tcti-swtpm adds the suffix
            return self._start(
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._directory}"),
                *("--server", f"type=unixio,fd={data.fileno()}", "--ctrl", f"type=unixio,fd={control.fileno()}"),
                *("--flags", "not-need-init,startup-clear", "--log", f"file={self._log},level=2"),
                pass_fds=(data.fileno(), control.fileno()),
            )

    def _listen(self, name: str) -> socket.socket:
        path = self._directory / name
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        return listening

    def _has_broker(self) -> bool:
        return "boolean true" in (self._bus_says("NameHasOwner", "string:com.intel.tss2.Tabrmd") or "")

    def _bus_says(self, method: str, *arguments: str) -> str | None:
        bus = f"--bus=unix:path={self._directory / 'bus'}"
        member = f"org.freedesktop.DBus.{method}"
        done = subprocess.run(
            ["dbus-send", bus, "--print-reply", "--dest=org.freedesktop.DBus", "/", member, *arguments],
            capture_output=True,
            text=True,
        )
        return done.stdout if done.returncode == 0 else None

    def _wait_for(self, program: str, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _SECONDS
        while not is_ready():
            if time.monotonic() > deadline:
                said = (self._directory / "output").read_text(errors="replace")
                raise RuntimeError(f"{program} was not ready within {_SECONDS:g} s: {said}")
            time.sleep(0.01)

    def _start(self, program: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> Daemon:
        return Daemon(
            *(_program(program), *arguments),
            environment={**os.environ, **self.environment},
            output=self._directory / "output",
            pass_fds=pass_fds,
        )

    def _tool(self, program: str, *arguments: str) -> bytes:
        environment = {**os.environ, **self.environment, "TPM2TOOLS_TCTI": self.environment["TPM2_PKCS11_TCTI"]}
        done = subprocess.run(
            [_program(program), *arguments], cwd=self._directory, env=environment, capture_output=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} {arguments[0]} failed: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def _add_identity(self, label: str, key_id: str, *options: str) -> StackKey:
        where = (f"--label={_LABEL}", f"--key-label={label}")
        pin = f"--userpin={self.pin}"
        self._tool("tpm2_ptool", "addkey", "--algorithm=rsa2048", f"--id={key_id}", *where, pin, *options)
        self._tool("tpm2_ptool", "export", "--format=tpm2", f"--output-prefix={label}", *where, pin)
        public_key = serialization.load_pem_public_key(
            self._tool("tpm2_print", "--type=TPM2B_PUBLIC", "--format=pem", f"{label}.pub")
        )
        assert isinstance(public_key, rsa.RSAPublicKey)
        certificate = _issue(public_key)
        pem = self._directory / f"{label}.pem"
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._tool("tpm2_ptool", "addcert", *where, str(pem))
        uri = Pkcs11Uri(token=_LABEL, object=label, id=key_id.encode())
        return StackKey(str(uri), public_key, certificate.public_bytes(serialization.Encoding.DER))


def _program(name: str) -> str:
    # tpm2-abrmd is in a directory that is not in an ordinary user's PATH.
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        raise RuntimeError(f"{name} is not installed; the packages are named in {__name__}.")
    return path


def _issue(public_key: rsa.RSAPublicKey) -> x509.Certificate:
    issuer = common_name("hsm-signer test issuer"), rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return make_certificate(public_key, subject=common_name("hsm-signer test"), issuer=issuer)
