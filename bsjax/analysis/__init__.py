"""Numbers about runs, computed without training."""
