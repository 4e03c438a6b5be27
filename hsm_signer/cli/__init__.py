"""The command line: the only place that prompts, prints or exits."""

# The C part of signal. signal itself imports enum and more, and an interrupt may arrive meanwhile.
import _signal  # type: ignore[import-not-found, unused-ignore]
import gc
import os


def main() -> None:
    """Run the command line, and end the process with its exit status."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        # Ctrl-C while the rest is imported: there is nothing to undo yet, and no traceback to show.
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))
    # Almost nothing that is made while modules load is garbage: looking for it took 12 of 150 ms.
    gc.set_threshold(100_000)
    from hsm_signer.cli.app import run_and_exit

    run_and_exit()
