"""Ratios of what hsm-signer does to the least that python-pkcs11 needs for it; medians, both sides in turn.

bench.py [ROUNDS]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pkcs11
from pkcs11 import Attribute, Mechanism, ObjectClass

from hsm_signer.config import profile_from_arguments
from hsm_signer.identity import open_identity
from hsm_signer.testing import SoftHsm

# The reference for a cold start: open the module, log in, sign.
_TEN_LINES = """
import sys
import pkcs11
module, pin = sys.argv[1:]
token = pkcs11.lib(module).get_token(token_label="bench")
with token.open(user_pin=pin) as session:
    key = next(iter(list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}))))
    signature = key.sign(b"x" * 400, mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS)
print(signature.hex())
"""


def main(rounds: int) -> None:
    """Measure everything and print a line each."""
    with tempfile.TemporaryDirectory() as directory, SoftHsm(Path(directory), label="bench") as softhsm:
        key = softhsm.add_identity()
        cold = _cold(softhsm, key.uri, rounds)
        _report("hsm-signer assertion, cold process", *cold, "at most 2.00")
        warm = _warm(softhsm, key.uri, rounds)
        _report("assertions a second, one process", *warm, "at least 0.90", per_second=True)


def _cold(softhsm: SoftHsm, uri: str, rounds: int) -> tuple[float, float]:
    program = [str(Path(sys.executable).parent / "hsm-signer"), "assertion", "--tenant", "bench.example"]
    program += ["--client-id", "bench", "--key", uri, "--module", str(softhsm.module), "--pin-source", "env:BENCH_PIN"]
    environment = {"PATH": "/usr/bin:/bin", "BENCH_PIN": softhsm.pin, **softhsm.environment}
    environment["STATE_DIRECTORY"] = str(softhsm.directory)
    reference = [sys.executable, "-c", _TEN_LINES, str(softhsm.module), softhsm.pin]

    def run(command: list[str]) -> Callable[[], None]:
        return lambda: discard(subprocess.run(command, env=environment, check=True, capture_output=True))  # noqa: S603

    return _in_turn(run(program), run(reference), rounds)


def _warm(softhsm: SoftHsm, uri: str, rounds: int) -> tuple[float, float]:
    """Both sides in one process, on one key, and in one session: SoftHSM's login is the process's."""
    profile = profile_from_arguments(
        {
            "tenant": "bench.example",
            "client_id": "bench",
            "key": uri,
            "module": str(softhsm.module),
            "module_environment": softhsm.environment,
            "pin_source": "env:BENCH_PIN",
            "pin_record": False,
        }
    )
    os.environ["BENCH_PIN"] = softhsm.pin
    identity = open_identity(profile, profile.key[0])
    session = pkcs11.lib(str(softhsm.module)).get_token(token_label="bench").open()  # noqa: S106  # a label
    (handle,) = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
    message = b"x" * len(identity.assertion("https://login.microsoftonline.com/bench.example/oauth2/v2.0/token"))
    batch = range(50)

    def ours() -> None:
        for _ in batch:
            identity.assertion("https://login.microsoftonline.com/bench.example/oauth2/v2.0/token")

    def reference() -> None:
        for _ in batch:
            handle.sign(message, mechanism=Mechanism.SHA256_RSA_PKCS)

    mine, theirs = _in_turn(ours, reference, rounds)
    identity.close()
    return len(batch) / mine, len(batch) / theirs


def _in_turn(ours: Callable[[], None], reference: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Return the median seconds of each, run alternately so that noise falls on both."""
    times: dict[Callable[[], None], list[float]] = {ours: [], reference: []}
    for run in (ours, reference):
        run()
    for _ in range(rounds):
        for run, taken in times.items():
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
    return statistics.median(times[ours]), statistics.median(times[reference])


def _report(what: str, ours: float, reference: float, promise: str, *, per_second: bool = False) -> None:
    show = (lambda value: f"{value:8.0f} /s") if per_second else (lambda value: f"{value * 1000:8.1f} ms")
    print(f"{what:40} {show(ours)}  reference {show(reference)}  ratio {ours / reference:.2f}  ({promise})", flush=True)


def discard(result: object) -> None:
    """Discard a result."""


main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
