"""Scripts that reproduce the paper's figures and go beyond them."""
