"""What the README and docs/configuration.md say is true."""

import re
import subprocess
from pathlib import Path

import pytest

from hsm_signer import errors
from hsm_signer.cli.app import COMMANDS
from hsm_signer.config.settings import SETTINGS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")

# What differs from one run to the next, and what it is called instead.
_VARIABLE = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "GUID"),
    (r"https://127\.0\.0\.1:\d+", "AUTHORITY"),
    (r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d UTC)?", "TIME"),
    (r"\b\d{10}\b", "EPOCH"),
    (r"now|(in )?\d+ (second|minute|hour)s?( ago)?", "DISTANCE"),
    (r"another \d+ s", "another SECONDS"),
    (r"(?<=x5t  )\S{27}|(?<=kid     )\S{43}", "HASH"),
    (r'(?<=SOFTHSM2_CONF = ")[^"]+(?=/softhsm2)|(?<=ca_bundle = ")[^"]+', "PATH"),
    (r'(?<=module = ")[^"]+', "MODULE"),
)


def normalised(text: str) -> list[str]:
    """Return the lines of a transcript without what varies, headings and empty lines."""
    for pattern, name in _VARIABLE:
        text = re.sub(pattern, name, text)
    return [line for line in text.splitlines() if line and not line.startswith("==>")]


@pytest.fixture(scope="module")
def demo() -> str:
    """What scripts/demo prints."""
    done = subprocess.run([ROOT / "scripts" / "demo"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_transcript_is_what_the_demo_shows(demo: str) -> None:
    block = re.search(r"<!-- transcript.*?```console\n(.*?)```", README, re.DOTALL)
    assert block
    shown = normalised(demo)
    written = normalised(block[1])
    # After that, the demo checks the token by the issuer's keys, and shows doctor.
    assert shown[: len(written)] == written
    assert shown[len(written)].startswith("verified with the keys of AUTHORITY")


def test_the_demo_says_first_how_long_it_takes(demo: str) -> None:
    assert re.match(r"==> This takes about \d+ seconds", demo)


def test_doctor_finds_nothing_wrong_with_the_demo(demo: str) -> None:
    rows = re.findall(
        r"^[a-z]+ +(ok|skipped|warning|failed) ", demo.partition("$ hsm-signer doctor\n")[2], re.MULTILINE
    )
    assert len(rows) > 10
    assert set(rows) == {"ok", "skipped"}


def test_the_command_at_the_end_of_the_demo_works_after_it(demo: str, tmp_path: Path) -> None:
    command = demo.splitlines()[-1]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("header  alg  RS256\n")


def test_every_setting_is_in_the_table() -> None:
    rows = {row.split("|")[1].strip(): row for row in CONFIGURATION.splitlines() if row.startswith("| ")}
    for setting in SETTINGS.values():
        row = rows[f"`{setting.option}`" if setting.panel else f"(profile only) `{setting.name}`"]
        for variable in filter(None, (setting.variable, setting.azure)):
            assert f"`{variable}`" in row


def test_every_command_is_in_the_table() -> None:
    rows = re.findall(r"^\| `([a-z-]+)", README.partition("## Commands")[2].partition("\n## ")[0], re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


def test_every_exit_status_is_in_the_table() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    statuses = {each.exit_status for each in classes if issubclass(each, errors.HsmSignerError)}
    for status in statuses:
        assert f"\n| {status} |" in CONFIGURATION
