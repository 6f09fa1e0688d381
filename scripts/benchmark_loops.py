"""The two loops that scripts/benchmark.py compares: the engine's, and the one that a user would write by hand."""

import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bsjax import Update
from bsjax.data import ArraySource, Dataset, ExampleStream, TokenWindows, load_dataset
from bsjax.engine import Engine
from bsjax.engine.devices import compiler_options, first_replica
from bsjax.models import ConvAutoencoder, Transformer, ghost_batch_size_of
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Autoencoder, Classification, LanguageModel

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, BATCH_NORM_DECAY = 0.02, 0.9, 5e-4, 0.99


class EngineLoop:
    """Updates by the engine; default, on one device."""

    def __init__(
        self,
        model: nn.Module,
        batch_sizes: Sequence[int],
        microbatch_size: int | str,
        devices: Sequence[jax.Device] | None = None,
    ):
        tx = create_optimizer("momentum", weight_decay=WEIGHT_DECAY)
        devices = devices or jax.devices()[:1]
        self.engine = make_engine(model, tx, synthetic_twice(), batch_sizes, microbatch_size, devices)
        self.state = self.engine.init()
        self.examples_seen = 0

    def update(self, batch_size: int) -> Callable[[], float]:
        """Dispatches an update; returns a function that reads its loss."""
        update = Update(0, self.examples_seen, batch_size, LEARNING_RATE, MOMENTUM)
        self.state, metrics = self.engine.update(self.state, update)
        self.examples_seen += batch_size
        return lambda: metrics.loss


class LanguageModelLoop(EngineLoop):
    """Updates of a transformer by the engine, of one microbatch on one device; its tokens are random."""

    def __init__(self, model: Transformer, batch_size: int, layer_norm_noise: bool):
        context, num_windows = model.context_length, 32 * batch_size
        tokens = np.random.RandomState(0).randint(model.vocab_size, size=num_windows * context + 1).astype(np.uint8)
        windows, task = TokenWindows(tokens, context), LanguageModel(model, context)
        self.engine = Engine(
            task,
            create_optimizer("momentum"),
            windows,
            windows,
            [batch_size],
            microbatch_size=batch_size,
            devices=jax.devices()[:1],
            layer_norm_noise=layer_norm_noise,
        )
        self.state = self.engine.init()
        self.examples_seen = 0


class BareLoop:
    """One jitted step with donated state, compiled for each batch size."""

    def __init__(self, model: nn.Module):
        dataset, device, ghost_batch_size = synthetic_twice(), jax.devices()[0], ghost_batch_size_of(model)
        is_autoencoder = isinstance(model, ConvAutoencoder)
        kernels = functools.partial(jax.tree.map, lambda parameter: parameter.ndim > 1)
        tx = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY, kernels), optax.sgd(LEARNING_RATE, MOMENTUM))

        def step(state, images, labels, index):
            params, batch_stats, opt_state = state
            x, y = images[index].astype(jnp.float32), labels[index]
            x = x / 255 if is_autoencoder else (x - dataset.mean) / dataset.std

            def mean_loss(params):
                variables = {"params": params, "batch_stats": batch_stats}
                if is_autoencoder:
                    return jnp.square(model.apply(variables, x) - x).mean(), (jnp.zeros((len(y), 1)), {})
                logits, updated = model.apply(variables, x, train=True, mutable=["ghost_stats"])
                loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
                return loss, (logits, updated.get("ghost_stats", {}))

            (loss, (logits, ghost_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            kept = BATCH_NORM_DECAY ** (len(y) // ghost_batch_size)
            batch_stats = jax.tree.map(lambda r, s: kept * r + (1 - kept) * s.mean(0), batch_stats, ghost_stats)
            accuracy = (logits.argmax(axis=-1) == y).mean()
            return (optax.apply_updates(params, updates), batch_stats, opt_state), jnp.stack([loss, accuracy])

        self._step = jax.jit(step, donate_argnums=0, compiler_options=compiler_options(device))  # as the engine's
        examples = dataset.train.gather(np.arange(len(dataset.train)))
        self._data = jax.device_put((examples["image"], examples["label"]), device)
        params, batch_stats, _ = first_replica(EngineLoop(model, [], "auto").state)
        self.state = jax.device_put((params, batch_stats, tx.init(params)), device)
        self._stream = ExampleStream(len(dataset.train), seed=0)
        self.examples_seen = 0

    def update(self, batch_size: int) -> Callable[[], float]:
        """Dispatches an update; returns a function that reads its loss."""
        index = self._stream.indices(self.examples_seen, batch_size)
        self.state, metrics = self._step(self.state, *self._data, index)
        self.examples_seen += batch_size
        return lambda: metrics[0].item()


def seconds_of(loop: EngineLoop | BareLoop, batch_size: int, num_updates: int = 1) -> float:
    """Wall time of updates, waiting for the last one only."""
    start = time.perf_counter()
    for _ in range(num_updates):
        loop.update(batch_size)
    jax.block_until_ready(loop.state)
    return time.perf_counter() - start


def make_engine(
    model: nn.Module,
    tx: optax.GradientTransformation,
    dataset: Dataset,
    batch_sizes: Sequence[int],
    microbatch_size: int | str,
    devices: Sequence[jax.Device] | None = None,
) -> Engine:
    """An engine that classifies a data set, or gives back its images."""
    is_autoencoder = isinstance(model, ConvAutoencoder)
    task = Autoencoder(model) if is_autoencoder else Classification(model, mean=dataset.mean, std=dataset.std)
    sources = dataset.train, dataset.test
    return Engine(task, tx, *sources, batch_sizes, microbatch_size=microbatch_size, devices=devices)


@functools.cache
def synthetic_twice() -> Dataset:
    """The synthetic data set twice over: 4,096 examples to train on."""
    synthetic = load_dataset("synthetic")
    twice = np.tile(np.arange(len(synthetic.train)), 2)
    return Dataset("synthetic twice", ArraySource(synthetic.train.gather(twice)), synthetic.test, synthetic.class_names)
