"""The program of a worker: open one device for the parent, and serve the parent's requests."""

import contextlib
import logging
import os
from collections.abc import Callable
from typing import NoReturn, TypeVar

from hsm_signer.device.channel import Channel
from hsm_signer.device.child import parent_channel
from hsm_signer.device.lane import Lane, Slow, log_slow
from hsm_signer.device.pin.pin import Login, PinRequest
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
    Request,
    Sign,
)
from hsm_signer.errors import DeviceError, HsmSignerError

T = TypeVar("T")


def main() -> NoReturn:
    """Serve the parent until it closes the channel."""
    channel = parent_channel(Open, PinAnswer, Sign, ReadCertificate)
    with contextlib.suppress(EOFError, OSError):
        _serve(channel)
    # Finalizers call C_Finalize, which can hang.
    os._exit(0)


def _serve(channel: Channel) -> None:
    from hsm_signer.device.access import KeyAccess
    from hsm_signer.device.device import open_device
    from hsm_signer.device.signer import open_signer

    lane = _AnnouncedLane(channel)
    request: Open = channel.receive()
    logging.basicConfig(level=request.log_level, handlers=[_ParentLog(channel)])
    access = KeyAccess(
        uri=request.uri,
        pin=_ParentPin(channel, request.source, request.attended),
        module=request.module,
        module_environment=request.module_environment,
        timeout=request.timeout,
        allow_last_try=request.allow_last_try,
        writable=request.writable,
        pin_record=request.pin_record,
    )
    try:
        # No second login: the PIN source may have changed by then. The parent starts another worker for that.
        device = open_device(access, recover=False, lane=lane)
        signer = open_signer(device)
        always = signer.key.always_authenticate
        channel.send(Opened(signer.public_key, signer.algorithms, str(device.info), always))
    except Exception as error:
        channel.send(Failed(_ours(error)))
        return
    while True:
        wanted: Request = channel.receive()
        lane.is_expected = True
        try:
            channel.send(Done(wanted.perform(device, signer)))
        except EOFError:
            raise
        except Exception as error:
            channel.send(Failed(_ours(error)))


def _ours(error: Exception) -> HsmSignerError:
    if isinstance(error, HsmSignerError):
        return error
    return DeviceError(
        f"The worker that serves the device failed ({type(error).__name__}).",
        hint="This is a bug in hsm-signer. Please report it.",
    )


class _AnnouncedLane(Lane):
    """Makes each call on the thread that asks for it, and announces it: the parent kills this process if it overruns.

    Attributes:
        is_expected: whether the parent expects the next call without an announcement: the first of its own request.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__("the module of this worker")
        self.is_expected = False
        self._channel = channel

    def call(self, what: str, function: Callable[[], T], timeout: float, slow: Slow = log_slow) -> T:
        self.announce(what, timeout)
        return function()

    def announce(self, what: str, seconds: float) -> None:
        if self.is_expected:
            self.is_expected = False
        else:
            self._channel.send(Calling(what, seconds))


class _ParentLog(logging.Handler):
    """Sends log records to the parent, which decides what to show."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(Logged(record.name, record.levelno, record.getMessage()))


class _ParentPin:
    """The parent, as the source of the PIN."""

    def __init__(self, channel: Channel, description: str, attended: bool) -> None:
        self._channel = channel
        self.description = self.identity = description
        self.attended = attended

    def __call__(self, request: PinRequest) -> Login:
        self._channel.send(AskForPin(request))
        given: PinAnswer = self._channel.receive()
        return given.login
