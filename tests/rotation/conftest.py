"""An application whose credentials Graph does not list: reading them is forbidden."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.application import Application, running_application


@pytest.fixture
def unlisted(tmp_path: Path, device_pin: None) -> Iterator[Application]:
    with running_application(tmp_path, forbid_listing=True) as application:
        yield application
