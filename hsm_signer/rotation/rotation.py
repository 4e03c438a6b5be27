"""Replace a key without downtime. `Rotation` runs the steps that the plan decides.

    with Rotation(profile, RotationRequest(days=180), report=print) as rotation:
        rotation.run()

There is one login. The state of a rotation is on the device, at Entra and in the key file, and nowhere else. After any
interruption, the next run continues.

After the switch, the old key stays registered for a while: other programs may hold assertions that it signed. A run
does not wait for that. It ends, and a later run does the remaining steps.
"""

import os
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from hsm_signer.config.keyfile import KeyEntry, KeyFile, lock_key_file, read_key_file, write_key_file
from hsm_signer.config.profile import Profile
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError
from hsm_signer.rotation.actions import ACTIONS
from hsm_signer.rotation.clock import Clock
from hsm_signer.rotation.context import RotationContext
from hsm_signer.rotation.device_keys import DeviceKeys
from hsm_signer.rotation.key_credentials import KeyCredentials
from hsm_signer.rotation.observe import observe
from hsm_signer.rotation.plan import Observed, Step, default_grace, next_step, plan
from hsm_signer.rotation.read_only import cannot_change
from hsm_signer.rotation.request import Report, RotationRequest


class Rotation:
    """One run of `rotate`. It opens the device and logs in when it first needs it.

    A context manager: at its end the device is closed, and another run may begin.

    Args:
        profile: its `key` names the key file.
        request: what to do.
        operator: who enters the PIN.
        report: called after each step.
        clock: the time.

    Attributes:
        file: the content of the key file.
        grace: seconds for which a key stays registered after the switch to the next one.
        days_left: whole days until the current certificate expires, if `run` or `plan` found that no rotation is due;
            else None.

    Raises:
        ConfigError: the profile names no key file, or another rotation is running, or a setting is missing; or the
            old certificate would stay registered for longer than half of the next one's validity.
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
        path = require_key_file(profile)
        self.grace = default_grace(profile.lifetime) if profile.grace is None else profile.grace
        if self.grace > request.days * 86400 / 2:
            raise ConfigError(
                f"The old certificate would stay registered for {self.grace} s, and no other rotation can start before "
                f"then. The new certificate is valid for {request.days} days.",
                hint="Choose a --grace of at most half of --days.",
            )
        credentials = KeyCredentials(profile, request.propagation, report, clock, operator.slow)
        with ExitStack() as undo:
            undo.callback(os.close, lock_key_file(path))
            self.file = _load(path, request.current)
            keys = DeviceKeys(profile, credentials.client, self.file.current.uri, operator, clock)
            undo.callback(keys.close)
            self._undo = undo.pop_all()
        self.days_left: int | None = None
        self._context = RotationContext(profile, request, keys, credentials, path, self._write, report, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def plan(self) -> list[Step]:
        """Return the steps of this run, and after a wait those of a later run, if each succeeds.

        Raises:
            HsmSignerError: the current key cannot be opened, or the next key is the current one.
        """
        return plan(self._observe())

    def run(self) -> None:
        """Do every step that can be done now: none, if nothing is due.

        Raises:
            HsmSignerError: a step failed. The steps before it are done, and the current key works.
        """
        observed = self._observe()
        while (step := next_step(observed)) is not None:
            if step is Step.WAIT:
                self._write(observed.file)
                self._report_waits()
                return
            self._require_writable(step, observed)
            observed = replace(ACTIONS[step](self._context, observed), now=self._context.clock.now())
            self._write(observed.file)

    def _observe(self) -> Observed:
        observed = observe(self._context, self.file, self.grace)
        self.days_left = observed.days_left
        return observed

    def _require_writable(self, step: Step, observed: Observed) -> None:
        """Check that the PIN allows changing the device, if this step leads to a change of it."""
        next_uri = self._context.request.next_key
        change = Step.GENERATE if step is Step.NAME and next_uri is None else step
        if not observed.writable and change in (Step.GENERATE, Step.CERTIFY, Step.DELETE):
            raise cannot_change(self._context, observed, change, next_uri)

    def _report_waits(self) -> None:
        for old in self.file.retired:
            until = datetime.fromtimestamp(old.until or 0, UTC)
            self._context.report(
                Step.WAIT,
                f"The old key {old.uri.object or old.uri} stays registered until {until:%Y-%m-%d %H:%M:%S} UTC: "
                "programs may hold assertions that it signed. Run rotate again after that.",
            )

    def _write(self, file: KeyFile) -> None:
        if file != self.file:
            write_key_file(self._context.path, file)
            self.file = file


def require_key_file(profile: Profile) -> Path:
    """Return the key file of a profile.

    Raises:
        ConfigError: it has none, or it names a certificate file, which would be wrong after the key changes.
    """
    if profile.key_file is None:
        raise ConfigError(
            "rotate needs a key file, and the profile names none.",
            hint='Write key = "file:PATH" in the profile, and run once: hsm-signer rotate --adopt URI',
        )
    if profile.certificate is not None:
        raise ConfigError(
            "The profile names a certificate file, which would not be for the new key.",
            hint="Remove `certificate` from the profile: rotate stores the certificate on the device, with its key.",
        )
    return profile.key_file


def _load(path: Path, current: Pkcs11Uri | None) -> KeyFile:
    if path.exists():
        return read_key_file(path)
    if current is None:
        raise ConfigError(
            f"The key file {path} does not exist, so rotate does not know which key is in use.",
            hint="Name the key once: hsm-signer rotate --adopt URI",
        )
    return KeyFile(KeyEntry(current))
