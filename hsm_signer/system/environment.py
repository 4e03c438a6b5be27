"""The environment for programs that we start: all variables except those that hold PINs."""

import os

_withheld: set[str] = set()


def withhold(variable: str) -> None:
    """Keep an environment variable from every program that this process starts from now on.

    It stays in this process: another key may need it again, and the kernel would still show it in /proc.
    """
    _withheld.add(variable)


def inherited_environment() -> dict[str, str]:
    """Return the environment for a program that we start."""
    return {name: value for name, value in os.environ.items() if name not in _withheld}
