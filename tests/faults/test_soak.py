"""Several seconds of random faults, always with the right PIN: the program recovers by itself when they end."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hsm_signer import HsmCredential
from hsm_signer.errors import DeviceError, DeviceTimeout, HsmSignerError
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule, LoginSeen, Rv

THREADS = 8
FOREVER = float("inf")
UNKNOWN = [Rv.DEVICE_ERROR, Rv.DEVICE_REMOVED, Rv.GENERAL_ERROR, Rv.FUNCTION_FAILED]
LOST = [*UNKNOWN, Rv.SESSION_HANDLE_INVALID, Rv.USER_NOT_LOGGED_IN]


@pytest.fixture
def credential(faulty: FaultyModule, key: SoftHsmKey, softhsm: SoftHsm, tmp_path: Path) -> Iterator[HsmCredential]:
    file = tmp_path / "pin"
    file.write_text(softhsm.pin)
    file.chmod(0o600)
    with HsmCredential(
        "contoso.example",
        "8f1c1f3e-7a58-4f0a-8f1e-3f5ad2a3a001",
        key.uri,
        isolated=True,
        module=faulty.path,
        module_environment=faulty.environment,
        pin_source=f"file:{file}",
        device_timeout=2,
    ) as credential:
        yield credential


def order_faults(faulty: FaultyModule, chance: random.Random) -> None:
    """Have most of the next logins and signatures fail, each in its own way."""
    for call in range(12):
        if chance.random() < 0.6:
            faulty.rule("C_Login", rv=chance.choice(LOST), after_forward=chance.random() < 0.5, times=1, skip=call)
    for call in range(40):
        match chance.choices(["error", "corrupt", "hang", "crash", "none"], [5, 4, 1, 2, 8])[0]:
            case "error":
                faulty.rule("C_Sign", rv=chance.choice(LOST), times=1, skip=call)
            case "corrupt":
                faulty.rule("C_Sign", corrupt=True, times=1, skip=call)
            case "hang":
                faulty.rule("C_Sign", hang=FOREVER, times=1, skip=call)
            case "crash":
                faulty.rule("C_Sign", crash=True, times=1, skip=call)


def use_for(seconds: float, credential: HsmCredential) -> Counter[str]:
    """Use the credential in several threads; return counts of assertions, and of errors by their codes."""
    end, seen, lock = time.monotonic() + seconds, Counter[str](), threading.Lock()

    def use(number: int) -> None:
        while time.monotonic() < end:
            try:
                credential.assertion()
                outcome = "assertion"
            except (DeviceError, DeviceTimeout) as error:
                outcome = error.code
            with lock:
                seen[outcome] += 1

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(use, range(THREADS)))
    return seen


def recover(credential: HsmCredential, seconds: float) -> None:
    """Use the credential until it works again."""
    end = time.monotonic() + seconds
    while True:
        try:
            credential.assertion()
        except HsmSignerError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("seed", [4, 5])
def test_a_program_recovers_by_itself_when_the_faults_end(
    seed: int, credential: HsmCredential, faulty: FaultyModule
) -> None:
    credential.assertion()
    order_faults(faulty, random.Random(seed))  # noqa: S311  # nothing to guess
    seen = use_for(5, credential)
    assert seen["assertion"] > 0
    assert seen.total() > seen["assertion"]
    logins: list[LoginSeen] = faulty.logins()
    faulty.clear()
    recover(credential, 60)
    with ThreadPoolExecutor(THREADS) as pool:
        assert len(list(pool.map(lambda _: credential.assertion(), range(THREADS)))) == THREADS
    logins += faulty.logins()
    # The first login, and then at most one for each worker.
    assert all(login.right for login in logins)
    assert max(Counter(login.pid for login in logins).values()) == 1
