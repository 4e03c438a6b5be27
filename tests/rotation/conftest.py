"""An application that Graph does not tell what it holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.application import Application, running_application


@pytest.fixture
def reticent(tmp_path: Path, device_pin: None) -> Iterator[Application]:
    with running_application(tmp_path, forbid_listing=True) as application:
        yield application
