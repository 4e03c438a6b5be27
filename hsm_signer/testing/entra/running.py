"""What exists only between the emulator's start and its stop: `Running`."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import trustme
from joserfc.jwk import RSAKey
from starlette.types import ASGIApp

from hsm_signer.testing.entra.loopback import LoopbackServer


@dataclass(frozen=True)
class Running:
    """A server, and the keys made for it.

    Args:
        server: where it listens.
        signing_key: what access tokens are signed with.
        ca_file: PEM of the CA to trust, or None for plain http.
        files: what to take away in the end.
    """

    server: LoopbackServer
    signing_key: RSAKey
    ca_file: Path | None
    files: ExitStack

    @classmethod
    def prepare(cls, application: ASGIApp, *, https: bool, host: str, port: int) -> Self:
        """Make the keys and bind the port. Raises ConfigError when it is not to be had."""
        with ExitStack() as undo:
            ca_file = certificate = None
            if https:
                directory = undo.enter_context(TemporaryDirectory(prefix="hsm-signer-emulator-"))
                ca_file, certificate = _make_certificates(Path(directory), host)
            signing_key = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
            server = LoopbackServer(application, host=host, port=port, certificate=certificate)
            return cls(server, signing_key, ca_file, undo.pop_all())

    def stop(self) -> None:
        """Close every connection and take the files away."""
        self.server.stop()
        self.files.close()


def _make_certificates(directory: Path, host: str) -> tuple[Path, Path]:
    """Return the CA's file, and the file of the server's key and chain."""
    ca = trustme.CA()
    ca_file, certificate = directory / "ca.pem", directory / "server.pem"
    ca.cert_pem.write_to_path(ca_file)
    ca.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(certificate)
    return ca_file, certificate
