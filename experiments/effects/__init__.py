"""What the batch size does, claim by claim: `python -m experiments.effects`."""
