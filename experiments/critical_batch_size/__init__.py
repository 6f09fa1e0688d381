"""The critical batch size, measured: `python -m experiments.critical_batch_size`."""
