"""Time and devices of a plan, predicted: `python -m experiments.scaling`."""
