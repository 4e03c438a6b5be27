"""A PIN comes only from the configured source, and is never shown."""

import os
import pickle
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.device.pin.parse import parse_pin_source
from hsm_signer.device.pin.pin import Login, Pin, PinPad, PinRequest, PinSource, ask
from hsm_signer.device.pin.sources import (
    NO_LOGIN,
    PROTECTED,
    CommandPin,
    DescriptorPin,
    EnvironmentPin,
    FilePin,
    FixedLogin,
    NoPinSource,
    SystemdCredentialPin,
)
from hsm_signer.errors import ConfigError, HsmSignerError, PinUnavailable
from hsm_signer.system.file_state import same_state
from hsm_signer.system.secret_input import LIMIT

SECRET = "s3cret-4711"
REQUEST = PinRequest("Test card")


def reveal(login: Login) -> str:
    assert isinstance(login, Pin)
    return login.reveal()


def told(error: HsmSignerError) -> str:
    """Return everything that an error and the errors behind it show."""
    texts = [repr(error), str(error.hint), *traceback.format_exception(error)]
    cause: BaseException | None = error
    while cause is not None:
        texts.append(repr(vars(cause)) + repr(cause.args))
        cause = cause.__context__
    return "".join(texts)


def pipe_holding(content: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    return reader


def private_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "show", [repr, str, "{}".format, "%s".__mod__, lambda pin: repr([pin]), lambda pin: f"{pin!s}"]
)
def test_a_pin_is_not_shown(show: object) -> None:
    assert callable(show)
    assert SECRET not in show(Pin(SECRET))


def test_a_pin_is_revealed_on_request() -> None:
    assert Pin(SECRET).reveal() == SECRET


def test_pins_are_equal_if_their_texts_are() -> None:
    assert Pin("4711") == Pin("4711")
    assert Pin("4711") != Pin("4712")
    assert Pin("é") != Pin("e")
    assert Pin("4711") != "4711"


def test_a_command_does_not_see_the_pin_of_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PIN", SECRET)
    assert CommandPin(("/usr/bin/printenv", "A_PIN"))(REQUEST) == Pin(SECRET)
    EnvironmentPin("A_PIN")
    with pytest.raises(PinUnavailable, match="status 1"):
        CommandPin(("/usr/bin/printenv", "A_PIN"))(REQUEST)


def test_a_pin_cannot_be_hashed() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Pin("4711"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pin_cannot_be_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Pin(SECRET), protocol)


@pytest.mark.parametrize("text", ["", "47\00011", f"{SECRET}\ud800"])
def test_a_string_that_no_device_accepts_is_not_a_pin(text: str) -> None:
    with pytest.raises(PinUnavailable) as refused:
        Pin(text)
    assert SECRET not in told(refused.value)


@pytest.mark.parametrize(
    ("content", "pin"),
    [
        (b"4711", "4711"),
        (b"4711\n", "4711"),
        (b"4711\r\n", "4711"),
        (b"4711\n\n", "4711\n"),
        (b"4711\r", "4711\r"),
        (b"\n4711 ", "\n4711 "),
        ("Schlüssel".encode(), "Schlüssel"),
        (b"x" * LIMIT, "x" * LIMIT),
    ],
)
def test_one_trailing_newline_is_stripped_from_a_file_and_nothing_else(
    tmp_path: Path, content: bytes, pin: str
) -> None:
    assert reveal(FilePin(private_file(tmp_path / "pin", content))(REQUEST)) == pin


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=250))
def test_a_trailing_newline_is_stripped_from_any_text(text: str) -> None:
    assert reveal(DescriptorPin(pipe_holding(f"{text}\n".encode()))(REQUEST)) == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\r\n", "is empty"),
        (SECRET.encode() + b"\xff", "not UTF-8"),
        (SECRET.encode() + b"\0", "contains a NUL"),
        (SECRET.encode() * 100, "longer than 1024 bytes"),
    ],
)
def test_content_that_is_not_a_pin_is_refused_from_every_source_and_not_shown(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = private_file(tmp_path / "pin", content)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    sources: list[PinSource] = [
        FilePin(path),
        SystemdCredentialPin("pin", environ),
        DescriptorPin(pipe_holding(content)),
        CommandPin(("/bin/cat", str(path))),
    ]
    for source in sources:
        with pytest.raises(PinUnavailable, match=reason) as refused:
            source(REQUEST)
        assert source.description in refused.value.message
        assert refused.value.hint
        assert SECRET not in told(refused.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is empty"),
        (f"{SECRET}\udcff", "not UTF-8"),
        (SECRET + "\ud800", "not UTF-8"),
        (f"{SECRET}\0", "contains a NUL"),
        (SECRET * 100, "longer than 1024 bytes"),
    ],
)
def test_a_variable_that_is_not_a_pin_is_refused_and_not_shown(value: str, reason: str) -> None:
    source = EnvironmentPin("CARD_PIN", {"CARD_PIN": value})
    with pytest.raises(PinUnavailable, match=f"the environment variable CARD_PIN: .*{reason}") as refused:
        source(REQUEST)
    assert SECRET not in told(refused.value) + repr(source)


def test_an_exposed_file_is_refused_with_a_hint_how_to_fix_it(tmp_path: Path) -> None:
    path = private_file(tmp_path / "pin", SECRET.encode())
    path.chmod(0o644)
    with pytest.raises(PinUnavailable, match="everybody can read or change it") as refused:
        FilePin(path)(REQUEST)
    assert refused.value.hint == f"Remove everyone else's access: chmod 600 {path}"
    assert SECRET not in told(refused.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    with pytest.raises(PinUnavailable) as refused:
        FilePin(path)(REQUEST)
    assert refused.value.message == f"Cannot get the PIN from the file {path}: No such file or directory."


def test_a_variable_is_used_unchanged() -> None:
    assert reveal(EnvironmentPin("CARD_PIN", {"CARD_PIN": " 4711\n"})(REQUEST)) == " 4711\n"


def test_a_variable_stays_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARD_PIN", SECRET)
    source = EnvironmentPin("CARD_PIN")
    assert reveal(source(REQUEST)) == reveal(source(REQUEST)) == SECRET


def test_a_missing_variable_is_an_error() -> None:
    with pytest.raises(PinUnavailable, match="the environment variable CARD_PIN: it is not set"):
        EnvironmentPin("CARD_PIN", {})(REQUEST)


def test_a_descriptor_is_not_read_twice_even_if_its_number_is_reused() -> None:
    descriptor = pipe_holding(b"4711")
    source = DescriptorPin(descriptor)
    source(REQUEST)
    other = pipe_holding(SECRET.encode())
    assert other == descriptor
    try:
        with pytest.raises(PinUnavailable, match="it has been read before"):
            source(REQUEST)
        assert os.read(other, 100) == SECRET.encode()
    finally:
        os.close(other)


def test_a_descriptor_that_is_not_open_is_an_error() -> None:
    with pytest.raises(PinUnavailable, match="file descriptor 999999: Bad file descriptor"):
        DescriptorPin(999_999)(REQUEST)


def test_the_output_of_a_command_is_the_pin() -> None:
    assert reveal(CommandPin(("/bin/echo", "4711"))(REQUEST)) == "4711"


def test_the_error_of_a_failed_command_shows_neither_its_output_nor_its_arguments() -> None:
    source = CommandPin(("/bin/sh", "-c", f"echo {SECRET}; exit 3"))
    with pytest.raises(PinUnavailable, match="the command /bin/sh: it ended with status 3") as refused:
        source(REQUEST)
    assert SECRET not in told(refused.value) + repr(source)


def test_a_command_that_hangs_is_an_error() -> None:
    with pytest.raises(PinUnavailable, match=r"the command /bin/sleep: it had not ended after 0\.05 s"):
        CommandPin(("/bin/sleep", "60"), seconds=0.05)(REQUEST)


def test_a_systemd_credential_is_read_from_the_credentials_directory(tmp_path: Path) -> None:
    private_file(tmp_path / "card", b"4711\n")
    assert reveal(SystemdCredentialPin("card", {"CREDENTIALS_DIRECTORY": str(tmp_path)})(REQUEST)) == "4711"


class TestSystemdCredential:
    """systemd copies it to a new file at each start of a service."""

    @staticmethod
    def start(directory: Path, number: str, pin: bytes = b"4711") -> SystemdCredentialPin:
        """Start the service, and return its source."""
        copies = directory / "credentials"
        copies.mkdir(exist_ok=True)
        (copies / "card").unlink(missing_ok=True)
        private_file(copies / "card", pin)
        return SystemdCredentialPin("card", {"CREDENTIALS_DIRECTORY": str(copies), "INVOCATION_ID": number})

    def test_that_did_not_change_is_the_same(self, tmp_path: Path) -> None:
        source = self.start(tmp_path, "a1")
        assert same_state(ask(source, REQUEST).identity, source.identity)  # type: ignore[union-attr]

    def test_that_was_replaced_or_rewritten_while_the_service_runs_has_changed(self, tmp_path: Path) -> None:
        source = self.start(tmp_path, "a1")
        first = source.identity
        second = self.start(tmp_path, "a1", b"0815").identity
        private_file(tmp_path / "credentials" / "card", b"1234")
        assert [same_state(first, second), same_state(second, source.identity)] == [False, False]

    def test_of_another_start_may_be_the_same_pin(self, tmp_path: Path) -> None:
        states = [self.start(tmp_path, number).identity for number in ("a1", "a2")]
        assert same_state(*states)

    def test_without_systemd_s_number_is_compared_only_outside_its_directory(self, tmp_path: Path) -> None:
        elsewhere = [self.start(tmp_path, "", pin).identity for pin in (b"4711", b"0815")]
        assert not same_state(*elsewhere)
        of_systemd = SystemdCredentialPin("card", {"CREDENTIALS_DIRECTORY": "/run/credentials/app.service"})
        assert of_systemd.identity == of_systemd.description

    def test_that_is_missing_now_may_be_the_same(self, tmp_path: Path) -> None:
        source = self.start(tmp_path, "a1")
        before = source.identity
        (tmp_path / "credentials" / "card").unlink()
        assert same_state(before, source.identity)
        assert same_state(source.identity, before)

    def test_of_another_name_is_another_source(self, tmp_path: Path) -> None:
        source = self.start(tmp_path, "a1")
        other = SystemdCredentialPin("other", source.environ)
        assert not same_state(source.identity, other.identity)


@pytest.mark.parametrize(
    ("environ", "reason"), [({}, "CREDENTIALS_DIRECTORY is not set"), ({"CREDENTIALS_DIRECTORY": "/"}, "No such file")]
)
def test_a_missing_systemd_credential_is_explained(environ: dict[str, str], reason: str) -> None:
    with pytest.raises(PinUnavailable, match=reason) as refused:
        SystemdCredentialPin("no-such-card", environ)(REQUEST)
    assert "LoadCredential=no-such-card:PATH" in str(refused.value.hint)


def test_a_pin_pad_and_no_login_are_different_answers() -> None:
    assert PROTECTED(REQUEST) is PinPad.PROTECTED
    assert NO_LOGIN(REQUEST) is None


@dataclass(frozen=True)
class Prompt:
    description: str = "the terminal"
    identity: str = "the terminal"
    attended: bool = True

    def __call__(self, request: PinRequest) -> Login:
        return Pin(f"typed for {request.device}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt", Prompt()),
        ("protected", PROTECTED),
        ("none", NO_LOGIN),
        ("file:/etc/x/pin", FilePin(Path("/etc/x/pin"))),
        ("file:pins/100%25", FilePin(Path("pins/100%25"))),
        ("file:///etc/x/100%25%20pin", FilePin(Path("/etc/x/100% pin"))),
        ("file://localhost/etc/x/pin", FilePin(Path("/etc/x/pin"))),
        ("/etc/x/pin", FilePin(Path("/etc/x/pin"))),
        ("env:CARD_PIN", EnvironmentPin("CARD_PIN")),
        ("fd:3", DescriptorPin(3)),
        ("credential:card.pin", SystemdCredentialPin("card.pin")),
        ("command:/usr/bin/pass show 'the card'", CommandPin(("/usr/bin/pass", "show", "the card"))),
        (["/usr/bin/pass", "show", "the card"], CommandPin(("/usr/bin/pass", "show", "the card"))),
    ],
)
def test_a_setting_names_its_source(text: str | Sequence[str], expected: PinSource) -> None:
    assert parse_pin_source(text, prompt=Prompt()) == expected


def test_the_environment_to_read_can_be_passed_in() -> None:
    assert reveal(parse_pin_source("env:CARD_PIN", prompt=None, environ={"CARD_PIN": "4711"})(REQUEST)) == "4711"


def test_only_the_prompt_is_attended() -> None:
    settings = ["file:/p", "env:P", "fd:3", "credential:p", "command:/p", "protected", "none"]
    assert [text for text in ["prompt", *settings] if parse_pin_source(text, prompt=Prompt()).attended] == ["prompt"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECRET,
        f"pin:{SECRET}",
        f"Prompt:{SECRET}",
        f"prompt:{SECRET}",
        f"none:{SECRET}",
        "file",
        "file:",
        f"file:{SECRET}\0",
        f"file:///{SECRET}%00",
        f"file://{SECRET}/pin",
        "env",
        "env:",
        f"env:{SECRET}",
        "env:1234",
        "fd:",
        f"fd:{SECRET}",
        "fd:-1",
        "fd:1234567",
        "fd:\N{ARABIC-INDIC DIGIT THREE}",
        "credential:",
        "credential:..",
        f"credential:a/{SECRET}",
        "command:",
        f"command:{SECRET}",
        f"command:/bin/echo '{SECRET}",
        f"|/bin/echo {SECRET}",
        [],
        ["command", "/bin/echo", SECRET],
        ["/bin/echo", f"{SECRET}\0"],
    ],
)
def test_an_invalid_source_is_refused_without_being_quoted(text: str | Sequence[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_pin_source(text, prompt=Prompt())
    error = refused.value
    assert SECRET not in error.message + str(error.hint)
    assert error.__context__ is None


def test_the_error_for_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_pin_source("pin", prompt=None)
    for source in ("file:", "env:", "fd:", "command:", "credential:", "protected", "none", "prompt"):
        assert source in str(refused.value.hint)


def test_the_error_for_a_prompt_without_a_terminal_names_the_other_sources() -> None:
    with pytest.raises(PinUnavailable, match="nobody can be asked") as refused:
        parse_pin_source("prompt", prompt=None)
    assert "file:PATH" in str(refused.value.hint)


def test_a_fixed_pin_is_returned_and_not_shown() -> None:
    source = FixedLogin(Pin(SECRET), "the pin-value of the URI")
    assert reveal(source(REQUEST)) == SECRET
    assert SECRET not in repr(source)


def test_the_error_for_a_missing_source_names_the_device_and_the_possible_sources() -> None:
    with pytest.raises(PinUnavailable, match="Test card requires a PIN, and no PIN source is set") as refused:
        NoPinSource()(REQUEST)
    assert "env:NAME" in str(refused.value.hint)
