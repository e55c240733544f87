"""What the operators share on a GPU: who runs a call, with which configuration, and what is derived from weights."""
