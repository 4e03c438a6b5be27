"""`init` on every device of the matrix, with a person at the terminal."""

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

import hsm_signer
from hsm_signer.testing import EntraEmulator
from tests.support.fixtures import Running
from tests.support.names import CLIENT, GRAPH, TENANT
from tests.support.program import Program, Result
from tests.support.stacks import Stack
from tests.support.stacks.piv import PivStack
from tests.support.stacks.tpm import TpmStack
from tests.support.terminal import Terminal


@pytest.fixture(params=["softhsm", "tpm", "ykcs11", "opensc"])
def stack(request: pytest.FixtureRequest, running: Running) -> Iterator[Stack]:
    stack = running(request.param)
    stack.reset()
    yield stack
    stack.reset()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def entra(stack: Stack) -> Iterator[EntraEmulator]:
    """Where the app has the certificates that are on the device at first."""
    with EntraEmulator() as entra:
        for key in filter(None, [stack.key, stack.always_authenticate_key]):
            assert key.certificate is not None
            entra.register(CLIENT, key.certificate, tenant=TENANT)
        yield entra


class Person:
    """Runs `init` at a terminal, in an environment that leads to a device, and answers what it asks."""

    def __init__(self, stack: Stack, home: Path, terminal: Terminal, entra: EntraEmulator) -> None:
        root = Path(hsm_signer.__file__).parents[1]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(root), **stack.environment}
        self.stack, self.terminal = stack, terminal
        self.program = Program(home, home, environment)
        self.asked: list[str] = []
        self._shown = ""
        # A person is asked for none of these: the module would be found, and Entra is where it always is.
        self._options = ["--module", str(stack.module), "--authority", entra.authority]
        self._options += ["--ca-bundle", str(entra.ca_file)]

    @contextmanager
    def run(self, *options: str) -> Iterator[list[str]]:
        """Run it while the `with` block answers. Then the list holds stdout, and what was on the screen."""
        said: list[str] = []
        self._shown = ""
        with self.program.start(
            "init", *self._options, *options, within=self.terminal.shell, stderr=self.terminal.program_side
        ) as process:
            yield said
            self.terminal.wait_for("it ended with ")
            self.terminal.type("\n")
            said.append(process.communicate(timeout=60)[0])
        said.append((self._shown + self.terminal.seen).replace("\r\n", "\n"))
        assert "Traceback" not in said[1]

    def answer(self, question: str, answer: str) -> None:
        self.terminal.wait_for(question)
        before, found, self.terminal.seen = self.terminal.seen.partition(question)
        self._shown += before + found
        self.asked.append(question)
        self.terminal.type(answer + "\n")

    def answer_about_the_app(self) -> None:
        self.answer("Directory (tenant) ID", TENANT)
        self.answer("Application (client) ID", CLIENT)
        self.answer("Scope", "")

    def token(self) -> Result:
        """Get a token as any program of this user can, without the variables that led `init` to the device."""
        led = {name: "" for name in self.stack.environment if name not in ("DBUS_SESSION_BUS_ADDRESS", "TSS2_LOG")}
        return self.program(
            *("token", "--pin-source", "env:DEVICE_PIN", "-o", "json"),
            environment={**led, "DEVICE_PIN": self.stack.pin},
        )

    @property
    def profile(self) -> dict[str, Any]:
        file = self.program.home / ".config/hsm-signer/config.toml"
        profile: dict[str, Any] = tomllib.loads(file.read_text())["profile"]["default"]
        return profile


@pytest.fixture
def person(stack: Stack, tmp_path: Path, terminal: Terminal, entra: EntraEmulator) -> Person:
    return Person(stack, tmp_path, terminal, entra)


def test_from_a_ready_device_to_a_token_in_five_questions(stack: Stack, person: Person) -> None:
    with person.run() as said:
        person.answer_about_the_app()
        person.answer("PIN for", stack.pin)
        person.answer("Number [1]", "")
    stdout, screen = said
    assert (stdout, len(person.asked)) == ("default\n", 5)
    assert "Entra accepts the certificate." in screen
    assert not re.search(r"^\w+ +(failed|warning)", screen, re.MULTILINE)
    # The card's serial is 12345678.
    assert not re.search(rf"{stack.pin}(?!78\b)", screen)
    profile = person.profile
    assert (profile["tenant"], profile["client_id"], profile["scope"]) == (TENANT, CLIENT, GRAPH)
    assert json.loads(person.token().stdout)["client_id"] == CLIENT


@pytest.mark.parametrize("stack", ["ykcs11", "opensc"], indirect=True)
def test_the_commands_for_an_empty_card_are_shown_and_waited_for_before_the_pin(
    stack: PivStack, person: Person
) -> None:
    stack.take_keys()
    with person.run("--offline") as said:
        person.answer_about_the_app()
        person.terminal.wait_for("Then press Enter")
        stack.put_keys()
        person.answer(" to look again.", "")
        person.answer("PIN for", stack.pin)
        person.answer("Number [1]", "")
    stdout, screen = said
    assert stdout == "default\n"
    device = "--device 12345678 " if stack.name == "ykcs11" else ""
    assert f"  ykman {device}piv keys generate --algorithm RSA2048 9a public.pem\n" in screen
    assert f"  ykman {device}piv certificates generate --subject CN=hsm-signer 9a public.pem\n" in screen
    assert stack.presented() == 1


@pytest.mark.parametrize("stack", ["ykcs11"], indirect=True)
def test_the_certificate_of_a_card_is_kept_beside_the_profile_where_it_cannot_be_stored(
    stack: PivStack, person: Person, entra: EntraEmulator
) -> None:
    stack.take_certificates()
    with person.run("--subject", "CN=card") as said:
        person.answer_about_the_app()
        person.answer("PIN for", stack.pin)
        person.answer("Number [1]", "")
        person.terminal.wait_for("Wait until Entra accepts it?")
        entra.register(CLIENT, (person.program.home / ".config/hsm-signer/default.pem").read_bytes(), tenant=TENANT)
        person.answer("[Y/n]", "")
    assert said[0] == "default\n", said[1]
    assert person.profile["certificate"] == "default.pem"
    assert "  ykman --device 12345678 piv certificates import 9a " in said[1]
    assert json.loads(person.token().stdout)["client_id"] == CLIENT


@pytest.mark.parametrize("stack", ["tpm"], indirect=True)
def test_a_key_and_a_certificate_are_made_in_a_tpm(stack: TpmStack, person: Person, entra: EntraEmulator) -> None:
    stack.add_token("init")
    with person.run("--key", "pkcs11:token=init") as said:
        person.answer_about_the_app()
        person.answer("PIN for", stack.pin)
        person.answer("Make one? [Y/n]", "y")
        person.answer("Wait until Entra accepts it? [Y/n]", "n")
    assert said[0] == "default\n", said[1]
    file = person.program.home / ".config/hsm-signer/default.pem"
    assert x509.load_pem_x509_certificate(file.read_bytes()).subject.rfc4514_string() == "CN=hsm-signer"
    assert "certificate" not in person.profile
    entra.register(CLIENT, file.read_bytes(), tenant=TENANT)
    assert json.loads(person.token().stdout)["client_id"] == CLIENT
