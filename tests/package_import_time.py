"""Prints the CPU seconds that `import bsjax` takes beyond jax and optax, and fails above 0.3."""

import sys
import time

import jax  # noqa: F401
import optax  # noqa: F401

start = time.process_time()
import bsjax  # noqa: E402, F401

seconds = time.process_time() - start
heavy = [name for name in ("flax", "orbax", "matplotlib", "scipy", "tensorflow", "torch") if name in sys.modules]
print(f"import bsjax: {seconds:.3f} s beyond jax and optax")
assert seconds < 0.3 and not heavy, (seconds, heavy)
