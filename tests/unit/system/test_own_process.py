"""A process that hides its memory from others can still read what it needs about itself, also as an ordinary user."""

import subprocess
import sys

PROGRAM = """
import ctypes, os
from hsm_signer.system.own_process import keep_memory_private

def readable(name):
    try:
        with open(f"/proc/self/{name}", "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False

if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as it is after an execve; setuid(2) ended that
before = readable("environ")
keep_memory_private()
print(before, *(readable(name) for name in ("environ", "mountinfo", "maps")), len(os.listdir("/proc/self/fd")) > 2)
"""


def test_a_process_that_hides_its_memory_can_still_read_its_own_maps_and_mounts() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert done.stdout == "True False True True True\n"
