"""The README's commands, from an empty device to the second key, do what it says."""

import re
import shlex
from pathlib import Path

from hsm_signer.testing import EntraEmulator, SoftHsm
from tests.support.names import PIN, TENANT
from tests.support.program import Program

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CLIENT = "11111111-2222-4333-8444-555555555555"

# What differs from one run to the next, and what it is called instead.
_VARIABLE = (
    (r"serial=[0-9a-f]{16}|, [0-9a-f]{16}\)", "SERIAL"),
    (r"(%[0-9A-F]{2}){4}", "ID"),
    (r"[0-9A-F]{40}", "THUMBPRINT"),
    (r"\d{4}-\d\d-\d\d(T[0-9:+]+| [0-9:]+ UTC)", "TIME"),
    (r"app-\d{8}", "app-DATE"),
    (r"module-path=[^'\s]+", "module-path=MODULE"),
    (r"/\S+/key\.json", "FILE"),
)


def normalised(text: str) -> list[str]:
    """Return the lines of a transcript without what varies."""
    for pattern, name in _VARIABLE:
        text = re.sub(pattern, name, text)
    return text.splitlines()


def test_the_readme_s_commands_lead_from_an_empty_device_to_the_second_key(program: Program) -> None:
    block = re.search(r"<!-- life.*?```console\n(.*?)```", README, re.DOTALL)
    assert block
    with SoftHsm(label="Office", pin=PIN) as softhsm, EntraEmulator(https=False) as entra:
        (program.directory / "config.toml").write_text(
            f"""[profile.default]
            tenant = "{TENANT}"
            client_id = "{CLIENT}"
            authority = "{entra.authority}"
            key = "file:key.json"
            module = "{softhsm.module}"
            pin_source = "env:DEVICE_PIN"
            """
        )
        environment = {"HSM_SIGNER_CONFIG": str(program.directory / "config.toml"), **softhsm.environment}
        for told in block[1].split("\n\n"):
            command, *lines = told.splitlines()
            words = shlex.split(command.removeprefix("$ hsm-signer "))
            result = program(*words, environment=environment)
            assert result.status == 0, result.stderr
            expected = normalised("\n".join(lines))
            whole = len(expected) if expected[-1] != "  ..." else len(expected) - 1
            assert normalised(result.stdout + result.stderr)[:whole] == expected[:whole]
            if "create" in words:
                entra.register(CLIENT, (program.directory / "app.pem").read_bytes(), tenant=TENANT)
