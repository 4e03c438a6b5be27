"""azure-identity's WorkloadIdentityCredential reads our file, even while it is being replaced."""

import os
import shlex
import stat
import threading
from pathlib import Path

import anyio
import pytest
from azure.core.pipeline.transport import AsyncioRequestsTransport
from azure.identity import WorkloadIdentityCredential
from azure.identity.aio import WorkloadIdentityCredential as AsyncWorkloadIdentityCredential
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt as jose
from joserfc.jwk import RSAKey

from hsm_signer.jwt.assertion import KEPT_BY_READERS
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.listener import Listener, ready
from tests.support.names import CLIENT, GRAPH, TENANT
from tests.support.program import Program, options, program_with


@pytest.fixture
def keeper(softhsm: SoftHsm, key: SoftHsmKey, tmp_path: Path, systemd: Listener) -> Program:
    return program_with(softhsm, tmp_path, **systemd.environment)


@pytest.fixture
def arguments(softhsm: SoftHsm, key: SoftHsmKey, entra: EntraEmulator, assertion_file: Path) -> list[str]:
    """The command that keeps the file up to date, and replaces it every second."""
    settings = {
        "tenant": TENANT,
        "client_id": CLIENT,
        "key": key.uri,
        "module": str(softhsm.module),
        "pin_source": "env:DEVICE_PIN",
        "authority": entra.authority,
        "lifetime": str(KEPT_BY_READERS + 2),
        "interval": "1",
    }
    return ["assertion-file", str(assertion_file), *options(settings)]


@pytest.fixture
def environment(keeper: Program, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that --print-env prints, for azure-identity to find."""
    for line in keeper(*arguments, "--print-env").stdout.splitlines():
        name, _, value = shlex.split(line)[1].partition("=")
        monkeypatch.setenv(name, value)


def public_key(key: SoftHsmKey) -> RSAKey:
    return RSAKey.import_key(key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


class Reader(threading.Thread):
    """Reads a file as fast as it can, and keeps every distinct text and mode."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.seen: set[tuple[str, int]] = set()
        self.stop = threading.Event()
        self._file = file

    def run(self) -> None:
        while not self.stop.is_set():
            with self._file.open() as file:
                self.seen.add((file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)))


@pytest.mark.usefixtures("environment")
class TestWorkloadIdentityCredential:
    def test_it_gets_tokens_while_the_file_is_replaced_and_never_reads_half_a_file(
        self,
        keeper: Program,
        arguments: list[str],
        entra: EntraEmulator,
        systemd: Listener,
        assertion_file: Path,
        key: SoftHsmKey,
    ) -> None:
        posted: set[str] = set()
        with keeper.start(*arguments):
            systemd.wait_for(ready)
            reader = Reader(assertion_file)
            reader.start()
            try:
                while len(posted) < 3:
                    # Each credential reads the file once, and then not for ten minutes.
                    with WorkloadIdentityCredential(
                        connection_verify=str(entra.ca_file), disable_instance_discovery=True
                    ) as credential:
                        credential.get_token(GRAPH)
                    posted.add(entra.requests[-1].form["client_assertion"])
            finally:
                reader.stop.set()
                reader.join()
        assert {request.status for request in entra.requests} == {200}
        assert len(reader.seen) >= 3
        assert {mode for _, mode in reader.seen} == {0o600}
        assert posted <= {text for text, _ in reader.seen} | {assertion_file.read_text()}
        for text, _ in reader.seen:
            jose.decode(text, public_key(key), algorithms=["RS256"])  # raises unless the assertion is complete

    def test_the_asynchronous_one_gets_a_token(
        self, keeper: Program, arguments: list[str], entra: EntraEmulator, assertion_file: Path
    ) -> None:
        assert keeper(*arguments, "--once").status == 0

        async def main() -> str:
            # By default it requires aiohttp.
            transport = AsyncioRequestsTransport(connection_verify=str(entra.ca_file))
            async with AsyncWorkloadIdentityCredential(
                disable_instance_discovery=True, transport=transport
            ) as credential:
                return (await credential.get_token(GRAPH)).token

        assert anyio.run(main).count(".") == 2
        assert entra.requests[-1].form["client_assertion"] == assertion_file.read_text()
