"""The whole life of a key through the command line: from an empty device to a token, then two rotations.

openssl verifies every certificate and request on the way.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hsm_signer
from hsm_signer.testing import EntraEmulator, SoftHsm
from tests.support.fixtures import Running
from tests.support.names import CLIENT, TENANT
from tests.support.stacks.tpm import TpmStack

TOKEN = "life"  # what PKCS#11 calls a token: the device


@dataclass(frozen=True)
class Story:
    """An empty device, Entra, and the program with a profile for both."""

    directory: Path
    environment: Mapping[str, str]
    entra: EntraEmulator

    def __call__(self, *arguments: str) -> str:
        """Run the program, which must succeed, and return what it prints."""
        command = [sys.executable, "-c", "from hsm_signer.cli import main; main()", *arguments]
        done = subprocess.run(command, cwd=self.directory, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def openssl(self, *arguments: str) -> str:
        """Run openssl, which must succeed."""
        done = subprocess.run(["openssl", *arguments], cwd=self.directory, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def contents(self) -> dict[str, Any]:
        """Return the device's contents."""
        (device,) = json.loads(self("device", "show", "--login", "--key", f"pkcs11:token={TOKEN}", "-o", "json"))[
            "devices"
        ]
        contents: dict[str, Any] = device["contents"]
        return contents


@pytest.fixture(params=["softhsm", "tpm"])
def story(request: pytest.FixtureRequest, running: Running, tmp_path: Path) -> Iterator[Story]:
    with SoftHsm(label=TOKEN) as softhsm, EntraEmulator(https=False) as entra:
        if request.param == "tpm":
            tpm = running("tpm")
            assert isinstance(tpm, TpmStack)
            tpm.add_token(TOKEN)
            module, environment, pin = tpm.module, dict(tpm.environment), tpm.pin
        else:
            module, environment, pin = softhsm.module, softhsm.environment, softhsm.pin
        (tmp_path / "config.toml").write_text(
            f"""[profile.default]
            tenant = "{TENANT}"
            client_id = "{CLIENT}"
            authority = "{entra.authority}"
            scope = "https://graph.microsoft.com/.default"
            key = "file:key.json"
            module = "{module}"
            pin_source = "env:DEVICE_PIN"
            """
        )
        yield Story(
            tmp_path,
            {
                "PATH": "/usr/bin:/bin",
                "HOME": str(tmp_path),
                "PYTHONPATH": str(Path(hsm_signer.__file__).parents[1]),
                "HSM_SIGNER_CONFIG": str(tmp_path / "config.toml"),
                "DEVICE_PIN": pin,
                **environment,
            },
            entra,
        )


@pytest.mark.timeout(240)  # a TPM takes seconds for each key
def test_a_key_is_generated_certified_registered_and_rotated_twice_and_nothing_is_left_over(story: Story) -> None:
    assert story.contents()["keys"] == []
    uri = story("key", "generate", "--key", f"pkcs11:token={TOKEN}", "--label", "app").strip()

    story("certificate", "request", "--key", uri, "--subject", "CN=app", "--output-file", "app.csr")
    verdict = story.openssl("req", "-in", "app.csr", "-verify", "-noout", "-subject", "-nameopt", "RFC2253")
    assert "subject=CN=app" in verdict
    assert "verify OK" in verdict  # openssl exits with 0 whatever it finds
    story("certificate", "create", "--key", uri, "--subject", "CN=app", "--output-file", "app.pem")
    registered = [(story.directory / "app.pem").read_bytes()]
    story.entra.register(CLIENT, registered[0], tenant=TENANT)
    assert story("token", "--key", uri)

    for begin in (["--current", uri], []):
        story("rotate", "--now", *begin, "--delete-old-key", "--grace", "0")
        assert story("token")
        registered.append(story("certificate", "export").encode())
    assert len({*registered}) == 3
    for number, pem in enumerate(registered):
        file = story.directory / f"{number}.pem"
        file.write_bytes(pem)
        story.openssl(
            "verify", "-x509_strict", "-check_ss_sig", "-CAfile", file.name, "-purpose", "sslclient", file.name
        )

    contents = story.contents()
    (key,), (certificate,) = contents["keys"], contents["certificates"]
    (credential,) = story.entra.key_credentials(CLIENT, tenant=TENANT)
    assert json.loads((story.directory / "key.json").read_text())["key_id"] == credential.key_id
    assert certificate["sha1"] == credential.thumbprints["x5t"].hex()
    assert certificate["key"] == key["uri"]
    assert key["never_extractable"]
