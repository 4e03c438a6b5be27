"""The examples in docs/ can be copied: every Python snippet runs unchanged, and every command line is valid."""

import json
import re
import shlex
import subprocess
import sys
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.names import CLIENT, TENANT
from tests.support.program import MAIN, Program, program_with

from .vault import Vault

ROOT = Path(__file__).parents[2]
INDEX = "docs/README.md"
CONFIGURATION = "docs/configuration.md"
TESTING = "docs/testing.md"
TEXTS = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").rglob("*.md"))
}
README = (ROOT / "README.md").read_text(encoding="utf-8")
# The server application of AKS.
AKS = "6dae42f8-4368-4678-94ff-3960e28e3630"


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def snippets(*languages: str) -> list[Snippet]:
    """Return the blocks of all pages that are in one of these languages."""
    return [
        Snippet(page, text.count("\n", 0, block.start()) + 2, block[1], block[2])
        for page, text in TEXTS.items()
        for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        if block[1] in languages
    ]


def only(page: str, language: str) -> Snippet:
    """Return the one block of a page in a language."""
    (snippet,) = (each for each in snippets(language) if each.page == page)
    return snippet


def arguments_in(snippet: Snippet) -> list[list[str]]:
    """Return the arguments of each hsm-signer command in a block, unexpanded."""
    text = snippet.text.replace("\\\n", " ")
    if snippet.language == "yaml":
        assert re.search(r"^ *command: hsm-signer$", text, re.MULTILINE)
        return [json.loads(args) for args in re.findall(r"^ *args: (\[.*\])$", text, re.MULTILINE)]
    commands = re.findall(r"hsm-signer ((?:'[^'\n]*'|[^\n|;)])+)", text)
    return [shlex.split(command) for command in commands]


COMMANDS = [
    pytest.param(arguments, id=f"{snippet.page}:{snippet.line}: {' '.join(arguments)}")
    for snippet in snippets("sh", "console", "ini", "yaml")
    for arguments in arguments_in(snippet)
]


@pytest.fixture(scope="module")
def softhsm() -> Iterator[SoftHsm]:
    """A separate device: wrong PINs of other tests would cause warnings."""
    with SoftHsm(label="docs") as softhsm:
        yield softhsm


@pytest.fixture(scope="module")
def key(softhsm: SoftHsm) -> SoftHsmKey:
    return softhsm.add_identity()


@pytest.fixture
def configuration(softhsm: SoftHsm, tmp_path: Path) -> Path:
    """The configuration directory, with the file that holds the PIN."""
    directory = tmp_path / ".config" / "hsm-signer"
    directory.mkdir(parents=True)
    pin = directory / "pin"
    pin.touch(mode=0o600)
    pin.write_text(softhsm.pin + "\n")
    return directory


@pytest.fixture
def here(
    softhsm: SoftHsm, key: SoftHsmKey, entra: EntraEmulator, vault: Vault, configuration: Path
) -> Mapping[str, str]:
    """What the pages say, and what the tests replace it by."""
    pin = configuration / "pin"
    settings = f"module={str(softhsm.module)!r}, authority={entra.authority!r}, ca_bundle={str(entra.ca_file)!r}"
    # The SDKs know Microsoft's hosts, and would ask Microsoft about any other.
    return {
        'authority="https://login.microsoftonline.com/contoso.onmicrosoft.com"': (
            f'authority="{entra.authority}/{TENANT}", instance_discovery=False'
        ),
        "func=signer.assertion": "func=signer.assertion, disable_instance_discovery=True",
        'vault_url="https://contoso.vault.azure.net"': f'vault_url="{vault.url}", verify_challenge_resource=False',
        "https://graph.microsoft.com/v1.0": f"{entra.graph}/v1.0",
        'pin_source="file:/run/secrets/pin"': f'pin_source="file:{pin}", {settings}',
        "file:/run/secrets/pin": f"file:{pin}",
        "pkcs11:token=Office;id=%01": key.uri,
        "contoso.onmicrosoft.com": TENANT,
        "11111111-2222-4333-8444-555555555555": CLIENT,
    }


def put_here(text: str, here: Mapping[str, str]) -> str:
    for documented, actual in here.items():
        text = text.replace(documented, actual)
    return text


@pytest.fixture
def program(
    softhsm: SoftHsm, entra: EntraEmulator, vault: Vault, here: Mapping[str, str], configuration: Path, tmp_path: Path
) -> Program:
    """hsm-signer and Python, with the configuration that the index shows."""
    config = configuration / "config.toml"
    config.write_text(put_here(only(INDEX, "toml").text, here))
    config.chmod(0o600)
    trusted = tmp_path / "trusted.pem"
    assert entra.ca_file is not None
    trusted.write_bytes(entra.ca_file.read_bytes() + vault.ca_file.read_bytes())
    return program_with(
        softhsm,
        tmp_path,
        NO_PROXY="127.0.0.1",
        SSL_CERT_FILE=str(trusted),
        REQUESTS_CA_BUNDLE=str(trusted),
        HSM_SIGNER_MODULE=str(softhsm.module),
        HSM_SIGNER_AUTHORITY=entra.authority,
        AZURE_AUTHORITY_HOST=entra.authority,
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory of programs: hsm-signer, and a stub of Terraform."""
    directory = tmp_path / "bin"
    directory.mkdir(mode=0o700)
    script = directory / "hsm-signer"
    script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *MAIN])} "$@"\n')
    script.chmod(0o700)
    (directory / "terraform").symlink_to("/bin/true")
    return directory


def exported(page: str) -> dict[str, str]:
    """Return the HSM_SIGNER variables that the shell blocks of a page set."""
    texts = "\n".join(each.text for each in snippets("sh") if each.page == page)
    words = shlex.split("\n".join(re.findall(r"^export (HSM_SIGNER_.*)$", texts, re.MULTILINE)))
    return dict(word.split("=", 1) for word in words)


PYTHON = [
    pytest.param(each, id=f"{each.page}:{each.line}")
    for each in snippets("python")
    if each.page != TESTING  # tests/testing/test_plugin.py runs those
]


@pytest.mark.parametrize("snippet", PYTHON)
def test_a_python_snippet_runs_and_gets_an_answer(
    snippet: Snippet, program: Program, here: Mapping[str, str], entra: EntraEmulator, vault: Vault
) -> None:
    # Variables would override the profile.
    variables = exported(snippet.page) if "from_environment" in snippet.text else {}
    environment = {name: put_here(value, here) for name, value in variables.items()}
    # Warnings fail the test: a snippet leaves nothing open, and uses nothing deprecated.
    result = program(environment=environment, python=("-W", "default", "-c", put_here(snippet.text, here)))
    assert (result.status, result.stderr) == (0, "")
    assert [request.status for request in entra.requests] == [200]
    answers = len(vault.tokens) + [request.status for request in entra.graph_requests].count(200)
    assert answers == len(re.findall(r"\b(?:client\.get_secret|graph\.get)\(", snippet.text))
    assert "eyJ" not in result.stdout  # no token is shown


class TestCommands:
    @pytest.mark.parametrize("arguments", COMMANDS)
    def test_a_command_line_is_valid(self, program: Program, arguments: list[str]) -> None:
        # An unknown option is an error, even with --help.
        result = program(*arguments, "--help")
        assert (result.status, result.stderr) == (0, "")

    @pytest.mark.parametrize(
        ("page", "lifetime"), [("docs/clients/federated-token-file.md", 3600), ("docs/clients/terraform.md", 14400)]
    )
    def test_the_shell_commands_write_a_file_with_an_assertion(
        self, program: Program, installed: Path, page: str, lifetime: int
    ) -> None:
        block = next(each.text for each in snippets("sh") if each.page == page)
        environment = {
            **program.environment,
            "PATH": f"{installed}:/usr/bin:/bin",
            "XDG_RUNTIME_DIR": str(program.home),
        }
        command = ["sh", "-euc", f'{block}\ncat "$AZURE_FEDERATED_TOKEN_FILE"']
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        claims = json.loads(urlsafe_b64decode(done.stdout.split(".")[1] + "=="))
        assert (claims["iss"], claims["exp"] - claims["nbf"]) == (CLIENT, lifetime)

    def test_print_env_prints_what_the_page_shows(self, program: Program, here: Mapping[str, str]) -> None:
        transcript = only("docs/clients/federated-token-file.md", "console")
        shown = put_here(transcript.text.partition("\n")[2], here)
        public = {"HSM_SIGNER_AUTHORITY": "", "AZURE_AUTHORITY_HOST": ""}
        assert program(*arguments_in(transcript)[0], environment=public).stdout == shown

    def test_the_variables_that_terraform_needs_are_printed(self) -> None:
        printed = only("docs/clients/federated-token-file.md", "console").text
        for name in ("ARM_USE_OIDC", "ARM_OIDC_TOKEN_FILE_PATH", "ARM_CLIENT_ID", "ARM_TENANT_ID"):
            assert f"`{name}`" in TEXTS["docs/clients/terraform.md"]
            assert f"export {name}=" in printed


class TestKubeconfig:
    def test_its_command_prints_a_credential_of_the_requested_version(
        self, program: Program, entra: EntraEmulator
    ) -> None:
        kubeconfig = only("docs/clients/kubectl.md", "yaml")
        (arguments,) = arguments_in(kubeconfig)
        version = re.search(r"^ *apiVersion: (\S+)$", kubeconfig.text, re.MULTILINE)
        assert version
        info = {"apiVersion": version[1], "kind": "ExecCredential", "spec": {"interactive": False}}
        credential = program(*arguments, environment={"KUBERNETES_EXEC_INFO": json.dumps(info)}).json
        assert (credential["apiVersion"], credential["kind"]) == (version[1], "ExecCredential")
        assert entra.requests[-1].form["scope"] == f"{AKS}/.default"

    def test_the_readme_has_the_same_kubeconfig(self) -> None:
        assert only("docs/clients/kubectl.md", "yaml").text in README


class TestUnit:
    def unit(self) -> ConfigParser:
        parser = ConfigParser(interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
        parser.read_string(only("docs/clients/federated-token-file.md", "ini").text)
        return parser

    def test_it_is_not_restarted_after_errors_where_a_retry_could_do_harm(self) -> None:
        rows = re.findall(r"^\| (\d+) \|.*\| (?:\*\*)?not restart(?:\*\*)? \|$", TEXTS[CONFIGURATION], re.MULTILINE)
        assert self.unit()["Service"]["RestartPreventExitStatus"].split() == rows

    def test_the_file_is_in_the_directory_that_systemd_creates(self) -> None:
        service = self.unit()["Service"]
        assert f" /run/{service['RuntimeDirectory']}/assertion " in service["ExecStart"]


class TestPages:
    def test_each_page_is_in_the_index(self) -> None:
        linked = re.findall(r"\]\(([\w/-]+\.md)\)", TEXTS[INDEX])
        assert sorted(f"docs/{page}" for page in linked) == [page for page in TEXTS if page != INDEX]

    def test_each_guide_says_what_was_not_tried(self) -> None:
        guides = [page for page in TEXTS if page not in (INDEX, CONFIGURATION)]
        assert [page for page in guides if "\nNot tried on live Entra." not in TEXTS[page]] == []

    def test_links_lead_to_existing_pages(self) -> None:
        links = [(page, link) for page, text in TEXTS.items() for link in re.findall(r"\]\((?!https:)([^)#]+)", text)]
        assert [(page, link) for page, link in links if not (ROOT / page).parent.joinpath(link).is_file()] == []
