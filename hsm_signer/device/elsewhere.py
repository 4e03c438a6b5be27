"""Ask a module something in a process of its own, which can hang or crash without us."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from hsm_signer.device.child import ChildProcess
from hsm_signer.device.lane import Slow, log_slow
from hsm_signer.device.wire import Malformed
from hsm_signer.errors import DeviceError, DeviceTimeout

T = TypeVar("T")

_START = 5.0
"""Seconds it may take besides a call into the module: starting Python and importing."""


def ask_elsewhere(
    program: str,
    question: object,
    kind: type[T],
    module: Path,
    environment: Mapping[str, str],
    timeout: float,
    slow: Slow = log_slow,
) -> T:
    """Return the answer of one of our programs, run in a process that loads `module`.

    Args:
        program: the module of this package that has its `main`.
        question: the one message that it gets.
        kind: of the answer.
        environment: variables set before the module loads.
        timeout: seconds one call into the module may take. A few seconds later the process is killed.
        slow: shows a person that it takes longer than a moment.

    Raises:
        DeviceTimeout: it did not answer in time.
        DeviceError: it crashed, or its answer is invalid.
    """
    deadline = time.monotonic() + timeout + _START
    child = ChildProcess(program, environment, kind)
    try:
        with contextlib.suppress(OSError):
            child.channel.send(question, timeout)
        answer: T = child.channel.receive_with_cue(deadline, "looking for devices", slow)
        return answer
    except TimeoutError:
        raise DeviceTimeout(
            f"{module} did not return within {timeout:g} s. Its process was killed.",
            hint="Check that its devices are plugged in and its daemon is running. For a slow device, set a longer "
            "--device-timeout.",
        ) from None
    except EOFError:
        raise DeviceError(
            f"{module} crashed its process ({child.describe_exit()}).",
            hint="Look for an update of the vendor's library. The other modules are not affected.",
        ) from None
    except Malformed:
        raise DeviceError(
            f"The process that loaded {module} sent an invalid answer. It was killed.",
            hint="The module is faulty or hostile. The other modules are not affected.",
        ) from None
    finally:
        child.kill()
