"""`Running`: what exists between the start and the stop of the emulator."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from joserfc.jwk import RSAKey
from starlette.types import ASGIApp

from hsm_signer.testing.entra.loopback import LoopbackServer
from hsm_signer.testing.entra.tls import make_certificates, published


@dataclass(frozen=True)
class Running:
    """A running server and its keys.

    Args:
        server: where it listens.
        signing_key: what access tokens are signed with.
        ca_file: PEM of the CA to trust, or None for plain http.
        files: removes what was written.
    """

    server: LoopbackServer
    signing_key: RSAKey
    ca_file: Path | None
    files: ExitStack

    @classmethod
    def prepare(cls, application: ASGIApp, *, https: bool, host: str, port: int, ca_file: Path | None = None) -> Self:
        """Generate the keys, bind the port and write the CA's file.

        Args:
            ca_file: where to write the CA's certificate for https, or None for a temporary directory.

        Raises:
            ConfigError: the port is not available, or no emulator wrote the file `ca_file`.
            OutputError: `ca_file` cannot be written.
        """
        with ExitStack() as undo:
            directory = Path(undo.enter_context(TemporaryDirectory(prefix="hsm-signer-emulator-")))
            ca, certificate = make_certificates(directory, host) if https else (None, None)
            signing_key = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
            server = LoopbackServer(application, host=host, port=port, certificate=certificate)
            undo.callback(server.close)
            if ca is not None and ca_file is None:
                ca_file = directory / "ca.pem"
                ca_file.write_bytes(ca)
            elif ca is not None and ca_file is not None:
                # After the port is bound: another emulator that has it may have written this file.
                undo.enter_context(published(ca, ca_file))
            return cls(server, signing_key, ca_file, undo.pop_all())

    def stop(self) -> None:
        """Close every connection and remove the files."""
        self.server.stop()
        self.files.close()
