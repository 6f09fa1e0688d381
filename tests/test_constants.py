"""What a checkpoint knows of functions: the constants that they close over, and their code."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsjax.constants import describe_constants
from bsjax.optimizers import create_optimizer
from bsjax.tasks import from_loss


def init_fn(key):
    return {"w": jnp.zeros(3)}


def test_the_optimizers_constants_are_told_apart():
    def describe(**options):
        return describe_constants(create_optimizer("adamw", **options))

    same = describe(weight_decay=0.1)
    assert same == describe(weight_decay=0.1)
    for other in ({"weight_decay": 0.2}, {"weight_decay": 0.1, "b2": 0.9}, {"weight_decay": 0.1, "max_grad_norm": 1.0}):
        assert describe(**other) != same
    assert describe_constants(optax.sgd(0.1, momentum=0.9)) != describe_constants(optax.sgd(0.1, momentum=0.8))


def test_checkpoints_know_our_optimizers_by_the_same_names_as_ever():
    found = describe_constants(create_optimizer("adam", max_grad_norm=1.0, scheduled=["b2"]))
    assert {name: value for name, value in found.items() if "create_optimizer" in f"{name} {value}"} == {
        "create_optimizer.decay_biases_and_norms": False,
        "create_optimizer.max_grad_norm": 1.0,
        "create_optimizer.name": "adam",
        "create_optimizer.scheduled": "b2",
        "create_optimizer.step is": "create_optimizer.<locals>.step",
        "inject_hyperparams.inner_factory is": "create_optimizer.<locals>.optimizer",
    }


def test_a_loss_is_known_by_the_constants_that_it_closes_over():
    def make(scale):
        def loss_fn(params, examples, keys, train):
            return scale * jnp.square(examples["x"] @ params["w"])

        return from_loss(loss_fn, init_fn).identity

    assert make(1.0) == make(1.0) != make(2.0)
    assert make(np.ones(3)) != make(np.zeros(3))


_LOSS = """
SCALE = 1.0
def scaled(x):
    return [SCALE * one for one in x]  # a comment
def loss_fn(params, examples, keys, train, power=2):
    return sum(scaled(examples)) if train in {"yes", "no", "perhaps"} else power
"""


@pytest.mark.parametrize(
    ("old", "new"), [("SCALE = 1", "SCALE = 2"), ("SCALE *", "SCALE /"), ("sum", "max"), ("power=2", "power=3")]
)
def test_a_loss_is_known_by_its_code(old, new):
    def identity(text, **options):
        namespace = {"__name__": "users"}
        exec(text, namespace)
        return from_loss(namespace["loss_fn"], init_fn, **options).identity

    assert identity(_LOSS) == identity(_LOSS.replace("a comment", "another")) != identity(_LOSS.replace(old, new))
    assert identity(_LOSS, name="mine") == identity(_LOSS.replace(old, new), name="mine")


def test_a_losss_code_is_the_same_in_every_process():
    """The order of a set of texts is not."""
    code = f"{_LOSS}\nfrom bsjax.constants import describe_code\nprint(describe_code(loss_fn))"
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in "123"]
    assert len({subprocess.check_output([sys.executable, "-c", code], env=one) for one in environments}) == 1
