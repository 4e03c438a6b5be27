"""The TPM of the matrix is a TPM: keys in it, one count of wrong PINs for all of it, and a memory of its clients."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from .stacks import Stack, StackKey
from .stacks.apart import Apart, run_apart
from .stacks.tpm import TpmStack

SIGN = """
for uri in KEY, ALWAYS:
    with open_device(reference(uri)) as device:
        signer = device.signer()
        tell(signer.sign(Algorithm.RS256, b"message").hex())
        tell(signer.sign(Algorithm.PS256, b"message").hex())
        tell(device.certificate(signer).hex())
"""


@pytest.fixture(scope="module")
def started() -> Iterator[TpmStack]:
    stack = TpmStack()
    yield stack
    stack.close()


@pytest.fixture
def stack(started: TpmStack) -> Stack:
    started.reset()
    return started


def keys(stack: Stack) -> list[StackKey]:
    assert stack.always_authenticate_key is not None
    return [stack.key, stack.always_authenticate_key]


def require_signatures(stack: Stack, lines: list[str]) -> None:
    for key in keys(stack):
        rs256, ps256, certificate = (bytes.fromhex(lines.pop(0)) for _ in range(3))
        key.public_key.verify(rs256, b"message", padding.PKCS1v15(), hashes.SHA256())
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
        key.public_key.verify(ps256, b"message", pss, hashes.SHA256())
        assert certificate == key.certificate
        assert x509.load_der_x509_certificate(certificate).public_key() == key.public_key


def test_signs_with_both_keys_and_both_algorithms(stack: Stack) -> None:
    require_signatures(stack, run_apart(stack, SIGN))


def test_counts_a_login_and_each_context_login(stack: Stack) -> None:
    run_apart(stack, SIGN)
    assert stack.presented() == 2 + 2


def test_counts_a_wrong_pin(stack: Stack) -> None:
    assert run_apart(stack, 'tell(outcome(open_device, reference(KEY, "STACK_WRONG_PIN")))') == ["PinIncorrect"]
    assert stack.presented() == 1


def test_is_locked_by_the_third_wrong_pin_until_reset(stack: Stack) -> None:
    lines = run_apart(
        stack,
        """
        for _ in range(3):
            tell(outcome(open_device, reference(KEY, "STACK_WRONG_PIN")))
        tell(outcome(open_device, reference(KEY)))
        """,
    )
    assert lines == ["PinIncorrect"] * 3 + ["PinLocked"]
    stack.reset()
    require_signatures(stack, run_apart(stack, SIGN))


def test_a_new_process_signs_after_unplug_and_plug(stack: Stack) -> None:
    stack.unplug()
    assert run_apart(stack, "tell(outcome(open_device, reference(KEY)))") == ["ModuleLoadError"]
    stack.plug()
    require_signatures(stack, run_apart(stack, SIGN))


def test_unplugging_costs_no_pin_try(stack: Stack) -> None:
    for _ in range(3):
        run_apart(stack, SIGN)
        stack.unplug()
        stack.plug()
    require_signatures(stack, run_apart(stack, SIGN))


def test_reset_plugs_it_in_again(stack: Stack) -> None:
    stack.unplug()
    stack.reset()
    require_signatures(stack, run_apart(stack, SIGN))


def test_the_module_recovers_when_it_is_initialised_anew(stack: Stack) -> None:
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


def test_leaves_nothing_behind() -> None:
    stack = TpmStack()
    directory = Path(stack.environment["TPM2_PKCS11_STORE"]).parent
    assert programs_of(directory) == {"swtpm", "tpm2-abrmd", "dbus-daemon", "sh"}
    stack.close()
    assert programs_of(directory) == set()
    assert not directory.exists()


def programs_of(directory: Path) -> set[str]:
    found = set()
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            words = command_line.read_text(errors="replace").split("\0")
            if str(directory) in " ".join(words):
                found.add(Path(words[0]).name)
    return found
