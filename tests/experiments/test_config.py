"""Flags become a Config, a Config becomes a recipe, and wrong values are refused with the flag's name."""

import dataclasses

import pytest
from absl import flags

from bsjax import InvalidArgument
from bsjax.data import load_dataset
from experiments import config, presets
from experiments.config import Config


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line with flags of its own."""

    def parse(*arguments: str, **options) -> Config:
        values = flags.FlagValues()
        monkeypatch.setattr(flags, "FLAGS", values)
        for name in ("string", "integer", "float", "bool", "list"):
            define = getattr(flags, f"DEFINE_{name}")
            monkeypatch.setattr(flags, f"DEFINE_{name}", lambda *args, define=define: define(*args, flag_values=values))
        config.define_flags(**options)
        values(["program", *arguments])
        return config.config_from_flags(presets.get("cifar10").config, **options)

    return parse


def test_without_flags_it_is_the_preset(parse):
    assert parse() == presets.get("cifar10").config


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("--learning_rate=0.3", "learning_rate", 0.3),
        ("--batch_size=64", "batch_size", 64),
        ("--momentum=0.5", "momentum", 0.5),
        ("--model_width=2", "model_width", 2),
        ("--lr_decay_epochs=1,2.5", "lr_decay_epochs", (1.0, 2.5)),
        ("--lr_decay_epochs=", "lr_decay_epochs", ()),
        ("--decay_biases_and_norms", "decay_biases_and_norms", True),
        ("--schedule=increase_batch_size", "schedule", "increase_batch_size"),
    ],
)
def test_a_flag_sets_its_field_and_no_other(parse, argument, field, value):
    assert parse(argument) == dataclasses.replace(presets.get("cifar10").config, **{field: value})


def test_fields_left_out_have_no_flag(parse):
    with pytest.raises(flags.UnrecognizedFlagError):
        parse("--seed=1", except_for=["seed"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_schedule": "steps"}, "lr_schedule is 'steps'; .* nearest: step"),
        ({"schedule": "increase"}, "schedule is 'increase'; .* nearest: increase_batch_size"),
        ({"optimizer": "adm"}, "optimizer is 'adm'; .* nearest: adam"),
        ({"optimizer": "sgd", "momentum": 0.9}, "momentum is 0.9; it must be 0 for --optimizer=sgd"),
        ({"dtype": "float16"}, "dtype is 'float16'; .* nearest: bfloat16"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; it must be in \[0, 1\)"),
        ({"batch_norm_decay": 1.0}, r"batch_norm_decay is 1.0; it must be in \[0, 1\)"),
        ({"warmup_epochs": 60.0}, r"warmup_epochs is 60.0; it must be in \[0, num_epochs 60\)"),
        ({"lr_decay_factor": 1.0}, "lr_decay_factor is 1.0; it must be greater than 1"),
        ({"lr_decay_epochs": (40.0, 20.0)}, "lr_decay_epochs is .* increasing order; nearest: 20,40"),
        ({"eval_every_epochs": 0.0}, "eval_every_epochs is 0.0; it must be positive"),
        ({"seed": -1}, "seed is -1"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"batch_size": 2000}, "batch_size is 2000; it must be at most dataset_size 1437; nearest: 1437"),
        ({"scale_learning_rate": 1000.0}, "scale_learning_rate is 1000.0; .* nearest: 179.6"),
        ({"scale_momentum": 1.0}, "scale_momentum is 1.0"),
        ({"schedule": "increase_batch_size", "max_batch_size": 4}, "max_batch_size is 4; .* nearest: 8"),
        ({"schedule": "increase_batch_size", "max_batch_size": 100}, "max_batch_size is 100; .* nearest: 96 or 104"),
        ({"schedule": "increase_batch_size", "batch_growth": 1.0}, "batch_growth is 1.0"),
        ({"schedule": "increase_batch_size", "batch_share": 2.0}, "batch_share is 2.0"),
        ({"schedule": "increase_batch_size", "batch_scaling": "log"}, "batch_scaling is 'log'"),
        ({"schedule": "increase_batch_size", "model": "resnet"}, "model is 'resnet'; .* nearest: resnet18"),
        ({"schedule": "increase_batch_size", "model": "wide_resnet", "model_depth": 15}, "model_depth is 15; .*: 16"),
    ],
)
def test_bad_values_are_refused_by_flag_name(changes, message):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        Config(**{"num_epochs": 60.0, **changes}).recipe(dataset_size=1437)


@pytest.mark.parametrize(
    ("lr_schedule", "expected"),
    [
        ("constant", [0.0, 0.4, 0.8, 0.8, 0.8]),
        ("step", [0.0, 0.4, 0.8, 0.4, 0.2]),
        ("cosine", [0.0, 0.4, 0.8, 0.4, 0.0]),
        ("linear", [0.0, 0.4, 0.8, 0.4, 0.0]),
        ("exponential", [0.0, 0.4, 0.8, 0.4, 0.2]),
    ],
)
def test_learning_rate_schedules_after_a_warm_up(lr_schedule, expected):
    """At epochs 0, 1, 2 (its end), 6 and 10 (the run's)."""
    recipe = Config(
        learning_rate=0.8,
        num_epochs=10,
        warmup_epochs=2,
        lr_schedule=lr_schedule,
        lr_decay_epochs=(6.0, 10.0),
        lr_decay_factor=2.0,
    ).recipe(dataset_size=1000)
    rates = recipe.at([0, 1000, 2000, 6000, 10_000]).learning_rate
    assert rates == pytest.approx(expected, abs=1e-12)


def test_plain_sgd_has_no_momentum_and_others_the_usual():
    assert Config(optimizer="sgd").recipe(1437).at(0).momentum == 0.0
    assert Config(optimizer="nesterov").recipe(1437).at(0).momentum == 0.9


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        # Section 5.1's three, then Section 5.2's three conversions.
        ("cifar10", [78_125, 34_376, 28_876, 29_142, 6_407, 2_305]),
        ("digits", [10_778, 5_030, 4_512, 4_512, 1_119, 599]),
        ("cifar10_small", [62_500, 27_500, 23_100, 23_313, 11_875, 6_251]),
        ("fashion_mnist", [56_250, 24_750, 20_790, 20_982, 10_689, 5_626]),
    ],
)
def test_the_papers_schedules(name, updates):
    preset = presets.get(name)
    first = presets.section_5_1(preset, preset.config).values()
    second = list(presets.section_5_2(preset, preset.config).values())[1:]
    plans = [one.recipe(preset.dataset_size).plan() for one in (*first, *second)]
    assert [plan.num_updates for plan in plans] == updates


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"controller": "noise"}, r"controller is 'noise'; .*; nearest: gradient_noise"),
        ({"controller": "cabs"}, r"optimizer is 'momentum'; it must be sgd for Cabs; nearest: sgd"),
        ({"controller": "adascale", "optimizer": "adam"}, r"optimizer is 'adam'; .* for AdaScale; nearest: momentum"),
        ({"controller": "gradient_noise"}, r"batch_size is 8; it must be at least two of .*; nearest: 16"),
        (
            {"controller": "gradient_noise", "ghost_batch_size": 4, "microbatch_size": 64},
            r"microbatch_size is 64; it must be from ghost_batch_size 4 to half of batch_size 8: .*; nearest: 4",
        ),
        ({"measure_noise": True}, r"batch_size is 8; it must be at least two of ghost_batch_size 8"),
        (
            {"controller": "plateau", "controller_options": ("patince=3",)},
            r"controller_options: option of plateau is 'patince'; .*; nearest: patience",
        ),
        (
            {"controller": "gradient_noise", "ghost_batch_size": 4, "controller_options": ("example_price=0",)},
            r"controller_options: example_price is 0; it must be a positive number",
        ),
        (
            {"controller": "plateau", "controller_options": ("patience",)},
            r"controller_options is 'patience'; it must be NAME=VALUE, separated by commas; nearest: patience=1",
        ),
        ({"controller_options": ("a=1",)}, r"controller_options is 'a=1'; it must be left out: planned has none"),
        (
            {"controller": "plateau", "schedule": "increase_batch_size"},
            r"schedule is 'increase_batch_size'; it must be decay_learning_rate with a controller",
        ),
        ({"controller": "adabatch", "max_batch_size": 100}, r"max_batch_size is 100; .*; nearest: 96 or 104"),
        ({"controller": "adabatch", "controller_hysteresis": -1.0}, r"controller_hysteresis is -1.0; .*; nearest: 0"),
        (
            {"controller": "adabatch", "controller_warmup_epochs": -1.0},
            r"controller_warmup_epochs is -1.0; .*",
        ),
        ({"noise_half_life_epochs": 0.0}, r"noise_half_life_epochs is 0.0; it must be positive; nearest: 1"),
    ],
)
def test_a_controller_that_cannot_be(values, message):
    dataset = load_dataset("digits")
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        config = Config(**values)
        # On one device, where small batches are one microbatch.
        config.create_engine(dataset, config.create_controller(1437), devices="1")
