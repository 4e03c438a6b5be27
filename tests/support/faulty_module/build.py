"""Compile the fault module, once for each version of its source."""

import hashlib
import os
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("module.c")
# Ignored by git.
_CACHE = Path(__file__).parents[3] / "build" / "faults"
_COMMAND = (
    *("gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror"),
    *("-fPIC", "-shared", "-fvisibility=hidden", "-I/usr/include/p11-kit-1"),
)


def build() -> Path:
    """Return the compiled module. It works only from a directory that `control.FaultyModule` creates.

    Raises:
        RuntimeError: it does not compile, or something to compile it with is missing.
    """
    version = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_COMMAND).encode()).hexdigest()[:16]
    module = _CACHE / f"{version}.so"
    if not module.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        # Under a temporary name until it is complete: several test runs may build at the same time.
        unfinished = module.with_suffix(f".{os.getpid()}")
        try:
            done = subprocess.run([*_COMMAND, _SOURCE, "-o", unfinished, "-ldl"], capture_output=True, text=True)
        except FileNotFoundError:
            raise RuntimeError("gcc is missing: apt-get install gcc libc6-dev libp11-kit-dev") from None
        if done.returncode != 0:
            raise RuntimeError(f"{_SOURCE} does not compile (gcc, libc6-dev and libp11-kit-dev):\n{done.stderr}")
        unfinished.rename(module)
    return module
