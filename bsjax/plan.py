"""A plan: the list of a recipe's updates, and its optax schedules.

Update k takes the positions [e_k, e_k + B_k) of the endless example stream, where e_0 = 0 and
e_{k+1} = e_k + B_k. The plan ends with the first update that reaches the recipe's number of
examples, so the last one may overshoot by less than a batch; there are no partial batches.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import optax

from bsjax import plan_batches, plan_columns, plan_plots, plan_table
from bsjax.errors import InvalidArgument
from bsjax.noise import scaling_exponent

_COLUMNS = ("batch_sizes", "learning_rates", "momentums")
_SETTINGS = ("dataset_size", "start", "scaling", "tokens_per_example")


class Update(NamedTuple):
    """One optimizer step."""

    update: int  # its number, from 0
    examples_seen: int  # before it: where its batch starts in the stream
    batch_size: int
    learning_rate: float
    momentum: float
    others: Mapping[str, float] = {}  # further hyperparameters by optax's names

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Everything that an optimizer takes at this update, by name."""
        return {"learning_rate": self.learning_rate, "momentum": self.momentum, **self.others}


class Phase(NamedTuple):
    """A stretch of consecutive updates with one batch size."""

    start_update: int
    num_updates: int
    examples_seen: int  # at its start
    batch_size: int
    learning_rate: tuple[float, float]  # of its first and its last update
    momentum: tuple[float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Batch size, learning rate, momentum and further hyperparameters of every update.

    `bsjax.Recipe.plan` makes it. `learning_rate`, `batch_size` and `momentum` are optax schedules over the update
    count: functions of an int or a traced integer, for any optax training loop. Iterating over a plan yields its
    `Update`s.

    Args:
      dataset_size: N, the number of examples in an epoch.
      batch_sizes: int64[num_updates], in examples.
      learning_rates: float64[num_updates].
      momentums: float64[num_updates].
      start: where in the example stream the first update begins; not 0 where a run continues another's.
      others: float64[num_updates] of each further hyperparameter, by optax's name for it, such as "b2".
      scaling: the rule or exponent ρ of the quantity that the plan's recipe keeps, for the table: see `kept_noise`.
      tokens_per_example: the context length of a language model: the table counts tokens as well. None: it does not.

    Raises:
      ValueError: the columns are not equally long, or empty.
      InvalidArgument: no such scaling, or `others` has a name that is a column already.

    >>> plan = Plan(10, batch_sizes=[2, 2, 4], learning_rates=[0.1, 0.1, 0.1], momentums=[0, 0, 0])
    >>> plan.num_updates, plan.num_examples
    (3, 8)
    >>> [update.examples_seen for update in plan]
    [0, 2, 4]
    >>> int(plan.batch_size(2)), int(plan.batch_size(99))  # the last one holds
    (4, 4)
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    dataset_size: int
    batch_sizes: np.ndarray
    learning_rates: np.ndarray
    momentums: np.ndarray
    start: int = 0
    others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    scaling: str | float = 1.0
    tokens_per_example: int | None = None

    def __post_init__(self):
        check_names(self.others)
        others = {name: plan_columns.read_only(values, np.float64) for name, values in self.others.items()}
        for name, dtype in zip(_COLUMNS, (np.int64, np.float64, np.float64), strict=True):
            object.__setattr__(self, name, plan_columns.read_only(getattr(self, name), dtype))
        object.__setattr__(self, "others", MappingProxyType(others))
        object.__setattr__(self, "scaling", scaling_exponent(self.scaling))
        if not all(len(column) == self.num_updates > 0 for column in self._columns.values()):
            raise ValueError("a plan needs as many values of each hyperparameter as batch sizes, and at least one")

    @functools.cached_property
    def examples_seen(self) -> np.ndarray:
        """int64[num_updates]: examples seen before each update."""
        return self.start + np.concatenate([[0], np.cumsum(self.batch_sizes)[:-1]])

    @property
    def num_updates(self) -> int:
        return len(self.batch_sizes)

    @property
    def num_examples(self) -> int:
        """Position in the example stream after the last update."""
        return int(self.examples_seen[-1] + self.batch_sizes[-1])

    @functools.cached_property
    def learning_rate(self) -> optax.Schedule:
        """The learning rate as an optax schedule over the update count (float32, or float64 under x64)."""
        return plan_columns.table_schedule(self.learning_rates)

    @functools.cached_property
    def batch_size(self) -> optax.Schedule:
        """The batch size in examples as an optax schedule over the update count (int32).

        A plan with a batch that does not fit into an int32 needs x64; without it the schedule raises `InvalidArgument`.
        """
        return plan_columns.table_schedule(self.batch_sizes)

    @functools.cached_property
    def momentum(self) -> optax.Schedule:
        """The momentum as an optax schedule over the update count (float32, or float64 under x64)."""
        return plan_columns.table_schedule(self.momentums)

    @property
    def hyperparameters(self) -> dict[str, optax.Schedule]:
        """An optax schedule of everything that an optimizer takes, by name: learning_rate, momentum and the others."""
        others = {name: plan_columns.table_schedule(values) for name, values in self.others.items()}
        return {"learning_rate": self.learning_rate, "momentum": self.momentum, **others}

    @functools.cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The plan cut wherever the batch size changes."""
        starts = [*plan_columns.run_starts(self.batch_sizes).tolist(), self.num_updates]
        phases = []
        for first, last in ((self[start], self[stop - 1]) for start, stop in itertools.pairwise(starts)):
            ends = (first.learning_rate, last.learning_rate), (first.momentum, last.momentum)
            num_updates = last.update - first.update + 1
            phases.append(Phase(first.update, num_updates, first.examples_seen, first.batch_size, *ends))
        return tuple(phases)

    def batches(
        self, stream: plan_batches.Stream, start_update: int = 0, microbatch_size: int | None = None
    ) -> plan_batches.Batches:
        """Pairs of an update and its examples, int32 indices of the data set, for loops and loaders of your own.

        It is a sequence; any element can be asked for. The examples are those that the engine takes.

        Args:
          stream: the order of the examples, a `bsjax.data.ExampleStream`.
          start_update: the first update, such as the number of updates that training has done.
          microbatch_size: cuts each batch into pieces of this size, each with its update.

        Raises:
          InvalidArgument: the stream has other examples, there is no such update, or a batch is no multiple of the
            microbatch.

        >>> from bsjax.data import ExampleStream
        >>> plan = Plan(10, [2, 4], [0.1, 0.1], [0.9, 0.9])
        >>> for update, indices in plan.batches(ExampleStream(10, seed=0), start_update=1):
        ...     print(update.update, len(indices))
        1 4
        """
        return plan_batches.Batches(self, stream, start_update, microbatch_size)

    def microsteps(self, microbatch_size: int) -> optax.Schedule:
        """The microbatches of each update, as a schedule: `optax.MultiSteps(tx, every_k_schedule=plan.microsteps(32))`.

        Raises:
          InvalidArgument: a batch is no multiple of the microbatch.

        >>> schedule = Plan(10, [2, 4], [0.1, 0.1], [0.9, 0.9]).microsteps(2)
        >>> int(schedule(0)), int(schedule(1))
        (1, 2)
        """
        return plan_batches.microsteps(self, microbatch_size)

    def __len__(self) -> int:
        return self.num_updates

    def __getitem__(self, update: int) -> Update:
        update = range(self.num_updates)[update]
        return Update(
            update,
            int(self.examples_seen[update]),
            int(self.batch_sizes[update]),
            float(self.learning_rates[update]),
            float(self.momentums[update]),
            {name: float(values[update]) for name, values in self.others.items()},
        )

    def __iter__(self) -> Iterator[Update]:
        return map(self.__getitem__, range(self.num_updates))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Plan)
            and all(getattr(self, name) == getattr(other, name) for name in _SETTINGS)
            and self._columns.keys() == other._columns.keys()
            and all(np.array_equal(values, other._columns[name]) for name, values in self._columns.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:  # without the schedules, which are functions
        columns = (self.batch_sizes, self.learning_rates, self.momentums)
        return Plan, (self.dataset_size, *columns, self.start, dict(self.others), self.scaling, self.tokens_per_example)

    @property
    def _columns(self) -> dict[str, np.ndarray]:
        return {**{name: getattr(self, name) for name in _COLUMNS}, **self.others}

    def to_json(self) -> str:
        """The plan as JSON: lists of [number of updates, value], exact to the last bit."""
        return plan_columns.to_json(self, _COLUMNS)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan that `to_json` wrote."""
        return cls(**plan_columns.from_json(text, _COLUMNS))

    def to_csv(self, path: str | pathlib.Path | None = None) -> str | None:
        """The plan as CSV, a row for each update; written to a file, or returned if there is no path.

        Floats are exact to the last bit. `examples_seen` and `epoch` are those before the update.

        >>> print(Plan(10, [2, 4], [0.1, 0.2], [0.9, 0.9]).to_csv())
        update,examples_seen,epoch,batch_size,learning_rate,momentum
        0,0,0.0,2,0.1,0.9
        1,2,0.2,4,0.2,0.9
        <BLANKLINE>
        """
        return plan_columns.to_csv(self, path)

    def as_dataframe(self) -> Any:
        """The columns of `to_csv` as a pandas.DataFrame, whose index is the update.

        Raises:
          ImportError: pandas is not installed; bsjax does without it.
        """
        return plan_columns.as_dataframe(self)

    def table(self, max_rows: int = 16, more: Mapping[str, Callable[[Phase], str]] | None = None) -> str:
        """A table of the phases; it leaves out the middle of a long plan.

        With `tokens_per_example` it says where a phase starts, and how large its batch is, in tokens.

        The noise scale is `sgd_noise_scale` where ρ = 1, and otherwise `kept_noise`, which is what conversions keep.

        Args:
          max_rows: the largest number of phases to show.
          more: functions from a phase to the text of a further column, by the column's header.
        """
        return plan_table.table(self, max_rows, more or {})

    def plot(self, recipe: Any = None, ax: Any = None, label: str = "plan") -> np.ndarray:
        """Draws learning rate, batch size and noise scale against epochs and updates; needs matplotlib.

        Args:
          recipe: a `Recipe` to draw as well, such as that which was converted into this plan.
          ax: axes [2, 3] that this function has returned, to draw into; None makes a figure.
          label: in the legend.

        Returns:
          Matplotlib axes [2, 3]: a row for epochs and one for updates.
        """
        plans = {} if recipe is None else {"recipe": recipe.plan()}
        return plan_plots.plot_plans({**plans, label: self}, ax)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<Plan: {self.num_updates:,} updates in {len(self.phases):,} phases>"


def check_names(names: Iterable[Any]) -> None:
    """Refuses a name that is not an identifier, or that is an argument of its own."""
    own = ("learning_rate", "batch_size", "momentum")
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name in own:
            raise InvalidArgument("hyperparameters", name, f"an optimizer's argument other than {', '.join(own)}")
