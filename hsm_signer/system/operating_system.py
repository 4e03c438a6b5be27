"""Which operating system this is, by the names of os-release(5), and which user."""

import os
import platform
import pwd
import sys


def system_names() -> tuple[str, ...]:
    """Return what this system is called, and then what it is like: ("ubuntu", "debian"). Empty if nobody knows."""
    if sys.platform == "darwin":
        return ("macos",)
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ()
    return (release.get("ID", ""), *release.get("ID_LIKE", "").split())


def user_name() -> str:
    """Return the name of the user that this process runs as, or the number of one without a name."""
    user = os.geteuid()
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
