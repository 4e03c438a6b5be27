"""The first key whose device is present signs; a wrong PIN is not sent again."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hsm_signer import errors
from hsm_signer.config.keyfile import KeyEntry, KeyFile, write_key_file
from hsm_signer.config.profile import Profile
from hsm_signer.credential.client import Client
from hsm_signer.credential.identity import Identity
from hsm_signer.credential.keys import COOLDOWN, Keys
from hsm_signer.crypto import Signer
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    DeviceNotFound,
    HsmSignerError,
    KeyNotFound,
    PinIncorrect,
    PinLocked,
)
from hsm_signer.jwt.compact import parse_jwt, thumbprints
from hsm_signer.x509.certificate import Certificate
from tests.support.names import AUDIENCE
from tests.unit.credential.conftest import APP, CertificatesInMemory

OFFICE, HOME, VAULT = (Pkcs11Uri(token=name) for name in ("Office", "Home", "Vault"))
NEXT_KEY = {
    *("DeviceGone", "DeviceNotFound", "DeviceTimeout", "KeyNotFound", "LoginInterrupted", "ModuleLoadError"),
    "SignatureInvalid",
}
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HsmSignerError)]


class Devices:
    """Replaces `open_identity`, which needs real devices, and decides for each key whether it opens."""

    def __init__(self, working: Identity) -> None:
        self.opened: list[str | None] = []
        self.isolated: list[bool] = []
        self.closed: list[str | None] = []
        self.failing: dict[Pkcs11Uri, type[HsmSignerError]] = {}
        self.now = 0.0
        self._working = working

    def open(
        self,
        profile: Profile,
        client: Client,
        uri: Pkcs11Uri,
        operator: Operator = UNATTENDED,
        *,
        isolated: bool = False,
        replaced: Identity | None = None,
    ) -> Identity:
        self.opened.append(uri.token)
        if replaced is not None:
            replaced.close()
        self.isolated.append(isolated)
        if uri in self.failing:
            raise self.failing[uri](f"{uri.token} failed.")
        return Identity(
            replace(APP, client_id=str(uri.token)),
            self._working.signer,
            self._working.certificates,
            close=lambda: self.closed.append(uri.token),
            now=self._working.now,
        )

    def keys(self, *uris: Pkcs11Uri, operator: Operator = UNATTENDED, isolated: bool = False) -> Keys:
        return Keys(Profile(key=uris), APP, operator, isolated=isolated, monotonic=lambda: self.now)


@pytest.fixture
def devices(signer: Signer, certificate: Certificate, now: datetime, monkeypatch: pytest.MonkeyPatch) -> Devices:
    devices = Devices(Identity(APP, signer, CertificatesInMemory((certificate,)), now=now.timestamp))
    monkeypatch.setattr("hsm_signer.credential.keys.open_identity", devices.open)
    return devices


def signed_by(keys: Keys) -> str:
    """Return the device whose key signed: in these tests it is the client of the assertion."""
    return str(parse_jwt(keys.assertion(AUDIENCE)).claims["iss"])


def test_the_preferred_key_signs_and_no_other_is_opened(devices: Devices) -> None:
    assert (signed_by(devices.keys(OFFICE, HOME)), devices.opened) == ("Office", ["Office"])


def test_a_key_is_opened_once(devices: Devices) -> None:
    keys = devices.keys(OFFICE)
    assert ([signed_by(keys) for _ in range(3)], devices.opened) == (["Office"] * 3, ["Office"])


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind.__name__ in NEXT_KEY])
def test_when_a_device_is_absent_or_does_not_work_the_next_key_signs(
    devices: Devices, kind: type[HsmSignerError]
) -> None:
    devices.failing = {OFFICE: kind}
    assert signed_by(devices.keys(OFFICE, HOME)) == "Home"


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind.__name__ not in NEXT_KEY])
def test_any_other_failure_stops_the_search_for_a_key(devices: Devices, kind: type[HsmSignerError]) -> None:
    devices.failing = {OFFICE: kind}
    with pytest.raises(kind, match="Office failed"):
        devices.keys(OFFICE, HOME).assertion(AUDIENCE)
    assert devices.opened == ["Office"]


def test_when_no_key_works_the_failure_of_the_last_one_is_raised(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound, HOME: DeviceGone}
    with pytest.raises(DeviceGone, match="Home failed"):
        devices.keys(OFFICE, HOME).assertion(AUDIENCE)


def test_skipping_a_key_is_logged(devices: Devices, caplog: pytest.LogCaptureFixture) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    devices.keys(OFFICE, HOME).assertion(AUDIENCE)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "Office failed. Trying the next key.")
    ]


def test_a_failed_key_is_not_tried_while_another_one_works(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    keys = devices.keys(OFFICE, HOME)
    assert [signed_by(keys) for _ in range(2)] == ["Home", "Home"]
    assert devices.opened == ["Office", "Home"]


def test_the_preferred_key_is_tried_again_after_the_cooldown(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    keys, seen = devices.keys(OFFICE, HOME), []
    for devices.now in (0.0, COOLDOWN - 0.1, COOLDOWN):
        seen.append(signed_by(keys))
        devices.failing = {}
    assert seen == ["Home", "Home", "Office"]


def test_a_key_in_its_cooldown_is_tried_when_no_other_key_works(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    keys = devices.keys(OFFICE, HOME, VAULT)
    before = signed_by(keys)
    devices.failing = {VAULT: DeviceGone}
    keys.close()
    devices.failing = {HOME: DeviceGone, VAULT: DeviceGone}
    assert (before, signed_by(keys)) == ("Home", "Office")


def test_waiting_for_a_device_finds_any_of_several(devices: Devices) -> None:
    devices.failing = {OFFICE: DeviceNotFound, HOME: DeviceNotFound}
    waited: list[str] = []

    def plug_in_office(error: HsmSignerError) -> None:
        waited.append(error.message)
        del devices.failing[OFFICE]

    keys = devices.keys(OFFICE, HOME, operator=Operator(wait=plug_in_office))
    assert (signed_by(keys), waited) == ("Office", ["Home failed."])


@pytest.mark.parametrize("kind", [PinIncorrect, PinLocked])
def test_a_device_that_refused_a_pin_is_not_opened_again(devices: Devices, kind: type[HsmSignerError]) -> None:
    devices.failing = {OFFICE: kind}
    keys = devices.keys(OFFICE)
    for _ in range(3):
        with pytest.raises(kind, match="Office failed"):
            keys.assertion(AUDIENCE)
    assert devices.opened == ["Office"]


def test_closing_closes_every_device_and_the_next_assertion_opens_them_again(devices: Devices) -> None:
    keys = devices.keys(OFFICE)
    keys.assertion(AUDIENCE)
    keys.close()
    keys.assertion(AUDIENCE)
    assert (devices.opened, devices.closed) == (["Office", "Office"], ["Office"])


@pytest.mark.parametrize("isolated", [True, False])
def test_either_every_key_is_opened_in_its_own_process_or_none_is(devices: Devices, isolated: bool) -> None:
    devices.failing = {OFFICE: DeviceNotFound}
    devices.keys(OFFICE, HOME, isolated=isolated).assertion(AUDIENCE)
    assert devices.isolated == [isolated, isolated]


def test_after_a_fork_the_child_opens_the_key_again_and_leaves_the_parents_device_open(devices: Devices) -> None:
    keys = devices.keys(OFFICE)
    keys.assertion(AUDIENCE)
    keys._keys[0]._lock.acquire()  # another thread of the parent may hold it at the fork
    keys.reset_after_fork()
    keys.assertion(AUDIENCE)
    assert (devices.opened, devices.closed) == (["Office", "Office"], [])


def test_a_pin_refused_before_a_fork_is_not_sent_after_it(devices: Devices) -> None:
    devices.failing = {OFFICE: PinIncorrect}
    keys = devices.keys(OFFICE)
    for _ in range(2):
        with pytest.raises(PinIncorrect):
            keys.assertion(AUDIENCE)
        keys.reset_after_fork()
    assert devices.opened == ["Office"]


class TestAKeyFile:
    """A key file that first names Office, then Home."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        write_key_file(tmp_path / "key.json", KeyFile(KeyEntry(OFFICE)))
        return tmp_path / "key.json"

    @pytest.fixture
    def keys(self, devices: Devices, file: Path) -> Keys:
        return Keys(Profile(key=(OFFICE,), key_file=file), APP, monotonic=lambda: devices.now)

    def test_when_the_file_names_another_key_that_key_signs(self, devices: Devices, keys: Keys, file: Path) -> None:
        before = signed_by(keys)
        write_key_file(file, KeyFile(KeyEntry(HOME)))
        assert (before, signed_by(keys), devices.closed) == ("Office", "Home", ["Office"])

    def test_when_the_file_changes_while_the_old_key_fails_the_new_key_signs_at_once(
        self, devices: Devices, keys: Keys, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The old key is deleted from the device just after the file was read.
        def deleted(profile: Profile, client: Client, uri: Pkcs11Uri, *arguments: Any, **named: Any) -> Identity:
            if uri == OFFICE:
                write_key_file(file, KeyFile(KeyEntry(HOME)))
                raise KeyNotFound("It is gone.")
            return devices.open(profile, client, uri, *arguments, **named)

        monkeypatch.setattr("hsm_signer.credential.keys.open_identity", deleted)
        assert signed_by(keys) == "Home"

    def test_a_thread_that_chose_the_old_key_cannot_open_its_device_after_the_switch(
        self, devices: Devices, keys: Keys, file: Path
    ) -> None:
        # Another thread chose the old key before this one switched to the new key, and opens it only now.
        signed_by(keys)
        (old,) = keys._keys
        write_key_file(file, KeyFile(KeyEntry(HOME)))
        signed_by(keys)
        with pytest.raises(DeviceError):
            old.open(Profile(), APP, UNATTENDED, False)
        assert devices.opened == ["Office", "Home"]


class TestTheKeyInUse:
    """Whether an assertion is by the key in use, as far as files show it without the device."""

    @staticmethod
    def keys(**files: Path) -> Keys:
        return Keys(Profile(key=(OFFICE,), **files), APP)  # type: ignore[arg-type]  # a Path each

    @pytest.fixture
    def file(self, tmp_path: Path, certificate: Certificate) -> Path:
        recorded = KeyEntry(OFFICE, thumbprints=thumbprints(certificate))
        write_key_file(tmp_path / "key.json", KeyFile(recorded))
        return tmp_path / "key.json"

    @pytest.mark.parametrize("name", ["x5t", "x5t#S256"])
    def test_the_thumbprints_in_the_key_file_decide(self, file: Path, certificate: Certificate, name: str) -> None:
        keys = self.keys(key_file=file)
        assert keys.is_current({name: thumbprints(certificate)[name]}, written=0)
        assert not keys.is_current({name: "another"}, written=time.time() + 60)

    @pytest.mark.parametrize("name", ["x5t", "x5t#S256"])
    def test_the_certificate_in_a_file_decides(self, tmp_path: Path, certificate: Certificate, name: str) -> None:
        file = tmp_path / "app.der"
        file.write_bytes(certificate.der)
        keys = self.keys(certificate=file)
        assert keys.is_current({name: thumbprints(certificate)[name]}, written=0)
        assert not keys.is_current({name: "another"}, written=time.time() + 60)

    @pytest.mark.parametrize("content", ["by hand", "damaged", "gone"])
    def test_if_the_key_file_has_no_thumbprints_its_age_decides(self, file: Path, content: str) -> None:
        if content == "by hand":
            write_key_file(file, KeyFile(KeyEntry(OFFICE)))
        elif content == "damaged":
            file.write_text("{")
        else:
            file.unlink()
        keys = self.keys(key_file=file)
        assert keys.is_current({"x5t": "any"}, written=time.time() + 60)
        assert keys.is_current({"x5t": "any"}, written=time.time() - 60) is (content == "gone")

    def test_a_key_file_moved_into_place_counts_as_changed_whatever_its_modification_time(self, file: Path) -> None:
        written = time.time() - 60
        another = file.with_name("another.json")
        write_key_file(another, KeyFile(KeyEntry(HOME)))
        os.utime(another, (0, 0))
        another.replace(file)
        assert not self.keys(key_file=file).is_current({"x5t": "any"}, written)

    def test_without_a_key_file_the_key_is_always_current(self) -> None:
        keys = self.keys()
        assert (keys.state(), keys.is_current({"x5t": "any"}, 0)) == ((), True)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda file: write_key_file(file, KeyFile(KeyEntry(HOME))), id="replaced"),
            pytest.param(lambda file: file.write_text("{"), id="written over"),
            pytest.param(lambda file: file.unlink(), id="removed"),
        ],
    )
    def test_the_state_changes_when_the_key_file_does(self, file: Path, change: Callable[[Path], None]) -> None:
        keys = self.keys(key_file=file, certificate=file.with_name("app.pem"))
        before = keys.state()
        assert keys.state() == before
        change(file)
        assert keys.state() != before
