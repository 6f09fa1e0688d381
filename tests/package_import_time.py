"""Prints the CPU seconds that `import bsjax` takes beyond jax and optax; its argument is the most it may take."""

import sys
import time

if __name__ == "__main__":
    import jax  # noqa: F401
    import optax  # noqa: F401

    start = time.process_time()
    import bsjax  # noqa: F401

    seconds = time.process_time() - start
    heavy = [name for name in ("flax", "orbax", "matplotlib", "scipy", "tensorflow", "torch") if name in sys.modules]
    print(f"import bsjax: {seconds:.3f} s beyond jax and optax")
    assert not heavy, heavy
    assert len(sys.argv) == 1 or seconds < float(sys.argv[1]), seconds
