"""The processes of scripts/benchmark_tokens.py: updates of a transformer by the engine, a bare loop, and PyTorch."""

import functools
import sys
from typing import Any

import numpy as np
from benchmark_pytorch_worker import seconds_per_update, serve

# The shape and the optimizer of the preset shakespeare_cpu.
CONTEXT, VOCABULARY, NUM_WINDOWS = 64, 65, 4096
SIZES: dict[str, Any] = {"depth": 4, "width": 128, "num_heads": 4}
LEARNING_RATE, MOMENTUM, B2, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-3, 0.9, 0.99, 0.1, 1.0
CHECK_BATCH_SIZE = 12


@functools.cache
def tokens() -> np.ndarray:
    """Tokens at random, uint8."""
    return np.random.default_rng(0).integers(0, VOCABULARY, NUM_WINDOWS * CONTEXT + 1, np.uint8)


def _model() -> Any:
    from bsjax.models import Transformer

    return Transformer(VOCABULARY, CONTEXT, **SIZES)


def _engine(batch_size: int) -> Any:
    import jax

    from bsjax.data import TokenWindows
    from bsjax.engine import Engine
    from bsjax.optimizers import create_optimizer
    from bsjax.tasks import LanguageModel

    windows = TokenWindows(tokens(), CONTEXT)
    tx = create_optimizer("adamw", WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM, b2=B2)
    task, devices = LanguageModel(_model(), CONTEXT), jax.devices()[:1]
    return Engine(task, tx, windows, windows, [batch_size], microbatch_size="measure", devices=devices)


class _EngineSide:
    """Updates by the engine."""

    def prepare(self, batch_size: int) -> dict[str, Any]:
        import jax

        from bsjax import Update

        self._engine, self._updates, self._wait = _engine(batch_size), 0, jax.block_until_ready
        self._state = self._engine.init()
        self._update = lambda k: Update(k, k * batch_size, batch_size, LEARNING_RATE, MOMENTUM)
        self.run(1)
        microbatch_size = self._engine.layout(batch_size).microbatch_size
        return {"seconds_per_update": seconds_per_update(self.run), "form": f"microbatch {microbatch_size}"}

    def run(self, num_updates: int) -> None:
        for _ in range(num_updates):
            self._state, _ = self._engine.update(self._state, self._update(self._updates))
            self._updates += 1
        self._wait(self._state)


class _BareSide:
    """Updates by one jitted step with donated state, as one writes it by hand."""

    def prepare(self, batch_size: int) -> dict[str, Any]:
        import jax
        import jax.numpy as jnp
        import optax

        from bsjax.data import ExampleStream
        from bsjax.engine.devices import compiler_options

        model = _model()
        decayed = functools.partial(jax.tree.map, lambda parameter: parameter.ndim > 1)
        adamw = optax.adamw(LEARNING_RATE, MOMENTUM, B2, weight_decay=WEIGHT_DECAY, mask=decayed)
        tx = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), adamw)

        def step(params, opt_state, tokens, index):
            windows = tokens[index[:, None] * CONTEXT + jnp.arange(CONTEXT + 1)].astype(jnp.int32)

            def mean_loss(params):
                logits = model.apply({"params": params}, windows[:, :-1], train=True)
                return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

            loss, grads = jax.value_and_grad(mean_loss)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, CONTEXT), jnp.int32))["params"]
        self._state, self._tokens = (params, tx.init(params)), jax.device_put(tokens())
        self._stream, self._seen, self._batch_size = ExampleStream(NUM_WINDOWS, seed=0), 0, batch_size
        index = self._stream.indices(0, batch_size)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*self._state, self._tokens, index)
        self._step = lowered.compile(compiler_options=compiler_options(jax.devices()[0]))  # as the engine's
        self._wait = jax.block_until_ready
        self.run(1)
        return {"seconds_per_update": seconds_per_update(self.run), "form": "one program"}

    def run(self, num_updates: int) -> None:
        for _ in range(num_updates):
            index = self._stream.indices(self._seen, self._batch_size)
            *self._state, _ = self._step(*self._state, self._tokens, index)
            self._seen += self._batch_size
        self._wait(self._state)


class _PyTorchSide:
    """Updates by PyTorch, eager or compiled, whichever is faster."""

    def prepare(self, batch_size: int) -> dict[str, Any]:
        import torch

        self._batch_size, trainers, trials = batch_size, {}, {}
        for form in ("eager", "compiled"):
            self._trainer, self._order, self._at = _trainer(form == "compiled"), torch.zeros(0), 0
            try:
                self.run(1)
            except Exception as error:  # such as a missing C++ compiler
                if form == "eager":
                    raise
                print(f"compiled: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
                continue
            trainers[form], trials[form] = self._trainer, seconds_per_update(self.run)
        best = min(trials, key=lambda form: trials[form])
        self._trainer = trainers[best]
        speeds = {form: batch_size * CONTEXT / seconds for form, seconds in trials.items()}
        return {"seconds_per_update": trials[best], "form": best, "trials": speeds}

    def run(self, num_updates: int) -> None:
        import torch

        for _ in range(num_updates):
            if self._at + self._batch_size > len(self._order):
                self._order, self._at = torch.randperm(NUM_WINDOWS), 0
            self._trainer.update(self._order[self._at : self._at + self._batch_size], LEARNING_RATE)
            self._at += self._batch_size


def _trainer(compiled: bool) -> Any:
    from experiments.harness import pytorch_transformer as twin

    model = twin.Transformer(VOCABULARY, CONTEXT, **SIZES)
    return twin.Trainer(model, tokens(), CONTEXT, WEIGHT_DECAY, (MOMENTUM, B2), MAX_GRAD_NORM, compiled)


def largest_differences() -> dict[str, float]:
    """Of the logits before an update, and of the losses before and after it, from the engine's parameters."""
    import jax
    import torch

    from bsjax import Update
    from bsjax.data import ExampleStream
    from bsjax.engine.devices import first_replica
    from experiments.harness import pytorch_transformer as twin

    engine, losses = _engine(CHECK_BATCH_SIZE), []
    state = engine.init()
    params = jax.tree.map(np.array, first_replica(state).params)
    index = np.array(ExampleStream(NUM_WINDOWS, seed=0).indices(0, CHECK_BATCH_SIZE), np.int64)
    windows = tokens()[index[:, None] * CONTEXT + np.arange(CONTEXT)].astype(np.int32)
    logits = jax.jit(lambda params, x: engine.task.model.apply({"params": params}, x))(params, windows)
    for k in range(2):  # the same windows twice
        state, metrics = engine.update(state, Update(k, 0, CHECK_BATCH_SIZE, LEARNING_RATE, MOMENTUM))
        losses.append(metrics.loss)
    trainer = _trainer(compiled=False)
    twin.copy_parameters(params, trainer.model)
    theirs = trainer.logits(torch.from_numpy(index)).numpy()
    their_losses = [trainer.update(torch.from_numpy(index), LEARNING_RATE).item() for _ in range(2)]
    differences = [abs(a - b) for a, b in zip(losses, their_losses, strict=True)]
    return {"logits": float(np.abs(theirs - np.array(logits)).max()), "losses": float(np.max(differences))}


if __name__ == "__main__":
    sides = {"engine": _EngineSide, "bare loop": _BareSide, "PyTorch": _PyTorchSide}
    serve(sys.argv[1], sides, largest_differences)
