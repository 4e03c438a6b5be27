"""`python -m hsm_signer` is the command line."""

from hsm_signer.cli import main

main()
