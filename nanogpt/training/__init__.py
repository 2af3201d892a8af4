"""Training: one run in one process. `python -m nanogpt.training RUN_DIR` trains; see `__main__`."""
