"""What importing the package loads, and that it needs none of the SDKs that it works with."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.names import GRAPH

_LOADED = "; import sys; print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"


def loaded(statement: str) -> set[str]:
    """Return the top-level packages, the standard library's aside, that a statement loads."""
    program = [sys.executable, "-c"]
    before, after = (
        set(subprocess.run([*program, text + _LOADED], capture_output=True, text=True, check=True).stdout.split())
        for text in ("pass", statement)
    )
    return {name for name in after - before if not name.startswith("_")}


def test_importing_the_package_loads_no_other_package() -> None:
    assert loaded("import hsm_signer") == {"hsm_signer"}


@pytest.mark.parametrize("name", ["HsmCredential", "AccessToken", "HsmSignerError"])
def test_importing_a_public_name_loads_neither_pkcs11_nor_httpx_nor_an_optional_package(name: str) -> None:
    assert loaded(f"from hsm_signer import {name}") <= {"hsm_signer", "asn1crypto", "cryptography"}


def test_the_asynchronous_credential_loads_anyio() -> None:
    # So that the tests above can fail.
    assert "anyio" in loaded("from hsm_signer import AsyncHsmCredential")


_WITHOUT_AZURE = """
import json, sys
sys.modules["azure"] = None
from hsm_signer import AccessToken, HsmCredential
scope, arguments = sys.argv[1], json.loads(sys.argv[2])
with HsmCredential(**arguments) as credential:
    token, info = credential.get_token(scope), credential.get_token_info(scope)
assert type(token) is type(info) is AccessToken
print(json.dumps([token.token.count("."), token.expires_on == info.expires_on, info.token_type, info.refresh_on]))
"""


def test_without_azure_core_our_own_token_classes_have_the_same_attributes(arguments: dict[str, Any]) -> None:
    given = json.dumps(arguments, default=str)
    command = [sys.executable, "-c", _WITHOUT_AZURE, GRAPH, given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [2, True, "Bearer", None]
