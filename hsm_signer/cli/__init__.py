"""The command line: the only place that prompts, prints or exits."""

# What signal wraps. signal itself imports enum and more, and an interrupt may arrive meanwhile.
import _signal  # type: ignore[import-not-found, unused-ignore]
import os


def main() -> None:
    """Run the command line and end the process with the status of the contract."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        # Ctrl-C while the rest is imported: there is nothing to undo yet, and no traceback to show. `run` takes over.
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))
    from hsm_signer.cli.app import run_and_exit

    run_and_exit()
