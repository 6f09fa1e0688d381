"""Runs updates of any batch size on any number of devices, without recompiling when the batch grows.

An update in ten concepts, in the order in which one meets them:

1. a **task** says what is trained: the loss of each example (`bsjax.tasks`);
2. a **source** gathers examples by their indices (`bsjax.data.Source`);
3. the **stream** orders them without end: position p holds the same example whatever the batches (`bsjax.data.stream`);
4. an **update** is one optimizer step over positions [examples_seen, examples_seen + batch_size) (`bsjax.plan.Update`);
5. a **microbatch** of fixed shape is what a device takes at once; padding has weight 0 (`bsjax.engine.layout`);
6. a **group** is a set of examples with one loss function, which the layout keeps whole;
7. `accumulate` adds a microbatch's gradients and counts to the **accumulator** of its device (`bsjax.engine.step`);
8. `apply_update` sums the accumulators over the devices, divides once, and lets optax change the **state**;
9. a **program** is one of these functions, pmapped and compiled once per shape (`bsjax.engine.devices`);
10. **metrics** come back by name, and nothing waits for them until they are read.
"""

from bsjax.engine.cost import Cost, ModelFlops
from bsjax.engine.engine import Engine
from bsjax.engine.layout import StepTimes
from bsjax.engine.measure import max_microbatch_size
from bsjax.engine.metrics import UpdateMetrics
from bsjax.engine.step import TrainState

__all__ = ["Cost", "Engine", "ModelFlops", "StepTimes", "TrainState", "UpdateMetrics", "max_microbatch_size"]
