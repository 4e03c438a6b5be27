"""SoftHSM as a device of the matrix, with a token directory that can be moved away."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.testing import SoftHsm

from . import StackKey

_LABEL = "device tests"

# In a separate process: the module reads its configuration once, and the tests use others.
_ADD_ALWAYS_AUTHENTICATE_KEY = """
import os, sys
import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag
from pkcs11.util.rsa import encode_rsa_public_key

module, token, label, key_id = sys.argv[1:]
session = pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=os.environ["STACK_PIN"])
public, _ = session.generate_keypair(
    KeyType.RSA,
    2048,
    id=bytes.fromhex(key_id),
    label=label,
    store=True,
    capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
    private_template={
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.ALWAYS_AUTHENTICATE: True,
    },
)
sys.stdout.buffer.write(encode_rsa_public_key(public))
"""


class SoftHsmStack:
    """A SoftHSM. It never locks; it only remembers that a wrong PIN was sent since the last right one."""

    def __init__(self) -> None:
        self.name = "softhsm"
        self.pin = "12345678"
        self.wrong_pin = "87654321"
        self.has_pss = True
        self.locks = False
        self._softhsm = SoftHsm(label=_LABEL, pin=self.pin)
        self.module: Path = self._softhsm.module
        self.environment: Mapping[str, str] = self._softhsm.environment
        try:
            identity = self._softhsm.add_identity("key", b"\x01")
            assert isinstance(identity.public_key, rsa.RSAPublicKey)
            self.key = StackKey(identity.uri, identity.public_key, identity.certificate)
            self.always_authenticate_key: StackKey | None = self._add_always_authenticate_key("always", b"\x02")
            (self._token,) = (self._softhsm.directory / "tokens").iterdir()
            self._away = self._softhsm.directory / "away"
            self._files = {file: file.read_bytes() for file in self._token.iterdir()}
        except BaseException:
            self.close()
            raise

    def unplug(self) -> None:
        """Move the token's directory away."""
        self._token.rename(self._away)

    def plug(self) -> None:
        """Move it back."""
        self._away.rename(self._token)

    def reset(self) -> None:
        """Restore the token's original files: one of them holds the flag for a wrong PIN."""
        if self._away.exists():
            self.plug()
        for file in self._token.iterdir():
            if file not in self._files:
                file.unlink()
        for file, content in self._files.items():
            if not file.exists() or file.read_bytes() != content:
                file.write_bytes(content)

    def close(self) -> None:
        """Remove the directory."""
        self._softhsm.close()

    def _add_always_authenticate_key(self, label: str, key_id: bytes) -> StackKey:
        done = subprocess.run(
            [sys.executable, "-c", _ADD_ALWAYS_AUTHENTICATE_KEY, str(self.module), _LABEL, label, key_id.hex()],
            env={**os.environ, **self.environment, "STACK_PIN": self.pin},
            stdout=subprocess.PIPE,
            check=True,
        )
        public_key = serialization.load_der_public_key(done.stdout)
        assert isinstance(public_key, rsa.RSAPublicKey)
        certificate = self._softhsm.issue_certificate(public_key)
        self._softhsm.add_certificate(certificate, label, key_id)
        return StackKey(str(Pkcs11Uri(token=_LABEL, object=label, id=key_id)), public_key, certificate)
