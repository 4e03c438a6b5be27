"""An assertion file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hsm_signer.service.assertion_file import AssertionFile

Make = Callable[..., AssertionFile]
CLIENT, AUDIENCE = "8f1c1f3e-7a58-4f0a-8f1e-3f5ad2a3a001", "https://login.example/contoso/oauth2/v2.0/token"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(**changes: object) -> AssertionFile:
        given: dict[str, object] = {"path": tmp_path / "assertion", "client_id": CLIENT, "audience": AUDIENCE}
        return AssertionFile(**{**given, **changes})  # type: ignore[arg-type]  # checked by those that use it

    return make
