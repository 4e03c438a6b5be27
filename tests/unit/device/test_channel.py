"""Messages between processes: each arrives as it was sent, and anything unexpected is refused."""

import ast
import json
import socket
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hsm_signer
from hsm_signer import errors
from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.channel import Channel
from hsm_signer.device.inventory.facts import (
    CertificateFacts,
    Contents,
    DeviceFacts,
    KeyFacts,
    MechanismFacts,
    ModuleFacts,
    Problem,
)
from hsm_signer.device.inventory.survey import LookThrough
from hsm_signer.device.locate import LibraryFacts
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.objects import Protection
from hsm_signer.device.pin.pin import Pin, PinPad, PinRequest
from hsm_signer.device.pin.state import PinState
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.wire import Malformed
from hsm_signer.device.worker.messages import (
    AskForPin,
    Calling,
    Done,
    Failed,
    Logged,
    Open,
    Opened,
    PinAnswer,
    ReadCertificate,
    Sign,
)
from hsm_signer.errors import DeviceError, EntraError, HsmSignerError, UriError

FROM_WORKER = Calling, Logged, AskForPin, Opened, Done, Failed
TO_WORKER = Open, PinAnswer, Sign, ReadCertificate
MOMENT = datetime(2025, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
KEY = PublicKey((1 << 16383) + 1, 65537)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def received(message: object, *kinds: type) -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Channel(theirs).send(message)
        return Channel(ours, *kinds).receive()


ERRORS = [
    *(
        kind("Found é \udc80.", hint=None)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, HsmSignerError)
    ),
    UriError("Malformed.", hint="Fix it.", position=0),
    EntraError("Refused.", error="invalid_client", aadsts=700027, correlation_id="1", trace_id="2"),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_every_error_class_arrives_with_all_its_fields(error: HsmSignerError) -> None:
    arrived = received(Failed(error), *FROM_WORKER).error
    assert (type(arrived), vars(arrived), str(arrived)) == (type(error), vars(error), str(error))


@pytest.mark.parametrize(
    "message",
    [
        Calling("signing", 0.5),
        Calling("signing", 60),
        Logged("hsm_signer.device", 10, "text"),
        AskForPin(PinRequest("device", warning="careful", last_try=True, pad=True)),
        Opened(KEY, frozenset(Algorithm), "device", True),
        Done(bytes(range(256))),
        PinAnswer(Pin("é 4711", "file", accepted=True)),
        PinAnswer(PinPad.PROTECTED),
        PinAnswer(None),
        Sign(Algorithm.PS256, b""),
        ReadCertificate(),
        LookThrough(Path("/x/\udcff.so"), None, 60.0, contents=True),
        Open(
            uri=Pkcs11Uri.parse("pkcs11:id=%FF;slot-id=18446744073709551615;x-vendor=1?module-name=softhsm2"),
            module=Path("/x.so"),
            module_environment={"A": "\udcff"},
            timeout=60.0,
            allow_last_try=True,
            writable=False,
            pin_record=None,
            source="file",
            attended=True,
            log_level=10,
        ),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was_sent(message: object) -> None:
    assert received(message, *FROM_WORKER, *TO_WORKER, LookThrough) == message


PROBLEM = Problem("device_error", "found", None)
DEVICE = DeviceInfo("label", "maker", "model", "serial", 2**64 - 1, "slot", "maker", "maker", "library", (2, 41))
MECHANISM = MechanismFacts("CKM_RSA_PKCS", Algorithm.RS256, "hashed by the host", chosen=True)
PROTECTED = Protection(True, False, None, None, True)
CONTENTS = Contents(
    hidden=True,
    keys=(KeyFacts("pkcs11:id=%01", "key", b"\x01", "RSA", 2048, PROTECTED, problem=None),),
    certificates=(
        CertificateFacts("", b"", None, None, None, None, b"\x00", b"\xff", None, PROBLEM),
        CertificateFacts("", b"", "CN=app", MOMENT, MOMENT, -1, b"\x00", b"\xff", "pkcs11:id=%01", None),
    ),
)


@pytest.mark.parametrize(
    "facts",
    [
        ModuleFacts(None, "/x.so", None, (), PROBLEM),
        ModuleFacts(
            "name",
            "/x.so",
            LibraryFacts("maker", "library", "2.41"),
            (
                DeviceFacts(DEVICE, "pkcs11:token=label", PinState.LAST_TRY, pad=True, mechanisms=(MECHANISM,)),
                DeviceFacts(DEVICE, "pkcs11:", PinState.FINE, False, (), CONTENTS, PROBLEM),
            ),
        ),
    ],
)
def test_facts_arrive_as_they_were_sent(facts: ModuleFacts) -> None:
    assert received(facts, ModuleFacts) == facts


def test_a_message_that_arrives_in_parts_is_waited_for_until_it_is_complete(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = Channel(ends[0], Done), ends[1]
    data = frame(b'["Done", {"result": "AAAA"}]')
    for part in (data[:2], data[2:10]):
        theirs.sendall(part)
        with pytest.raises(TimeoutError):
            ours.receive(0)
    theirs.sendall(data[10:] + data)
    assert [ours.receive(), ours.receive()] == [Done(bytes(3))] * 2


def frame(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


OPENED = {"public_key": "1" * 512 + ":3", "algorithms": ["RS256"], "device": "a device"}
NO_MESSAGES = {
    "not JSON": b"\x80\x04K\x01.",
    "not UTF-8": b'["Opened", "\xff"]',
    "empty": b"",
    "nested deeply": b"[" * 100_000,
    "not an array": b'{"Opened": {}}',
    "not a number": b'["Calling", {"what": "", "seconds": NaN}]',
    "infinite": b'["Calling", {"what": "", "seconds": Infinity}]',
    "as good as infinite": b'["Calling", {"what": "", "seconds": 1e999}]',
    "400 digits": b'["Calling", {"what": "", "seconds": ' + b"9" * 400 + b"}]",
    "5000 digits": b'["Logged", {"logger": "x", "level": ' + b"9" * 5000 + b', "message": ""}]',
    **{
        what: json.dumps(message).encode()
        for what, message in {
            "of a kind that does not exist": ["exec", {}],
            "of a kind that is not a string": [["Opened"], {}],
            "of a kind for the other direction": ["PinAnswer", {"login": None}],
            "without fields": ["Opened"],
            "with an array of fields": ["Calling", [1]],
            "a field too few": ["Calling", {"what": ""}],
            "a field too many": ["Calling", {"what": "", "seconds": 1, "more": 1}],
            "text for a number": ["Calling", {"what": "", "seconds": "1"}],
            "a boolean for a number": ["Calling", {"what": "", "seconds": True}],
            "a number for text": ["Logged", {"logger": "x", "level": 1, "message": 1}],
            "a level beyond 64 bits": ["Logged", {"logger": "x", "level": 1 << 64, "message": ""}],
            "not base64": ["Done", {"result": "%"}],
            "an algorithm that does not exist": ["Opened", {**OPENED, "algorithms": ["none"]}],
            "an algorithm that is no text": ["Opened", {**OPENED, "algorithms": [[]]}],
            "a key that is too long": ["Opened", {**OPENED, "public_key": "1" * 5000 + ":3"}],
            "a key without an exponent": ["Opened", {**OPENED, "public_key": "ff"}],
            "an error that does not exist": ["Failed", {"error": ["exit", {"message": "", "hint": None}]}],
            "an error with other fields": ["Failed", {"error": ["pin_error", {"message": "", "args": []}]}],
            "an error without a code": ["Failed", {"error": {"message": "", "hint": None}}],
            "a reason that does not exist": [
                "AskForPin",
                {"request": {"device": "", "reason": "fun", "warning": None, "last_try": False, "pad": False}},
            ],
        }.items()
    },
}


@pytest.mark.parametrize("data", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_bytes_that_are_not_a_message_are_refused(data: bytes, ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].sendall(frame(data))
    with pytest.raises(Malformed) as caught:
        Channel(ends[0], *FROM_WORKER).receive(time.monotonic() + 60)
    assert (str(caught.value), caught.value.__context__, caught.value.__cause__) == ("", None, None)


def test_a_message_that_would_be_too_long_is_not_waited_for(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].sendall(struct.pack("!I", 2**32 - 1))
    with pytest.raises(Malformed):
        Channel(ends[0], Done).receive(time.monotonic() + 60)


def test_a_message_that_would_be_too_long_is_not_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(DeviceError, match="too long"):
        Channel(ends[1]).send(Sign(Algorithm.RS256, bytes(1 << 22)))
    Channel(ends[1]).send(Sign(Algorithm.RS256, b"short"))
    assert Channel(ends[0], Sign).receive() == Sign(Algorithm.RS256, b"short")


@given(
    data=st.binary(max_size=200) | st.text(alphabet='[]{}":,0123456789.eE-truefalsn\\ud', max_size=60).map(str.encode)
)
def test_random_bytes_are_refused(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(frame(data))
        with pytest.raises(Malformed):
            Channel(ours, *FROM_WORKER).receive(time.monotonic() + 60)


def test_a_pin_arrives_with_its_identity() -> None:
    pin = received(PinAnswer(Pin("4711", "inode 1", accepted=True)), PinAnswer).login
    assert (pin.reveal(), pin.identity, pin.accepted) == ("4711", "inode 1", True)


def test_the_repr_of_a_message_shows_no_pin() -> None:
    assert "4711" not in repr(PinAnswer(Pin("4711", "file")))


@pytest.mark.parametrize("path", sorted(Path(hsm_signer.__file__).parent.rglob("*.py")), ids=str)
def test_no_module_of_the_package_unpickles_or_evaluates_data(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            imported.add(node.func.id)
    assert imported.isdisjoint({"pickle", "marshal", "shelve", "dill", "multiprocessing", "eval", "exec"})
