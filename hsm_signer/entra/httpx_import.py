"""httpx, imported without its command line.

Where click is installed, and uvicorn brings it, httpx imports its own command line with rich and pygments: 60 ms at
each start. It goes without where that module cannot be imported.
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
