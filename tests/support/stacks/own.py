"""A person's own device: HSM_SIGNER_TEST_URI names a key on it, and no test that could lock or unplug it runs.

HSM_SIGNER_TEST_URI='pkcs11:token=...;id=%01?module-path=...' HSM_SIGNER_TEST_PIN_SOURCE=file:... scripts/test
"""

import os
from collections.abc import Mapping

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.manage.certificates import read_certificate
from hsm_signer.device.module_search import find_module
from hsm_signer.device.pin.parse import parse_pin_source
from hsm_signer.device.pin.pin import Pin, PinRequest
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri

from . import StackKey


class OwnStack:
    """The device of the person who runs the tests."""

    def __init__(self, uri: str) -> None:
        parsed = Pkcs11Uri.parse(uri)
        if (text := os.environ.get("HSM_SIGNER_TEST_PIN_SOURCE")) is None:
            pytest.exit("HSM_SIGNER_TEST_URI needs HSM_SIGNER_TEST_PIN_SOURCE, for example file:pin.", returncode=4)
        source = parse_pin_source(text, prompt=None)
        login = source(PinRequest("your device"))
        if not isinstance(login, Pin):
            pytest.exit(
                "HSM_SIGNER_TEST_PIN_SOURCE must give a PIN; none and protected give none.",
                returncode=4,
            )
        self.name = "own"
        self.module = find_module(None, parsed)
        self.environment: Mapping[str, str] = {}
        self.pin = login.reveal()
        # Never sent: no test that sends a wrong PIN runs on a person's own device.
        self.wrong_pin = ""
        self.locks = True
        with open_device(KeyAccess(parsed, source, self.module)) as device:
            signer = open_signer(device)
            certificate = read_certificate(device, signer.key.info)
            self.has_pss = Algorithm.PS256 in signer.algorithms
            key_info = signer.key.info
            label = device.info.label
        public_key = x509.load_der_x509_certificate(certificate).public_key()
        assert isinstance(public_key, rsa.RSAPublicKey)
        key = StackKey(str(Pkcs11Uri(token=label, id=key_info.id)), public_key, certificate)
        self.key = key
        self.always_authenticate_key = key if signer.key.always_authenticate else None

    def unplug(self) -> None:
        raise AssertionError("a person's own device is not unplugged")

    def plug(self) -> None:
        """Do nothing: it is never unplugged."""

    def reset(self) -> None:
        """Do nothing: no test changes it."""

    def close(self) -> None:
        """Do nothing: no program was started."""
