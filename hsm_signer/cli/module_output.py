"""Keeps what PKCS#11 modules print out of our own output."""

import os
import sys
from typing import Any


def keep_modules_apart(*, verbose: bool) -> None:
    """Drop what PKCS#11 modules print on descriptors 1 and 2, or with `verbose` send it to stderr.

    tpm2-pkcs11 and the libraries below it print on stderr what they also return, and p11-kit's proxy loads it for
    everybody. Our own stdout and stderr move to other descriptors.
    """
    if verbose:
        sys.stdout = _apart(sys.stdout, 1, instead=os.dup(2))
        return
    sys.stdout = _apart(sys.stdout, 1, instead=os.open(os.devnull, os.O_WRONLY))
    sys.stderr = _apart(sys.stderr, 2, instead=os.open(os.devnull, os.O_WRONLY))


def _apart(stream: Any, descriptor: int, *, instead: int) -> Any:
    """Return a stream that writes where `stream` does, and redirect the descriptor itself to `instead`."""
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
