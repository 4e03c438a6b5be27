"""The program of a worker: it opens one device for its parent, and does what it is asked."""

import contextlib
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from typing import NoReturn

from hsm_signer.device.channel import Calling, Channel, Failed, Logged, Open, Opened, PinGiven, PinWanted, Request
from hsm_signer.device.pin import Login, PinRequest
from hsm_signer.errors import DeviceError, HsmSignerError


def main() -> NoReturn:
    """Serve one parent until it is gone."""
    _die_with_parent(int(sys.argv[2]))
    # Ctrl-C goes to the whole foreground group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(EOFError, OSError):
        _serve(channel)
    # Finalizers call C_Finalize, which can hang.
    os._exit(0)


def _serve(channel: Channel) -> None:
    from hsm_signer.device.device import open_device
    from hsm_signer.device.lane import Lane

    calls = _Calls(channel)
    Lane.watchman = calls
    request: Open = channel.receive()
    logging.basicConfig(level=request.log_level, handlers=[_ParentLog(channel)])
    pin = _ParentPin(channel, request.source, request.attended)
    try:
        device = open_device(replace(request.reference, pin=pin))
        signer = device.signer()
        channel.send(Opened(signer.public_key, signer.algorithms, str(device.info)))
    except Exception as error:
        channel.send(Failed(_ours(error)))
        return
    while True:
        wanted: Request = channel.receive()
        calls.expected = True
        try:
            channel.send(wanted.perform(device, signer))
        except EOFError:
            raise
        except Exception as error:
            channel.send(Failed(_ours(error)))


def _ours(error: Exception) -> HsmSignerError:
    # Without its cause and traceback, which may hold what does not travel.
    if isinstance(error, HsmSignerError):
        return error.with_traceback(None)
    return DeviceError(f"The worker that serves the device failed ({type(error).__name__}).", hint="This is a bug.")


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to kill us when the parent ends: a module that hangs would keep us from noticing."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class _Calls:
    """Announces each call into the module but the one that a request begins with."""

    def __init__(self, channel: Channel) -> None:
        self.expected = False
        self._channel = channel

    def __call__(self, seconds: float) -> None:
        if self.expected:
            self.expected = False
        else:
            self._channel.send(Calling(seconds))


class _ParentLog(logging.Handler):
    """What is logged is the parent's to show, or not."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(Logged(record.name, record.levelno, record.getMessage()))


class _ParentPin:
    """The parent, as the source of the PIN."""

    def __init__(self, channel: Channel, description: str, attended: bool) -> None:
        self._channel = channel
        self.description = description
        self.identity = description
        self.attended = attended

    def __call__(self, request: PinRequest) -> Login:
        self._channel.send(PinWanted(request))
        given: PinGiven = self._channel.receive()
        self.identity = given.identity
        if given.error is not None:
            raise given.error
        return given.login
