"""What is below a module, and why it does not work: pcscd, the TPM and its store, SoftHSM's configuration."""
