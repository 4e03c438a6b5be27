"""The command line: the only place that prompts, prints or exits."""


def main() -> None:
    """Run the command line and end the process with the status of the contract."""
    from hsm_signer.cli.app import run_and_exit

    run_and_exit()
