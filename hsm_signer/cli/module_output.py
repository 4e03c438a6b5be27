"""Keeps what PKCS#11 modules print apart from our own output."""

import os
import sys
from typing import Any


def keep_modules_apart(*, verbose: bool) -> None:
    """Keep what PKCS#11 modules print out of our output: stdout stays ours alone, and stderr unless `verbose`.

    tpm2-pkcs11 and the libraries below it report on stderr what they also return; p11-kit's proxy loads it for
    everybody.

    Args:
        verbose: let what they print be seen, on stderr; else it goes nowhere.
    """
    if verbose:
        sys.stdout = _apart(sys.stdout, 1, instead=os.dup(2))
        return
    sys.stdout = _apart(sys.stdout, 1, instead=os.open(os.devnull, os.O_WRONLY))
    sys.stderr = _apart(sys.stderr, 2, instead=os.open(os.devnull, os.O_WRONLY))


def _apart(stream: Any, descriptor: int, *, instead: int) -> Any:
    """Return a stream to where `stream` leads, while the descriptor itself is made to lead where `instead` does."""
    try:
        if stream is None or stream.fileno() != descriptor:
            return stream
        stream.flush()
        kept = os.dup(descriptor)
        os.dup2(instead, descriptor)
    except (OSError, ValueError):
        return stream
    finally:
        os.close(instead)
    return open(kept, "w", encoding=stream.encoding, errors=stream.errors)
