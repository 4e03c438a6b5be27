"""For tests that run as root: show code the ids of an ordinary user, because root has no own p11-kit configuration."""

import os
from pathlib import Path

import pytest

_ROOT = os.getuid() == 0
_UID = 4711


def be_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show those ids to code in this process."""
    if _ROOT:
        for name in ("getuid", "geteuid"):
            monkeypatch.setattr(os, name, lambda: _UID)


def make_site(directory: Path) -> Path:
    """Return a directory for PYTHONPATH that shows those ids to code in a Python process."""
    if _ROOT:
        (directory / "sitecustomize.py").write_text(f"import os\nos.getuid = os.geteuid = lambda: {_UID}\n")
    return directory
