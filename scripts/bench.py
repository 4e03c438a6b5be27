"""Compare what hsm-signer does with the least work that does the same: ratios of medians, measured alternately.

bench.py [ROUNDS]
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msal
import pkcs11
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from hsm_signer import HsmCredential
from hsm_signer.config.profile import profile_from_arguments
from hsm_signer.credential.client import resolve_client
from hsm_signer.credential.identity import open_identity
from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker.pool import open_worker
from hsm_signer.errors import DeviceGone, DeviceTimeout
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule

MESSAGE = b"x" * 400
AUDIENCE = "https://login.microsoftonline.com/bench.example/oauth2/v2.0/token"
LABEL = "bench"

# The reference for a cold start: open the module, log in, sign.
_TEN_LINES = """
import os, sys
import pkcs11
token = pkcs11.lib(sys.argv[1]).get_token(token_label="bench")
with token.open(user_pin=os.environ["BENCH_PIN"]) as session:
    key = next(iter(list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}))))
    signature = key.sign(b"x" * 400, mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS)
print(signature.hex())
"""


@dataclass(frozen=True)
class Bench:
    """A SoftHSM with one key, and how often to measure."""

    softhsm: SoftHsm
    key: SoftHsmKey
    rounds: int

    def access(self, module: Path | None = None, timeout: float = 10) -> KeyAccess:
        """Return how to get to the key."""
        return KeyAccess(
            uri=Pkcs11Uri.parse(self.key.uri),
            pin=FixedLogin(Pin(self.softhsm.pin), "the benchmark"),
            module=module or self.softhsm.module,
            module_environment=self.softhsm.environment,
            timeout=timeout,
        )


def main(rounds: int) -> None:
    """Measure everything, and print one line for each measurement."""
    with tempfile.TemporaryDirectory() as directory, SoftHsm(Path(directory), label=LABEL) as softhsm:
        bench = Bench(softhsm, softhsm.add_identity(), rounds)
        os.environ["BENCH_PIN"] = softhsm.pin
        cold(bench)
        cold_token(bench)
        imports(bench)
        cached_token(bench)
        # A software signature of 2048 bits takes some 600 us, verification and two thread hand-overs some 100 us. Every
        # real device takes milliseconds.
        one_process(bench, 2048, one=0.75, four=0.80)
        one_process(bench, 4096, one=0.90, four=0.90)
        two_workers(bench)
        overrun(bench)
        crash(bench)
        thousand_keys(bench)


def cold(bench: Bench) -> None:
    """`hsm-signer assertion` as a whole process, against ten lines of python-pkcs11."""
    softhsm = bench.softhsm
    program = [str(Path(sys.executable).parent / "hsm-signer"), "assertion", "--tenant", "bench.example"]
    program += ["--client-id", "bench", "--key", bench.key.uri, "--module", str(softhsm.module)]
    program += ["--pin-source", "env:BENCH_PIN"]
    environment = {"PATH": "/usr/bin:/bin", "BENCH_PIN": softhsm.pin, **softhsm.environment}
    environment["STATE_DIRECTORY"] = str(softhsm.directory)
    reference = [sys.executable, "-c", _TEN_LINES, str(softhsm.module)]

    def run(command: list[str]) -> Callable[[], None]:
        def once() -> None:
            subprocess.run(command, env=environment, check=True, capture_output=True)  # noqa: S603  # ours

        return once

    ours, theirs = in_turn(run(program), run(reference), bench.rounds)
    report(
        "hsm-signer assertion, cold process", milliseconds(ours), milliseconds(theirs), ours / theirs, "at most 1.90"
    )


_SIGNING = 0.6
_ROUND_TRIP = 0.2


def cold_token(bench: Bench) -> None:
    """`hsm-signer token` with a slow device and a server far away, against the slower of the two alone."""
    softhsm, tenant = bench.softhsm, "bench.example"
    program = [str(Path(sys.executable).parent / "hsm-signer"), "token", "--tenant", tenant, "--client-id", "bench"]
    program += ["--key", bench.key.uri, "--pin-source", "env:BENCH_PIN"]
    program += ["--scope", "https://graph.microsoft.com/.default"]
    with faulty(bench) as slow, EntraEmulator() as entra, far_away(entra.authority) as port:
        entra.register("bench", bench.key.certificate or b"", tenant=tenant)
        slow.rule("C_Sign", hang=_SIGNING)
        near, far = entra.authority, f"https://127.0.0.1:{port}"
        environment = {"PATH": "/usr/bin:/bin", "BENCH_PIN": softhsm.pin, **softhsm.environment, **slow.environment}
        environment["STATE_DIRECTORY"] = str(softhsm.directory)

        def run(module: Path, authority: str) -> Callable[[], None]:
            command = [*program, "--module", str(module), "--ca-bundle", str(entra.ca_file), "--authority", authority]
            command += ["--audience", entra.token_endpoint(tenant)]

            def once() -> None:
                subprocess.run(command, env=environment, check=True, capture_output=True)  # noqa: S603  # ours

            return once

        rounds = max(3, bench.rounds // 3)
        device, network = in_turn(run(slow.path, near), run(softhsm.module, far), rounds)
        both, _ = in_turn(run(slow.path, far), lambda: None, rounds)
    slower = max(device, network)
    report(
        "hsm-signer token, slow device, far server",
        milliseconds(both - _ROUND_TRIP / 2),
        milliseconds(slower),
        (both - _ROUND_TRIP / 2) / slower,
        "at most 1.15, half a round trip left out",
    )


@contextmanager
def far_away(url: str) -> Iterator[int]:
    """Relay to a server so that a round trip takes `_ROUND_TRIP` seconds, and return the port to connect to."""
    host, _, port = url.partition("://")[2].partition(":")

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await asyncio.sleep(_ROUND_TRIP)  # of the TCP handshake
            onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pump(reader, onward_writer), pump(onward_reader, writer))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError):
            while data := await reader.read(65536):
                await asyncio.sleep(_ROUND_TRIP / 2)
                writer.write(data)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(relay, "127.0.0.1", 0), loop).result()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def imports(bench: Bench) -> None:
    """A process that imports the credential, against one that imports the least a credential like it needs."""

    def run(statement: str) -> Callable[[], None]:
        def once() -> None:
            subprocess.run([sys.executable, "-c", statement], check=True)  # noqa: S603  # this Python

        return once

    least = "import pkcs11, httpx; from cryptography.hazmat.primitives.asymmetric import padding"
    ours, theirs = in_turn(run("from hsm_signer import HsmCredential"), run(least), bench.rounds)
    report(
        "from hsm_signer import HsmCredential", milliseconds(ours), milliseconds(theirs), ours / theirs, "at most 1.20"
    )


def cached_token(bench: Bench) -> None:
    """A token from memory, requested as the Azure SDKs do, against MSAL's cache of the same token."""
    tenant, scope, batch = "bench.example", "https://graph.microsoft.com/.default", range(1000)
    # requests, which MSAL uses, prefers these to the CA file that it is given.
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        os.environ.pop(name, None)
    with EntraEmulator() as entra:
        entra.register("bench", bench.key.certificate or b"", tenant=tenant)
        with HsmCredential(
            tenant,
            "bench",
            bench.key.uri,
            module=bench.softhsm.module,
            module_environment=bench.softhsm.environment,
            pin_source="env:BENCH_PIN",
            pin_record=False,
            authority=entra.authority,
            ca_bundle=entra.ca_file or "",
        ) as credential:
            application = msal.ConfidentialClientApplication(
                "bench",
                client_credential={"client_assertion": credential.assertion},
                authority=f"{entra.authority}/{tenant}",
                instance_discovery=False,
                verify=str(entra.ca_file),
            )

            def ours() -> None:
                for _ in batch:
                    credential.get_token(scope)

            def theirs() -> None:
                for _ in batch:
                    application.acquire_token_for_client([scope])

            mine, reference = (seconds / len(batch) for seconds in in_turn(ours, theirs, bench.rounds))
    report(
        "a cached token, against MSAL",
        f"{mine * 1e6:.1f} us",
        f"{reference * 1e6:.1f} us",
        mine / reference,
        "at most 0.33",
    )


def one_process(bench: Bench, bits: int, *, one: float, four: float) -> None:
    """Whole assertions against bare signatures, on one key and in one session: SoftHSM's login is the process's.

    Args:
        one: the ratio promised to one caller.
        four: that promised to four.
    """
    key = bench.softhsm.add_identity(f"rsa{bits}", bits.to_bytes(2, "big"), bits=bits)
    profile = profile_from_arguments(
        {
            "tenant": "bench.example",
            "client_id": "bench",
            "key": key.uri,
            "module": str(bench.softhsm.module),
            "module_environment": bench.softhsm.environment,
            "pin_source": "env:BENCH_PIN",
            "pin_record": False,
        }
    )
    identity = open_identity(profile, resolve_client(profile), profile.key[0])
    session = pkcs11.lib(str(bench.softhsm.module)).get_token(token_label=LABEL).open()
    handle = session.get_key(object_class=ObjectClass.PRIVATE_KEY, id=key.id)
    assert isinstance(handle, pkcs11.PrivateKey)  # noqa: S101  # for the type checker
    batch, callers = range(48), 4

    def ours() -> None:
        for _ in batch:
            identity.assertion(AUDIENCE)

    def theirs() -> None:
        for _ in batch:
            handle.sign(MESSAGE, mechanism=Mechanism.SHA256_RSA_PKCS)

    def ours_by_some() -> None:
        def part(_: int) -> None:
            for _ in range(len(batch) // callers):
                identity.assertion(AUDIENCE)

        list(pool.map(part, range(callers)))

    def measure(where: str, ours: Callable[[], None], promise: float) -> None:
        mine, reference = in_turn(ours, theirs, bench.rounds)
        report(
            f"assertions a second, {bits}, {where}",
            f"{len(batch) / mine:.0f} /s",
            f"{len(batch) / reference:.0f} /s",
            reference / mine,
            f"at least {promise:.2f}",
        )

    measure("one caller", ours, one)
    with ThreadPoolExecutor(callers) as pool:
        measure(f"{callers} callers", ours_by_some, four)
    identity.close()


def two_workers(bench: Bench) -> None:
    """Two worker processes, verification included, against two threads of C with OS locking."""
    source = Path(__file__).with_name("bench_threads.c")
    program = bench.softhsm.directory / "bench_threads"
    compiler = shutil.which("gcc") or "gcc"
    subprocess.run([compiler, "-O2", *_p11_kit(), "-o", program, source, "-ldl", "-lpthread"], check=True)  # noqa: S603
    seconds = 2.0
    command = [str(program), str(bench.softhsm.module), LABEL, str(seconds)]
    environment = {**os.environ, **bench.softhsm.environment}

    def theirs() -> float:
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603
        return float(done.stdout)

    with open_worker(bench.access(), workers=2) as signer, ThreadPoolExecutor(2) as pool:

        def sign_until(end: float) -> int:
            count = 0
            while time.monotonic() < end:
                signer.sign(Algorithm.RS256, MESSAGE)
                count += 1
            return count

        def ours() -> float:
            end = time.monotonic() + seconds
            return sum(pool.map(sign_until, [end, end])) / seconds

        ours()
        rates = [(ours(), theirs()) for _ in range(max(3, bench.rounds // 2))]
    mine, reference = (statistics.median(side) for side in zip(*rates, strict=True))
    report(
        "signatures a second, two workers", f"{mine:.0f} /s", f"{reference:.0f} /s", mine / reference, "at least 0.75"
    )


def overrun(bench: Bench) -> None:
    """How long after its deadline a hanging call returns, in this process and in a worker."""
    with faulty(bench) as module:
        with open_worker(bench.access(Path(module.path), timeout=1)) as signer:
            module.rule("C_Sign", hang=float("inf"))
            late = []
            for _ in range(3):
                with suppress(DeviceTimeout):
                    started = time.monotonic()
                    signer.sign(Algorithm.RS256, MESSAGE)
                late.append(time.monotonic() - started - 1)
                module.clear()
                signer.sign(Algorithm.RS256, MESSAGE)
                module.rule("C_Sign", hang=float("inf"))
            module.clear()
    say("deadline overrun noticed, worker", f"{statistics.median(late):.3f} s after it", "at most 0.5 s")


def crash(bench: Bench) -> None:
    """How long after a crash a new worker has signed."""
    with faulty(bench) as module, open_worker(bench.access(Path(module.path))) as signer:
        taken = []
        for _ in range(3):
            module.rule("C_Sign", crash=True, times=1)
            with suppress(DeviceGone):
                signer.sign(Algorithm.RS256, MESSAGE)
            started = time.monotonic()
            signer.sign(Algorithm.RS256, MESSAGE)
            taken.append(time.monotonic() - started)
            module.clear()
    say("a new worker has signed", f"{statistics.median(taken):.3f} s after a crash", "at most 2 s")


def thousand_keys(bench: Bench) -> None:
    """Find one key among a thousand, against the bare search call."""
    with SoftHsm(label="crowd", pin=bench.softhsm.pin) as crowd:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        crowd.import_key(key, "key", b"\x00\x00")
        access = KeyAccess(
            uri=Pkcs11Uri.parse("pkcs11:token=crowd;id=%01%F4"),
            pin=FixedLogin(Pin(crowd.pin), "the benchmark"),
            module=crowd.module,
            module_environment=crowd.environment,
            writable=True,
        )
        with open_device(access) as device:
            device.call("storing keys", lambda session: _store_copies(session, key, 1000))
            template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: b"\x01\xf4"}

            def theirs() -> None:
                device.call("searching", lambda session: list(session.get_objects(template)))

            def ours() -> None:
                open_signer(device)

            mine, raw = in_turn(ours, theirs, bench.rounds)
    report("one key among 1,000", milliseconds(mine), milliseconds(raw), mine / raw, "at most 1.50")


def _store_copies(session: pkcs11.Session, key: rsa.RSAPrivateKey, count: int) -> None:
    numbers = key.private_numbers()

    def number(value: int) -> bytes:
        return value.to_bytes((value.bit_length() + 7) // 8, "big")

    for index in range(1, count):
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.PRIVATE_KEY,
                Attribute.KEY_TYPE: KeyType.RSA,
                Attribute.TOKEN: True,
                Attribute.PRIVATE: True,
                Attribute.SIGN: True,
                Attribute.ID: index.to_bytes(2, "big"),
                Attribute.LABEL: "key",
                Attribute.MODULUS: number(numbers.public_numbers.n),
                Attribute.PUBLIC_EXPONENT: number(numbers.public_numbers.e),
                Attribute.PRIVATE_EXPONENT: number(numbers.d),
                Attribute.PRIME_1: number(numbers.p),
                Attribute.PRIME_2: number(numbers.q),
                Attribute.EXPONENT_1: number(numbers.dmp1),
                Attribute.EXPONENT_2: number(numbers.dmq1),
                Attribute.COEFFICIENT: number(numbers.iqmp),
            }
        )


@contextmanager
def faulty(bench: Bench) -> Iterator[FaultyModule]:
    """Put the module that misbehaves on command in front of the SoftHSM."""
    softhsm = bench.softhsm
    with FaultyModule(softhsm.module, softhsm.environment, pin=softhsm.pin) as module:
        yield module


def in_turn(ours: Callable[[], None], reference: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Return the median seconds of each, run alternately so that noise falls on both."""
    times: dict[Callable[[], None], list[float]] = {ours: [], reference: []}
    for run in times:
        run()
    for _ in range(rounds):
        for run, taken in times.items():
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
    return statistics.median(times[ours]), statistics.median(times[reference])


def milliseconds(seconds: float) -> str:
    """Show a duration."""
    return f"{seconds * 1000:.1f} ms"


def report(what: str, ours: str, reference: str, ratio: float, promise: str) -> None:
    """Print a ratio."""
    say(what, f"{ours:>10}  reference {reference:>10}  ratio {ratio:.2f}", promise)


def say(what: str, result: str, promise: str) -> None:
    """Print a line."""
    print(f"{what:42} {result:46} ({promise})", flush=True)


def _p11_kit() -> list[str]:
    return ["-I/usr/include/p11-kit-1"]


main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
