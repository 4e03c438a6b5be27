"""The contract of a device: find exactly one key, log in once, sign, and return only signatures that verify."""

import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pkcs11
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.manage.certificates import read_certificate
from hsm_signer.device.pin.pin import Login, Pin, PinRequest
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    CertificateNotFound,
    DeviceAmbiguous,
    DeviceError,
    DeviceGone,
    DeviceNotFound,
    KeyAmbiguous,
    KeyNotFound,
    KeyUnfit,
    PinIncorrect,
    SignatureInvalid,
)
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey

from .conftest import AccessTo

MESSAGE = b"header.claims"


def rsa_key(key: SoftHsmKey) -> rsa.RSAPublicKey:
    assert isinstance(key.public_key, rsa.RSAPublicKey)
    return key.public_key


class TestLookUp:
    @pytest.mark.parametrize(
        "selector",
        [
            "object=first%20key",
            "id=%01",
            "object=first%20key;id=%01",
            "manufacturer=SoftHSM%20project;id=%01",
            "model=SoftHSM%20v2;id=%01",
            "library-manufacturer=SoftHSM;id=%01",
            "library-description=Implementation%20of%20PKCS11;id=%01",
            "library-version=2.6;id=%01",
            "slot-manufacturer=SoftHSM%20project;id=%01",
            "type=private;id=%01",
        ],
    )
    def test_a_key_is_found_by_each_attribute(
        self, selector: str, access_to: AccessTo, key: SoftHsmKey, second_key: SoftHsmKey
    ) -> None:
        with open_device(access_to(f"pkcs11:token=device%20tests;{selector}")) as device:
            numbers = rsa_key(key).public_numbers()
            assert open_signer(device).public_key == PublicKey(numbers.n, numbers.e)

    def test_a_device_is_found_by_its_own_attributes(self, access_to: AccessTo, key: SoftHsmKey) -> None:
        with open_device(access_to("pkcs11:token=device%20tests;id=%01")) as device:
            info = device.info
        for attributes in (
            Pkcs11Uri(serial=info.serial),
            Pkcs11Uri(slot_id=info.slot_id),
            Pkcs11Uri(slot_description=info.slot_description),
        ):
            with open_device(access_to(f"{attributes};id=%01")) as device:
                assert device.info == info

    def test_if_no_device_matches_the_error_names_every_device(self, access_to: AccessTo, key: SoftHsmKey) -> None:
        with pytest.raises(DeviceNotFound, match=r"(?s)token=elsewhere.*--key 'pkcs11:token=device%20tests;serial="):
            open_device(access_to("pkcs11:token=elsewhere"))

    def test_if_no_key_matches_the_error_names_every_key(
        self, access_to: AccessTo, key: SoftHsmKey, second_key: SoftHsmKey
    ) -> None:
        with open_device(access_to("pkcs11:token=device%20tests;object=third%20key")) as device:
            with pytest.raises(KeyNotFound, match=r"(?s)object=first%20key;id=%01.*object=second%20key;id=%02"):
                open_signer(device)

    def test_several_matching_keys_are_refused(
        self, access_to: AccessTo, key: SoftHsmKey, second_key: SoftHsmKey
    ) -> None:
        with open_device(access_to("pkcs11:token=device%20tests")) as device:
            with pytest.raises(KeyAmbiguous, match=r"(?s)2 private keys.*id=%01.*id=%02"):
                open_signer(device)

    def test_the_uris_in_the_error_work(self, access_to: AccessTo, key: SoftHsmKey, second_key: SoftHsmKey) -> None:
        with open_device(access_to("pkcs11:token=device%20tests")) as device, pytest.raises(KeyAmbiguous) as caught:
            open_signer(device)
        offered = [shlex.split(command)[1] for command in caught.value.commands]
        assert len(offered) == 2
        for uri in offered:
            with open_device(access_to(uri)) as device:
                open_signer(device)

    def test_several_devices_with_one_label_are_refused(self, access_to: AccessTo, tmp_path: Path) -> None:
        with SoftHsm(tmp_path, label="twin") as twins:
            twins.add_token("twin")
            access = replace(access_to("pkcs11:token=twin"), module_environment=twins.environment)
            with pytest.raises(DeviceAmbiguous, match=r"(?s)2 devices match pkcs11:token=twin\..*serial=.*serial="):
                open_device(access)

    def test_a_device_added_after_the_module_was_loaded_is_found(self, access_to: AccessTo, tmp_path: Path) -> None:
        with SoftHsm(tmp_path, label="early", pin="4711") as softhsm:
            softhsm.add_key()
            softhsm.add_token("late")
            late = replace(
                access_to("pkcs11:token=late", pin=FixedLogin(Pin("4711"), "a test PIN")),
                module_environment=softhsm.environment,
            )
            with open_device(late) as device:
                assert device.info.label == "late"


class TestSigning:
    @pytest.mark.parametrize("algorithm", list(Algorithm))
    def test_signatures_verify_with_cryptography(
        self, algorithm: Algorithm, access_to: AccessTo, key: SoftHsmKey
    ) -> None:
        with open_device(access_to(key.uri)) as device:
            signature = open_signer(device).sign(algorithm, MESSAGE)
        scheme: padding.AsymmetricPadding = padding.PKCS1v15()
        if algorithm is Algorithm.PS256:
            scheme = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
        rsa_key(key).verify(signature, MESSAGE, scheme, hashes.SHA256())

    @pytest.mark.parametrize("algorithm", list(Algorithm))
    def test_signatures_verify_with_openssl(
        self, algorithm: Algorithm, access_to: AccessTo, key: SoftHsmKey, tmp_path: Path
    ) -> None:
        with open_device(access_to(key.uri)) as device:
            (tmp_path / "signature").write_bytes(open_signer(device).sign(algorithm, MESSAGE))
        (tmp_path / "message").write_bytes(MESSAGE)
        (tmp_path / "key.pem").write_bytes(
            rsa_key(key).public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        options = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"]
        subprocess.run(
            [
                *("openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "signature"),
                *(options if algorithm is Algorithm.PS256 else []),
                "message",
            ],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    @pytest.mark.parametrize("algorithm", list(Algorithm))
    @pytest.mark.parametrize("shape", ["raw", "bare RSA"])
    def test_plans_without_the_combined_mechanism_work_on_the_device(
        self, algorithm: Algorithm, shape: str, access_to: AccessTo, key: SoftHsmKey
    ) -> None:
        left = {
            "raw": {pkcs11.Mechanism.RSA_PKCS, pkcs11.Mechanism.RSA_PKCS_PSS},
            "bare RSA": {pkcs11.Mechanism.RSA_X_509},
        }[shape]
        with open_device(access_to(key.uri)) as device:
            signer = open_signer(device)
            signer.key = replace(signer.key, mechanisms=signer.key.mechanisms & left)
            signature = signer.sign(algorithm, MESSAGE)
            assert signer.public_key.verify(algorithm, MESSAGE, signature)

    def test_a_signature_that_does_not_verify_is_not_returned(
        self, access_to: AccessTo, key: SoftHsmKey, second_key: SoftHsmKey
    ) -> None:
        with open_device(access_to("pkcs11:token=device%20tests;id=%01")) as device:
            signer = open_signer(device)
            signer.public_key = PublicKey(rsa_key(second_key).public_numbers().n, 65537)
            with pytest.raises(SignatureInvalid):
                signer.sign(Algorithm.RS256, MESSAGE)

    def test_an_ec_key_is_refused(self, access_to: AccessTo, softhsm: SoftHsm) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        softhsm.import_key(ec.generate_private_key(ec.SECP256R1()), "ec key", b"\xec")
        with open_device(access_to("pkcs11:token=device%20tests;object=ec%20key")) as device:
            with pytest.raises(KeyUnfit, match="EC, not RSA"):
                open_signer(device)


class TestCertificate:
    def test_the_certificate_with_the_keys_id_is_read(
        self, access_to: AccessTo, key: SoftHsmKey, second_key: SoftHsmKey
    ) -> None:
        with open_device(access_to(second_key.uri)) as device:
            assert read_certificate(device, open_signer(device).key.info) == second_key.certificate

    def test_a_key_without_a_certificate_is_an_error(self, access_to: AccessTo, softhsm: SoftHsm) -> None:
        bare = softhsm.add_key("bare key", b"\xba")
        with open_device(access_to(bare.uri)) as device, pytest.raises(CertificateNotFound, match="bare key"):
            read_certificate(device, open_signer(device).key.info)

    def test_two_certificates_with_the_keys_id_are_refused(self, access_to: AccessTo, softhsm: SoftHsm) -> None:
        crowded = softhsm.add_identity("crowded key", b"\xcc")
        softhsm.add_certificate(softhsm.issue_certificate(crowded.public_key), "crowded key", b"\xcc")
        with open_device(access_to(crowded.uri)) as device, pytest.raises(KeyAmbiguous, match="2 certificates"):
            read_certificate(device, open_signer(device).key.info)


class TestLogin:
    def test_a_wrong_pin_is_sent_once_and_not_shown(self, access_to: AccessTo, key: SoftHsmKey) -> None:
        asked = []

        class Wrong:
            description = identity = "a wrong PIN"
            attended = False

            def __call__(self, request: PinRequest) -> Login:
                asked.append(request)
                return Pin("87654321-wrong")

        with pytest.raises(PinIncorrect) as caught:
            open_device(access_to(key.uri, pin=Wrong()))
        assert len(asked) == 1
        assert "87654321" not in repr(caught.value) + str(caught.value.hint)

    def test_the_prompt_can_name_the_device(self, access_to: AccessTo, key: SoftHsmKey) -> None:
        asked = []

        class Watching:
            description = identity = "a test"
            attended = True

            def __call__(self, request: PinRequest) -> Login:
                asked.append(request.device)
                return None

        with open_device(access_to(key.uri, pin=Watching())):
            assert "device tests" in asked[0]

    def test_the_pin_source_runs_in_the_callers_thread(self, access_to: AccessTo, key: SoftHsmKey) -> None:
        threads = []

        class Watching:
            description = identity = "a test"
            attended = True

            def __call__(self, request: PinRequest) -> Login:
                threads.append(threading.current_thread())
                return None

        with open_device(access_to(key.uri, pin=Watching())):
            assert threads == [threading.current_thread()]

    def test_the_error_without_a_login_says_that_private_keys_may_be_hidden(
        self, access_to: AccessTo, key: SoftHsmKey
    ) -> None:
        with open_device(access_to(key.uri, pin=FixedLogin(None, "none"))) as device:
            with pytest.raises(KeyNotFound, match="The device has none") as caught:
                open_signer(device)
        assert "without a login" in str(caught.value.hint)

    def test_two_openings_of_a_device_in_one_process_share_the_login(
        self, access_to: AccessTo, key: SoftHsmKey
    ) -> None:
        with open_device(access_to(key.uri)), open_device(access_to(key.uri)) as second:
            open_signer(second).sign(Algorithm.RS256, MESSAGE)


class TestReplaced:
    """A device or a key that was replaced by a new one with the same name while it was in use."""

    @pytest.fixture
    def replaced(self, tmp_path: Path, access_to: AccessTo) -> Iterator[tuple[SoftHsm, KeyAccess]]:
        with SoftHsm(tmp_path, label="replaced") as softhsm:
            softhsm.add_key()
            pin = FixedLogin(Pin(softhsm.pin), "a test PIN")
            yield softhsm, replace(access_to("pkcs11:token=replaced", pin=pin), module_environment=softhsm.environment)

    def test_a_new_device_with_the_same_name_is_not_used(
        self, replaced: tuple[SoftHsm, KeyAccess], caplog: pytest.LogCaptureFixture
    ) -> None:
        softhsm, access = replaced
        with open_device(access) as device:
            signer = open_signer(device)
            shutil.rmtree(softhsm.directory / "tokens")
            (softhsm.directory / "tokens").mkdir()
            softhsm.add_token("replaced")
            for _ in range(2):
                with pytest.raises(DeviceGone, match="Found 'replaced'"):
                    signer.sign(Algorithm.RS256, MESSAGE)
        assert "(ObjectHandleInvalid)" in caplog.text

    def test_a_new_key_with_the_same_name_is_not_used(self, replaced: tuple[SoftHsm, KeyAccess]) -> None:
        softhsm, access = replaced
        with open_device(access) as device:
            signer = open_signer(device)
            (token,) = (softhsm.directory / "tokens").iterdir()
            for file in token.glob("*.object"):
                if file.name != "token.object":
                    file.unlink()
            softhsm.import_key(rsa.generate_private_key(65537, 2048))
            with pytest.raises(KeyNotFound, match="was replaced by another key"):
                signer.sign(Algorithm.RS256, MESSAGE)


class TestClosing:
    def test_using_a_closed_device_is_an_error(self, access_to: AccessTo, key: SoftHsmKey) -> None:
        device = open_device(access_to(key.uri))
        signer = open_signer(device)
        device.close()
        device.close()
        with pytest.raises(DeviceError, match="was closed"):
            signer.sign(Algorithm.RS256, MESSAGE)

    def test_a_forked_child_cannot_use_the_parents_device_and_does_not_close_it(
        self, access_to: AccessTo, key: SoftHsmKey
    ) -> None:
        # In a separate process, because forking a test runner that has threads is risky.
        program = """
import os, sys
from pathlib import Path
from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.pin.sources import EnvironmentPin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceError

uri, module = sys.argv[1:]
device = open_device(KeyAccess(Pkcs11Uri.parse(uri), EnvironmentPin("TEST_PIN"), Path(module)))
signer = open_signer(device)
child = os.fork()
if child == 0:
    try:
        signer.sign(Algorithm.RS256, b"x")
    except DeviceError as error:
        print("child:", error)
    sys.exit(0)
_, status = os.waitpid(child, 0)
print("status:", status)
signer.sign(Algorithm.RS256, b"x")
print("parent: signed")
"""
        access = access_to(key.uri)
        login = access.pin(PinRequest("test"))
        assert isinstance(login, Pin)
        # Python 3.12 and newer warn about every fork of a process with threads, and an open device has a thread: the
        # child may wait for a lock that a thread held. This test shows that it waits for none of our locks.
        quietly = "-W", "ignore:This process (pid=:DeprecationWarning"
        done = subprocess.run(
            [sys.executable, *quietly, "-c", program, key.uri, str(access.module)],
            env={**os.environ, **access.module_environment, "TEST_PIN": login.reveal()},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        assert "was opened by the parent" in done.stdout
        assert done.stdout.splitlines()[-2:] == ["status: 0", "parent: signed"]
