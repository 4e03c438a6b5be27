"""A module that takes over the process that loads it: our process runs no code from there and reports an error."""

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.inventory.survey import survey
from hsm_signer.device.module_search import ModuleReference
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker.pool import open_worker
from hsm_signer.errors import DeviceGone, DeviceTimeout, KeyNotFound, SignatureInvalid
from tests.support.c_library import compile_library
from tests.support.counted_pin import CountedPin

# As soon as it is loaded, it sends the file beside it to its parent, and then nothing more.
SOURCE = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

__attribute__((constructor)) static void take_over(void) {
    static char said[1 << 20];
    int file = open(getenv("HOSTILE"), O_RDONLY | O_CLOEXEC);
    ssize_t length = read(file, said, sizeof said);
    close(file);
    for (int end = 3; end < 256; end++) {
        struct stat status;
        if (fstat(end, &status) == 0 && (S_ISSOCK(status.st_mode) || S_ISFIFO(status.st_mode)))
            for (ssize_t done = 0, n; done < length && (n = write(end, said + done, length - done)) > 0; done += n);
    }
    if (getenv("HOSTILE_EXIT"))
        _exit(0);
    pause();
}
"""
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key().public_numbers()
OPENED_DEVICE = {"algorithms": ["RS256"], "device": "a device", "always_authenticate": False}
OPENED = ["Opened", {"public_key": f"{KEY.n:x}:{KEY.e:x}", **OPENED_DEVICE}]
ASK_FOR_PIN = [
    "AskForPin",
    {"request": {"device": "a device", "name": "a device", "warning": None, "last_try": False, "pad": False}},
]
CALLING = ["Calling", {"what": "signing", "seconds": 0.01}]


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.path,)


def framed(*messages: object) -> bytes:
    return b"".join(frame(json.dumps(message).encode()) for message in messages)


def frame(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(SOURCE, tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def source() -> CountedPin:
    return CountedPin("secret")


AccessTo = Callable[[bytes], KeyAccess]


@pytest.fixture
def access_to(module: Path, source: CountedPin, tmp_path: Path) -> AccessTo:
    """Return access to a key in the module, which then sends these bytes."""

    def access_to(said: bytes) -> KeyAccess:
        (tmp_path / "said").write_bytes(said)
        return KeyAccess(
            uri=Pkcs11Uri(token="any"),
            pin=source,
            module=module,
            module_environment={"HOSTILE": str(tmp_path / "said")},
            timeout=20,
        )

    return access_to


def test_a_pickle_from_the_worker_runs_nothing(access_to: AccessTo, source: CountedPin, tmp_path: Path) -> None:
    with pytest.raises(DeviceGone, match="sent an invalid answer") as caught:
        open_worker(access_to(frame(pickle.dumps(Touch(tmp_path / "taken over")))))
    assert caught.value.hint
    assert source.times == 0
    assert not (tmp_path / "taken over").exists()


@pytest.mark.parametrize("framing", [bytes, frame], ids=["bare", "framed"])
def test_a_pickle_from_a_survey_runs_nothing(
    framing: Callable[[bytes], bytes], access_to: AccessTo, tmp_path: Path
) -> None:
    access = access_to(framing(pickle.dumps(Touch(tmp_path / "taken over"))))
    assert access.module is not None
    facts = survey(ModuleReference(access.module), {**access.module_environment, "HOSTILE_EXIT": "1"}, 20)
    assert not (tmp_path / "taken over").exists()
    assert facts.problem is not None
    assert "sent an invalid answer" in facts.problem.message


def test_an_answer_to_another_request_ends_the_worker(access_to: AccessTo) -> None:
    with pytest.raises(DeviceGone, match="sent an invalid answer"):
        open_worker(access_to(framed(["Done", {"result": ""}])))


def test_endless_progress_messages_end_the_worker(access_to: AccessTo) -> None:
    with pytest.raises(DeviceGone, match="sent an invalid answer"):
        open_worker(access_to(framed(CALLING) * 10_000))


def test_control_characters_for_the_terminal_end_the_worker(access_to: AccessTo) -> None:
    with pytest.raises(DeviceGone, match="sent an invalid answer"):
        open_worker(access_to(framed(["Calling", {"what": "\x1b]0;title\x07", "seconds": 1}])))


def test_a_call_cannot_take_longer_than_the_device_timeout(access_to: AccessTo) -> None:
    with pytest.raises(DeviceTimeout):
        open_worker(replace(access_to(framed(["Calling", {"what": "signing", "seconds": 1e9}])), timeout=0.5))


def test_the_pin_is_sent_to_the_worker_once(access_to: AccessTo, source: CountedPin) -> None:
    with pytest.raises(DeviceGone, match="sent an invalid answer"):
        open_worker(access_to(framed(ASK_FOR_PIN, ASK_FOR_PIN)))
    assert source.times == 1


def test_the_pin_is_not_sent_to_the_worker_during_a_signature(access_to: AccessTo, source: CountedPin) -> None:
    with open_worker(access_to(framed(OPENED, ASK_FOR_PIN))) as signer:
        with pytest.raises(DeviceGone, match="sent an invalid answer"):
            signer.sign(Algorithm.RS256, b"header.claims")
    assert source.times == 0


def test_a_signature_by_another_key_is_not_returned(access_to: AccessTo) -> None:
    with open_worker(access_to(framed(OPENED, ["Done", {"result": "AAAA"}]))) as signer:
        with pytest.raises(SignatureInvalid, match="does not verify"):
            signer.sign(Algorithm.RS256, b"header.claims")


def test_a_new_worker_with_another_key_is_not_used(access_to: AccessTo, tmp_path: Path) -> None:
    with open_worker(access_to(framed(OPENED) + frame(b"nonsense"))) as signer:
        with pytest.raises(DeviceGone):
            signer.sign(Algorithm.RS256, b"header.claims")
        other = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key().public_numbers()
        access_to(framed(["Opened", {"public_key": f"{other.n:x}:3", **OPENED_DEVICE}]))
        with pytest.raises(KeyNotFound, match="was replaced by another key"):
            signer.sign(Algorithm.RS256, b"header.claims")
