"""The noisy quadratic model, where theory is exact: `python -m experiments.quadratic`."""
