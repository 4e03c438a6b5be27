"""Root has no p11-kit configuration of its own. Where root runs the tests, have code see an ordinary user's ids."""

import os
from pathlib import Path

import pytest

_ROOT = os.getuid() == 0
_UID = 4711


def be_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have code in this process see them."""
    if _ROOT:
        for name in ("getuid", "geteuid"):
            monkeypatch.setattr(os, name, lambda: _UID)


def make_site(directory: Path) -> Path:
    """Return a directory that has code see them in every Python whose PYTHONPATH it is in."""
    if _ROOT:
        (directory / "sitecustomize.py").write_text(f"import os\nos.getuid = os.geteuid = lambda: {_UID}\n")
    return directory
