"""The command line: the only place that prompts, prints or exits."""

import os
import signal


def main() -> None:
    """Run the command line and end the process with the status of the contract."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C while the rest is imported: there is nothing to undo yet, and no traceback to show. `run` takes over.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from hsm_signer.cli.app import run_and_exit

    run_and_exit()
