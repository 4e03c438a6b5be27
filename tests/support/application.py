"""An application with one key on a device, and rotations of it, which a test can cut off at any call."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from hsm_signer.config.keyfile import KeyEntry, KeyFile, read_key_file, write_key_file
from hsm_signer.config.profile import Profile, profile_from_arguments
from hsm_signer.credential.key_access import key_access
from hsm_signer.credential.tokens import Tokens
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.inventory.facts import Contents
from hsm_signer.device.inventory.inspect import examine
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.rotation.clock import Clock
from hsm_signer.rotation.plan import Step
from hsm_signer.rotation.request import Report, RotationRequest
from hsm_signer.rotation.rotation import Rotation
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.names import CLIENT, GRAPH, PIN, TENANT


@dataclass
class Time:
    """The time for Entra and for a rotation."""

    ago: float = 0

    def now(self) -> float:
        return time.time() - self.ago

    @contextmanager
    def real(self) -> Iterator[None]:
        """Use the real time, like other programs."""
        ago, self.ago = self.ago, 0
        yield
        self.ago = ago


@dataclass(frozen=True)
class Application:
    """An application, its device, and Entra."""

    entra: EntraEmulator
    softhsm: SoftHsm
    key_file: Path
    first: SoftHsmKey
    time: Time = field(default_factory=Time)

    def settings(self, **changes: object) -> dict[str, object]:
        return {
            "authority": self.entra.authority,
            "module": str(self.softhsm.module),
            "module_environment": self.softhsm.environment,
            "pin_source": "env:DEVICE_PIN",
            "pin_record": False,
            "network_timeout": 3,
            "grace": 0,
            "object_id": self.entra.object_id(CLIENT, tenant=TENANT),
            **changes,
        }

    def profile(self, **changes: object) -> Profile:
        arguments = {"tenant": TENANT, "client_id": CLIENT, "key": f"file:{self.key_file}"}
        return profile_from_arguments({**arguments, **self.settings(**changes)})

    def rotate(self, profile: Mapping[str, object] = MappingProxyType({}), **wanted: object) -> list[Step]:
        """Rotate in this process, and return the steps that were taken."""
        taken: list[Step] = []
        with self.rotation(profile, lambda step, _: taken.append(step), **wanted) as rotation:
            rotation.run()
        return taken

    def rotation(self, profile: Mapping[str, object], report: Report, **wanted: object) -> Rotation:
        request = RotationRequest(**{"delete_old": True, "propagation": 0, **wanted})  # type: ignore[arg-type]
        return Rotation(self.profile(**profile), request, report=report, clock=Clock(now=self.time.now))

    def rotate_until(self, cut: Mapping[str, object]) -> int:
        """Rotate in a process that is killed at some moment, and return its exit status."""
        arguments = {"key": f"file:{self.key_file}", "tenant": TENANT, "client_id": CLIENT, **self.settings()}
        done = subprocess.run(
            [sys.executable, "-c", _CUT_OFF, json.dumps(arguments), json.dumps(cut)], capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    def token(self) -> str:
        """Get a token like a program that follows the key file."""
        with self.time.real(), self.tokens() as tokens:
            return tokens.get(tokens.build_query((GRAPH,))).token

    def tokens(self, *, isolated: bool = False, **changes: object) -> Tokens:
        """A program that follows the key file."""
        return Tokens(self.profile(**changes), isolated=isolated)

    @property
    def file(self) -> KeyFile:
        return read_key_file(self.key_file)

    def registered(self) -> list[bytes]:
        """Return the certificates that are registered at Entra."""
        return [each.thumbprints["x5t"] for each in self.entra.key_credentials(CLIENT, tenant=TENANT)]

    def on_device(self) -> Contents:
        """Return the device's contents."""
        access = key_access(self.profile(), Pkcs11Uri(token=self.softhsm.label))
        contents = examine(access, datetime.now(UTC), login=True).devices[0].contents
        assert contents is not None
        return contents

    def seen(self) -> tuple[set[bytes], set[str], set[bytes]]:
        """Return the registered certificates, and the labels of the keys and the certificates on the device."""
        contents = self.on_device()
        return (
            {*self.registered()},
            {key.label for key in contents.keys},
            {certificate.sha1 for certificate in contents.certificates},
        )

    def device(self) -> Device:
        """Open the device, to change it without the rotation's knowledge."""
        access = key_access(self.profile(), Pkcs11Uri(token=self.softhsm.label))
        return open_device(replace(access, writable=True))

    def is_tidy(self) -> bool:
        """Return whether one key, one certificate and one registration are left, no step remains, and a token works."""
        contents, file = self.on_device(), self.file
        return (
            len(contents.keys) == 1
            and self.registered() == [certificate.sha1 for certificate in contents.certificates]
            and (file.next, file.retired) == (None, ())
            and bool(self.token())
        )


# Kills its own process, like a power cut, at one call of one function: before it, or after it has done its work.
_CUT_OFF = """
import importlib, json, os, signal, sys
from hsm_signer.config.profile import profile_from_arguments
from hsm_signer.rotation.request import RotationRequest
from hsm_signer.rotation.rotation import Rotation

arguments, cut = map(json.loads, sys.argv[1:])
home = importlib.import_module(cut["module"])
for name in cut["name"].split(".")[:-1]:
    home = getattr(home, name)
name = cut["name"].split(".")[-1]
function, calls = getattr(home, name), 0

def cut_off(*given, **named):
    global calls
    calls += 1
    if calls == cut["call"] and cut["when"] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*given, **named)
    if calls == cut["call"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(home, name, cut_off)
request = RotationRequest(delete_old=True, propagation=0)
with Rotation(profile_from_arguments(arguments), request) as rotation:
    rotation.run()
"""


@contextmanager
def running_application(directory: Path, *, forbid_listing: bool = False) -> Iterator[Application]:
    """Run an application that has its first key. DEVICE_PIN must hold the device's PIN."""
    clock = Time()
    with (
        SoftHsm(label="rolling", pin=PIN) as softhsm,
        EntraEmulator(https=False, forbid_listing=forbid_listing, clock=clock.now) as entra,
    ):
        key = softhsm.add_key("app", b"\x01")
        yesterday = datetime.now(UTC) - timedelta(days=1)
        certificate = softhsm.issue_certificate(key.public_key, not_before=yesterday)
        softhsm.add_certificate(certificate, "app", b"\x01")
        first = replace(key, certificate=certificate)
        entra.register(CLIENT, certificate, tenant=TENANT)
        file = directory / "key.json"
        (credential,) = entra.key_credentials(CLIENT, tenant=TENANT)
        write_key_file(file, KeyFile(KeyEntry(Pkcs11Uri.parse(first.uri), key_id=credential.key_id)))
        yield Application(entra, softhsm, file, first, clock)
