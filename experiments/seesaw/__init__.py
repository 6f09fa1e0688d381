"""Seesaw and other growing batches for Adam, on a language model."""
