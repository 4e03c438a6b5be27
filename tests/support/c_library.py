"""C libraries that replace a PKCS#11 module."""

import subprocess
from pathlib import Path


def compile_library(source: str, directory: Path) -> Path:
    """Compile C into a shared library in a directory."""
    file, library = directory / "library.c", directory / "library.so"
    file.write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", file, "-o", library], check=True)
    return library
