"""The interface between the training loop and a controller."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from bsjax.gradient_noise import Averages, Estimate
from bsjax.optimizers import OPTIMIZERS
from bsjax.plan import Update

# The decision about update k uses the observations of the updates up to k - 1 - LAG, even where later ones have been
# read already: so no decision depends on where a run was interrupted, and the device never waits.
LAG = 2

State = TypeVar("State", bound=tuple)


class Observation(NamedTuple):
    """The measurements of an update."""

    update: Update
    loss: float  # mean over its batch, before it
    noise: Estimate  # of its gradient alone; NaN with less than two microbatches × devices
    averages: Averages  # of the estimates up to it


class Controller(abc.ABC, Generic[State]):
    """Decides one update after the other, from the observations of earlier ones.

    A controller holds settings only. Its decisions and measurements are a state: a NamedTuple of numbers, texts, None,
    tuples of these and further NamedTuples. Every method takes a state, and none changes it.

        state = controller.init()
        while True:
            update, state = controller.decide(state)
            if update is None:
                break
            ...  # run the update, and `LAG` updates later
            state = controller.observe(state, observation)

    Attributes:
      needs_observations: whether the loop has to call `observe`.
      needs_noise: whether it needs `Observation.noise`, and so two microbatches × devices in every update.
      optimizers: those it works with, the most likely first.
      options_type: the dataclass of its options.
    """

    needs_observations: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = False
    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS
    options_type: ClassVar[Any] = None

    @property
    @abc.abstractmethod
    def dataset_size(self) -> int:
        """N, the number of examples in an epoch."""

    @property
    @abc.abstractmethod
    def batch_sizes(self) -> Sequence[int]:
        """The batch sizes that may come, in increasing order, for the engine to choose its microbatches; examples."""

    @property
    @abc.abstractmethod
    def num_examples(self) -> int:
        """Position in the example stream where training ends, or where it ends at the latest."""

    @abc.abstractmethod
    def init(self) -> State:
        """The state before the first update."""

    @abc.abstractmethod
    def decide(self, state: State) -> tuple[Update | None, State]:
        """The next update, or None at the end; and the state after this decision."""

    def observe(self, state: State, observation: Observation) -> State:
        """The state after an observation. The loop observes each update once, in order, `LAG` updates late."""
        return state

    def branches(self, state: State) -> Sequence[Sequence[Update]] | None:
        """Updates to try before `decide`; None for nothing.

        The loop runs each branch from the current state of training, on the examples that its updates name, and drops
        the result: branches are not logged, not observed, and move no clock.
        """
        return None

    def observe_branches(self, state: State, losses: Sequence[Sequence[float]]) -> State:
        """The state after the branches; `losses` has the loss of each update of each branch."""
        return state

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """All settings that decisions depend on, as JSON; a run refuses the checkpoint of a controller with others."""


def state_to_json(state: Any) -> Any:
    """A controller's state as JSON: a NamedTuple becomes a dictionary, another tuple a list.

    Raises:
      TypeError: the state holds a value that JSON does not restore, such as an array or a list.

    >>> from bsjax.controllers.adaptive import AdaptiveState
    >>> state_to_json(AdaptiveState(update=3, examples_seen=96, batch_size=32, max_learning_rate=0.1))
    {'update': 3, 'examples_seen': 96, 'batch_size': 32, 'max_learning_rate': 0.1, 'learnt': None}
    """
    if isinstance(state, tuple):
        if fields := getattr(type(state), "_fields", None):
            return {name: state_to_json(value) for name, value in zip(fields, state, strict=True)}
        return [state_to_json(value) for value in state]
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"a controller's state holds numbers, texts, None and tuples of these, not {type(state).__name__}")


def state_from_json(controller: Controller[State], value: Any) -> State:
    """The state that `state_to_json` wrote, to the last bit; its NamedTuples are those of `controller.init()`.

    >>> import json
    >>> from bsjax import Recipe
    >>> from bsjax.controllers import Planned
    >>> planned = Planned(Recipe(0.1, batch_size=40, dataset_size=100, num_epochs=1).plan())
    >>> _, state = planned.decide(planned.init())
    >>> state_from_json(planned, json.loads(json.dumps(state_to_json(state)))) == state
    True
    """
    return _like(controller.init(), value)


def _like(template: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return type(template)(**{name: _like(field, value[name]) for name, field in template._asdict().items()})
    return tuple(_like(None, item) for item in value) if isinstance(value, list) else value
