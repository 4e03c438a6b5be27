"""The TPM of the matrix behaves like a TPM: it holds the keys, and has one counter of wrong PINs for all of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

import hsm_signer
from tests.support.stacks import StackKey
from tests.support.stacks.apart import Apart, run_apart
from tests.support.stacks.tpm import TpmStack

SIGN = """
for uri in KEY, ALWAYS:
    with open_device(access(uri)) as device:
        signer = open_signer(device)
        tell(signer.sign(Algorithm.RS256, b"message").hex())
        tell(signer.sign(Algorithm.PS256, b"message").hex())
        tell(read_certificate(device, signer.key.info).hex())
"""


@pytest.fixture(scope="module")
def started() -> Iterator[TpmStack]:
    stack = TpmStack()
    yield stack
    stack.close()


@pytest.fixture
def stack(started: TpmStack) -> TpmStack:
    started.reset()
    return started


def keys(stack: TpmStack) -> list[StackKey]:
    assert stack.always_authenticate_key is not None
    return [stack.key, stack.always_authenticate_key]


def require_signatures(stack: TpmStack, lines: list[str]) -> None:
    for key in keys(stack):
        rs256, ps256, certificate = (bytes.fromhex(lines.pop(0)) for _ in range(3))
        key.public_key.verify(rs256, b"message", padding.PKCS1v15(), hashes.SHA256())
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
        key.public_key.verify(ps256, b"message", pss, hashes.SHA256())
        assert certificate == key.certificate
        assert x509.load_der_x509_certificate(certificate).public_key() == key.public_key


def test_both_keys_sign_with_both_algorithms(stack: TpmStack) -> None:
    require_signatures(stack, run_apart(stack, SIGN))


def test_it_counts_a_login_and_each_context_specific_login(stack: TpmStack) -> None:
    run_apart(stack, SIGN)
    assert stack.presented() == 2 + 2


def test_it_counts_a_wrong_pin(stack: TpmStack) -> None:
    assert run_apart(stack, 'tell(outcome(open_device, access(KEY, "STACK_WRONG_PIN")))') == ["PinIncorrect"]
    assert stack.presented() == 1


def test_the_third_wrong_pin_locks_it_until_a_reset(stack: TpmStack) -> None:
    lines = run_apart(
        stack,
        """
        for _ in range(3):
            tell(outcome(open_device, access(KEY, "STACK_WRONG_PIN")))
        tell(outcome(open_device, access(KEY)))
        """,
    )
    assert lines == ["PinIncorrect"] * 3 + ["PinLocked"]
    stack.reset()
    require_signatures(stack, run_apart(stack, SIGN))


def test_no_flag_warns_about_wrong_pins_before_it_is_locked(stack: TpmStack) -> None:
    lines = run_apart(
        stack,
        """
        from hsm_signer.device.locate import find_device, load

        for _ in range(3):
            module = load(access(KEY))
            tell(find_device(module, access(KEY)).pin)
            outcome(open_device, access(KEY, "STACK_WRONG_PIN"))
        """,
    )
    assert lines == ["fine"] * 3


def test_the_record_of_refused_pins_keeps_processes_from_locking_it(stack: TpmStack, tmp_path: Path) -> None:
    lines = f"""
        from dataclasses import replace

        recorded = replace(access(KEY, "STACK_WRONG_PIN"), pin_record=Path({str(tmp_path)!r}))
        tell(outcome(open_device, recorded))
        """
    assert [run_apart(stack, lines) for _ in range(4)] == [["PinIncorrect"], *[["PinRefusedBefore"]] * 3]
    assert stack.presented() == 1


def test_the_hint_for_a_locked_tpm_names_the_tool_that_unlocks_it(stack: TpmStack) -> None:
    (command,) = run_apart(
        stack,
        """
        from hsm_signer.errors import PinLocked

        for _ in range(3):
            outcome(open_device, access(KEY, "STACK_WRONG_PIN"))
        try:
            open_device(access(KEY))
        except PinLocked as error:
            tell(*error.commands)
        """,
    )
    assert command.startswith("tpm2_dictionarylockout --clear-lockout ")


def test_every_tpm_has_the_same_serial(stack: TpmStack) -> None:
    # So a URI needs the label, and the record of refused PINs cannot rely on the serial.
    assert run_apart(stack, "with open_device(access(KEY)) as device: tell(device.info.serial)") == ["0" * 16]


def test_a_key_id_is_the_text_given_to_tpm2_ptool_and_the_error_shows_it(stack: TpmStack) -> None:
    (message,) = run_apart(
        stack,
        """
        from hsm_signer.errors import KeyNotFound

        with open_device(access("pkcs11:token=device%20tests;id=%01")) as device:
            try:
                open_signer(device)
            except KeyNotFound as error:
                tell(" ".join([error.message, *error.commands]))
        """,
    )
    assert "matches pkcs11:id=%01" in message
    assert "object=key;id=%30%31" in message


def test_the_output_of_its_libraries_is_shown_only_on_request(stack: TpmStack, tmp_path: Path) -> None:
    def errors(*options: str) -> list[str]:
        """Return what the program prints about a wrong PIN."""
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from hsm_signer.cli import main; main()", *options, "device", "show"),
                *("--login", "--key", stack.key.uri.partition(";")[0], "--module", str(stack.module)),
                *("--pin-source", "env:DEVICE_PIN", "--no-pin-record"),
            ],
            env={
                **stack.environment,
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(Path(hsm_signer.__file__).parents[1]),
                "HOME": str(tmp_path),
                "DEVICE_PIN": stack.wrong_pin,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (4, "")
        return [line.partition(": ")[0] for line in done.stderr.splitlines() if not line.startswith("  ")]

    assert errors() == ["error", "hint"]
    assert set(errors("--verbose")) > {"hsm-signer", "error", "hint"}


def test_a_new_process_signs_after_unplug_and_plug(stack: TpmStack) -> None:
    stack.unplug()
    assert run_apart(stack, "tell(outcome(open_device, access(KEY)))") == ["ModuleLoadError"]
    stack.plug()
    require_signatures(stack, run_apart(stack, SIGN))


def test_unplugging_costs_no_pin_try(stack: TpmStack) -> None:
    for _ in range(3):
        run_apart(stack, SIGN)
        stack.unplug()
        stack.plug()
    require_signatures(stack, run_apart(stack, SIGN))


def test_a_reset_plugs_it_in_again(stack: TpmStack) -> None:
    stack.unplug()
    stack.reset()
    require_signatures(stack, run_apart(stack, SIGN))


def test_the_module_recovers_when_it_is_initialized_again(stack: TpmStack) -> None:
    lines = """
        import pkcs11

        library = pkcs11.lib(os.environ["STACK_MODULE"])

        def sign():
            device = library.get_token(token_label="device tests")
            with device.open(user_pin=os.environ["STACK_PIN"]) as session:
                key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label="key")
                return len(key.sign(b"message", mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS))

        tell(sign())
        wait()
        for _ in range(2):
            try:
                tell(sign())
            except pkcs11.GeneralError:
                tell("GeneralError")
        library.reinitialize()
        tell(sign())
        """
    with Apart(stack, lines) as process:
        assert process.hear() == "256"
        stack.unplug()
        stack.plug()
        process.go()
        assert process.rest() == ["GeneralError", "GeneralError", "256"]


def test_a_stopped_stack_leaves_no_files_or_processes() -> None:
    stack = TpmStack()
    directory = Path(stack.environment["TPM2_PKCS11_STORE"]).parent
    assert programs_of(directory) == {"swtpm", "tpm2-abrmd", "dbus-daemon", "sh"}
    stack.close()
    assert programs_of(directory) == set()
    assert not directory.exists()


def programs_of(directory: Path) -> set[str]:
    found = set()
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended in the meantime
            words = command_line.read_text(errors="replace").split("\0")
            if str(directory) in " ".join(words):
                found.add(Path(words[0]).name)
    return found
