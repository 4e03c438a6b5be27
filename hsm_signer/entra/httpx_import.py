"""httpx, imported without its command line.

If click is installed, and uvicorn installs it, httpx imports its own command line with rich and pygments: 60 ms at each
start. If that module cannot be imported, httpx works without it.
"""

import sys

_COMMAND_LINE = "httpx._main"

if "httpx" not in sys.modules:
    sys.modules[_COMMAND_LINE] = None  # type: ignore[assignment]  # "the import system": then it cannot be imported
    try:
        import httpx
    finally:
        del sys.modules[_COMMAND_LINE]
else:
    import httpx

__all__ = ["httpx"]
