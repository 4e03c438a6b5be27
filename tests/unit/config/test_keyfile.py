"""Key files: read as they were written, refused if malformed or open to changes by others, and named by profiles."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.config.keyfile import KeyEntry, KeyFile, read_key_file, write_key_file
from hsm_signer.config.profile import load_profile, profile_from_arguments
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, OutputError

KEY = "pkcs11:token=Office;id=%01"

entries = st.builds(
    KeyEntry,
    st.builds(Pkcs11Uri, token=st.none() | st.text(min_size=1), id=st.binary(min_size=1)),
    st.booleans(),
    st.none() | st.uuids().map(str),
    st.fixed_dictionaries({}, optional={"x5t": st.text(), "x5t#S256": st.text()}),
    st.none() | st.integers(0, 2**32),
    st.booleans(),
)
contents = st.builds(
    KeyFile, entries, st.none() | entries, st.lists(entries, max_size=3).map(tuple), st.none() | st.uuids().map(str)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "key.json"


@given(content=contents)
def test_a_key_file_is_read_as_it_was_written(file: Path, content: KeyFile) -> None:
    write_key_file(file, content)
    assert read_key_file(file) == content


def test_a_key_file_written_by_hand_needs_only_a_key(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text(json.dumps({"key": KEY}))
    assert read_key_file(file) == KeyFile(KeyEntry(Pkcs11Uri.parse(KEY)))


def test_every_user_can_read_a_key_file_and_only_its_owner_can_write_it(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    write_key_file(file, KeyFile(KeyEntry(Pkcs11Uri.parse(KEY))))
    assert file.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in tmp_path.iterdir()] == ["key.json"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "not JSON", id="empty"),
        pytest.param("pkcs11:token=Office", "not JSON", id="a bare URI"),
        pytest.param("[]", "not JSON", id="a list"),
        pytest.param("{}", "not JSON", id="no key"),
        pytest.param('{"key": 1}', "not JSON", id="a number"),
        pytest.param('{"key": ' * 50_000, "not JSON", id="nested deeply"),
        pytest.param('{"key": "pkcs11:", "registered": "no"}', "not JSON", id="registered is a string"),
        pytest.param('{"key": "pkcs11:", "registered": null}', "not JSON", id="registered is null"),
        pytest.param('{"key": "pkcs11:", "key_id": 7}', "not JSON", id="key_id is a number"),
        pytest.param('{"key": "pkcs11:", "key_id": "\\ud800"}', "not JSON", id="key_id is a lone surrogate"),
        pytest.param('{"key": "pkcs11:", "object_id": ["x"]}', "not JSON", id="object_id is a list"),
        pytest.param('{"key": "pkcs11:", "x5t": {}}', "not JSON", id="x5t is an object"),
        pytest.param('{"key": "pkcs11:", "next": "pkcs11:"}', "not JSON", id="next is a string"),
        pytest.param('{"key": "pkcs11:", "retired": {"key": "pkcs11:"}}', "not JSON", id="retired is an object"),
        pytest.param('{"key": "pkcs11:", "key": "pkcs11:token=b"}', "not JSON", id="key twice"),
        pytest.param('{"key": "pkcs11:token=a;token=b"}', "this attribute was given before", id="malformed URI"),
        pytest.param('{"key": "pkcs11:", "keyid": "x"}', "unknown member 'keyid'", id="unknown member"),
        pytest.param('{"key": "pkcs11:", "until": "tomorrow"}', "not JSON", id="until is not a time"),
        pytest.param('{"key": "pkcs11:", "until": "2026-11-24T15:00:00"}', "not JSON", id="until has no zone"),
        pytest.param('{"key": "pkcs11:", "until": 1750000000}', "not JSON", id="until is a number"),
    ],
)
def test_a_malformed_key_file_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "key.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"is not a valid key file: .*({reason})"):
        read_key_file(file)


def test_a_key_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    write_key_file(file, KeyFile(KeyEntry(Pkcs11Uri.parse(KEY))))
    file.chmod(0o620)
    with pytest.raises(ConfigError, match=r"Other users could replace the key file .* has mode 0620"):
        read_key_file(file)


@pytest.mark.parametrize("member", ["key", "next", "retired"])
def test_a_key_file_with_a_pin_is_refused_and_the_message_does_not_show_the_pin(tmp_path: Path, member: str) -> None:
    secret = f"{KEY}?pin-value=orchard4711"
    file = tmp_path / "key.json"
    within = {"key": secret, "next": {"key": secret}, "retired": [{"key": secret}]}
    file.write_text(json.dumps({"key": KEY, member: within[member]}))
    with pytest.raises(ConfigError, match="contains a PIN") as caught:
        read_key_file(file)
    assert "orchard" not in f"{caught.value.message}{caught.value.hint}"


def test_a_key_file_in_a_profile_is_relative_to_the_profile(tmp_path: Path) -> None:
    write_key_file(tmp_path / "key.json", KeyFile(KeyEntry(Pkcs11Uri.parse(KEY))))
    config = tmp_path / "config.toml"
    config.write_text('[profile.default]\nkey = "file:key.json"\n')
    profile = load_profile({}, config=config, environ={})
    assert (profile.key, profile.key_file) == ((Pkcs11Uri.parse(KEY),), tmp_path / "key.json")


def test_a_pin_file_in_a_key_file_is_relative_to_the_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{KEY}?pin-source=file:pin"
    (tmp_path / "key.json").write_text(json.dumps({"key": uri, "next": {"key": uri}, "retired": [{"key": uri}]}))
    monkeypatch.chdir(tmp_path)
    found = read_key_file(Path("key.json"))
    sources = {key.uri.pin_source for key in (found.current, found.next, *found.retired) if key}
    assert sources == {f"file:{tmp_path}/pin"}


def test_with_a_key_file_that_does_not_exist_yet_the_profile_has_no_key(tmp_path: Path) -> None:
    profile = profile_from_arguments({"key": f"file:{tmp_path / 'key.json'}"})
    assert (profile.key, profile.key_file) == ((), tmp_path / "key.json")


def test_a_key_file_and_another_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names a key file and other keys"):
        profile_from_arguments({"key": [f"file:{tmp_path / 'key.json'}", KEY]})


def test_a_profile_with_a_uri_has_no_key_file() -> None:
    assert profile_from_arguments({"key": KEY}).key_file is None


def test_a_key_file_that_cannot_be_replaced_is_unchanged(tmp_path: Path) -> None:
    file = tmp_path / ("k" * 250)  # so long that no file beside it can have a longer name
    before = KeyFile(KeyEntry(Pkcs11Uri.parse(KEY)))
    file.write_text(json.dumps({"key": KEY}))
    with pytest.raises(OutputError, match="cannot be written"):
        write_key_file(file, KeyFile(KeyEntry(Pkcs11Uri.parse("pkcs11:token=Other"))))
    assert read_key_file(file) == before
