"""A pseudo-terminal for the tested program, and the person in front of it."""

import codecs
import os
import re
import select
import termios

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m")  # ECMA-48 section 8.3.117, and the bright ones

# A shell that opens the terminal first, so that it becomes the controlling terminal of its session. The program keeps
# the stdin and stdout that it was started with. After it ended, the shell waits, because its end closes the terminal.
SHELL = (
    "trap : INT; exec 3<>\"$1\"; shift; "
    "\"$@\" 3>&-; status=$?; echo \"it ended with $status\" >&3; read -r answer <&3; exit $status"
)  # fmt: skip


class Terminal:
    """A terminal, from the person's side."""

    def __init__(self) -> None:
        self._person, self.program_side = os.openpty()
        self._open = [self.program_side, self._person]
        self.name = os.ttyname(self.program_side)
        self.seen = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def close(self) -> None:
        """Close it, unless it is closed already."""
        while self._open:
            os.close(self._open.pop())

    def wait_for(self, text: str) -> None:
        while text not in self.seen:
            readable, _, _ = select.select([self._person], [], [], 20)
            assert readable, f"saw only {self.seen!r}"
            self.seen += self._decode(os.read(self._person, 4096))

    def type(self, text: str) -> None:
        os.write(self._person, text.encode())

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.program_side)[3] & termios.ECHO)

    @property
    def shell(self) -> tuple[str, ...]:
        """The command that runs another command with this terminal."""
        return ("sh", "-c", SHELL, "sh", self.name)
