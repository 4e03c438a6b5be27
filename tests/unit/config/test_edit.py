"""Changes to the configuration file: what belongs to others stays byte for byte."""

import os
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.config.edit import ProfilePlace, Value, edited, profile_place, toml_value, write_profile
from hsm_signer.errors import ConfigError

FILE = """\
# ours

[profile.a]
tenant = "first" # theirs

# about b
[profile.b]
tenant = "second"

[profile.b.module_environment]
A = "b"

# about c
[profile.c]
tenant = "third"
"""


def place(name: str) -> ProfilePlace:
    return ProfilePlace(Path("/etc/config.toml"), name)


def test_a_new_profile_is_added_at_the_end() -> None:
    after = edited(FILE, place("d"), {"tenant": "fourth", "scope": ["x", "y"]}, replace=False)
    assert after == FILE + '\n[profile.d]\ntenant = "fourth"\nscope = ["x", "y"]\n'


def test_a_missing_newline_at_the_end_is_added() -> None:
    after = edited('[profile.a]\ntenant = "x"', place("b"), {"tenant": "y"}, replace=False)
    assert after == '[profile.a]\ntenant = "x"\n\n[profile.b]\ntenant = "y"\n'


def test_keys_are_added_to_a_profile_that_exists() -> None:
    after = edited(FILE, place("b"), {"scope": "x"}, replace=False)
    assert after == FILE.replace("[profile.b]\n", '[profile.b]\nscope = "x"\n')


def test_a_profile_is_replaced_with_its_sub_tables_and_without_what_stands_around_it() -> None:
    after = edited(FILE, place("b"), {"tenant": "x"}, replace=True)
    before, _, rest = FILE.partition("[profile.b]\n")
    assert after == before + '[profile.b]\ntenant = "x"\n\n# about c\n' + rest.partition("# about c\n")[2]


def test_windows_line_ends_stay() -> None:
    text = '[profile.a]\r\ntenant = "x"\r\n'
    assert edited(text, place("a"), {"scope": "y"}, replace=False) == '[profile.a]\r\nscope = "y"\r\ntenant = "x"\r\n'


@pytest.mark.parametrize(
    "text", ['profile = { a = { tenant = "x" } }\n', 'profile.a.tenant = "x"\n', '[profile]\na = { tenant = "x" }\n']
)
def test_a_file_that_cannot_be_edited_is_left_alone_and_the_lines_are_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be edited") as raised:
        edited(text, place("a"), {"scope": "y"}, replace=False)
    assert raised.value.commands == ("[profile.a]", 'scope = "y"')


def test_a_header_in_a_string_is_no_header() -> None:
    text = '[profile.a]\ntenant = """\n[profile.b]\n"""\n[profile.b]\ntenant = "x"\n'
    with pytest.raises(ConfigError, match="cannot be edited"):
        edited(text, place("b"), {"scope": "y"}, replace=False)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_VALUES: st.SearchStrategy[Value] = st.one_of(
    _TEXT, st.booleans(), st.integers(0, 10**7), st.lists(_TEXT), st.dictionaries(_TEXT, _TEXT)
)


@given(_TEXT, st.dictionaries(st.sampled_from(["tenant", "scope", "key", "pin_source"]), _VALUES))
def test_every_value_and_name_is_read_back(name: str, values: dict[str, Value]) -> None:
    after = edited(FILE, place(name), values, replace=True)
    assert tomllib.loads(after)["profile"][name] == values


def test_whole_numbers_are_written_whole() -> None:
    assert [toml_value(2592000.0), toml_value(0.5), toml_value(True)] == ["2592000", "0.5", "true"]


def test_a_new_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "config.toml"
    write_profile(ProfilePlace(file, "ä"), {"tenant": "é"}, replace=False)
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ('[profile."ä"]\ntenant = "é"\n', 0o600)
    assert os.listdir(file.parent) == ["config.toml"]


def test_the_mode_of_a_file_that_exists_stays_and_a_link_to_it_too(tmp_path: Path) -> None:
    file, link = tmp_path / "real.toml", tmp_path / "config.toml"
    file.write_text(FILE)
    file.chmod(0o644)
    link.symlink_to(file)
    write_profile(ProfilePlace(link, "d"), {"tenant": "x"}, replace=False)
    assert link.is_symlink()
    assert file.read_text().startswith(FILE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_the_own_file_is_written_where_there_is_none(tmp_path: Path) -> None:
    found = profile_place(None, None, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert found == ProfilePlace(tmp_path / "hsm-signer/config.toml", "default")
