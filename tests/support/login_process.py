"""A login with a PIN from a file, in a separate process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_PROGRAM = """
import sys
from pathlib import Path
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.pin.sources import FilePin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import HsmSignerError

uri, module, pin, record = sys.argv[1:]
try:
    open_device(KeyAccess(Pkcs11Uri.parse(uri), FilePin(Path(pin)), Path(module), pin_record=Path(record)))
except HsmSignerError as error:
    print(error.code)
"""


def start_login(
    uri: str, module: Path, environment: Mapping[str, str], *, pin: Path, record: Path
) -> "subprocess.Popen[str]":
    """Start a login. The process prints the code of the error, if it fails.

    Args:
        uri: of a key on the device.
        environment: variables that the module needs.
        pin: the PIN file.
        record: the directory of the PIN record.
    """
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, uri, module, pin, record],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
