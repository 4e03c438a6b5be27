"""Make a SoftHSM with one key and its certificate, and a profile that uses them.

    make_softhsm.py DIRECTORY

The directory then holds softhsm2.conf, the token, certificate.pem, pin (mode 0600) and config.toml.
"""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsm_signer.testing import SoftHsm


def main(directory: Path) -> None:
    """Make everything below `directory`."""
    softhsm = SoftHsm(directory, label="demo")
    key = softhsm.add_key("demo key")
    der = softhsm.issue_certificate(key.public_key, not_after=datetime.now(UTC) + timedelta(days=365))
    softhsm.add_certificate(der, key.label, key.id)
    certificate = x509.load_der_x509_certificate(der)
    (directory / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    with open(os.open(directory / "pin", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as pin:
        pin.write(softhsm.pin + "\n")
    (directory / "config.toml").write_text(
        f"""[profile.default]
key = "{key.uri}"
module = "{softhsm.module}"
module_environment = {{ SOFTHSM2_CONF = "{softhsm.configuration}" }}
pin_source = "file:pin"
""",
        encoding="utf-8",
    )


main(Path(sys.argv[1]).absolute())
