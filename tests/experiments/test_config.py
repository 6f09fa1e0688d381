"""A Config becomes a recipe, an optimizer and a controller, and wrong values are refused with the flag's name."""

import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.controllers import AdaBatchOptions, PlateauOptions
from bsjax.data import load_dataset
from bsjax.optimizers import average_of
from experiments.harness import build, presets, runs
from experiments.harness.config import Config

_EVERY_5 = AdaBatchOptions(every_epochs=5, bound_by_decay=True)
_GROWING = {"schedule": "increase_batch_size"}
_ADAM = {"optimizer": "adamw", "batch_scaling": "sqrt"}
_CONTRASTIVE = {"task": "contrastive", "model": "mlp", "group_size": 16, "batch_size": 16}
_WARM = {"batch_warmup_epochs": (5.0, 9.0), "batch_size": 32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_schedule": "steps"}, "lr_schedule is 'steps'; .* nearest: step"),
        ({"schedule": "increase"}, "schedule is 'increase'; .* nearest: increase_batch_size"),
        (
            {"optimizer": "sgd", "momentum": 0.9},
            "momentum is 0.9; .* another optimizer than sgd.*; nearest: optimizer=momentum$",
        ),
        (
            {"optimizer": "sgd", "scale_momentum": 0.98},
            "scale_momentum is 0.98; .* another optimizer than sgd.*; nearest: optimizer=momentum$",
        ),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; it must be in \[0, 1\)"),
        ({"warmup_epochs": 60.0}, r"warmup_epochs is 60.0; it must be in \[0, num_epochs 60\)"),
        ({"b2": 1.0}, r"b2 is 1.0; it must be in \[0, 1\); nearest: 0.999"),
        ({"epsilon": -1.0}, "epsilon is -1.0; it must be 0 or positive"),
        (
            _GROWING | {"optimizer": "lars"},
            "optimizer is 'lars'; .* there is none, with schedule=increase_batch_size; .*",
        ),
        (
            {"optimizer": "lamb", "scale_learning_rate": 2.0},
            "optimizer is 'lamb'; .* with scale_learning_rate=2.0; nea",
        ),
        (
            {"optimizer": "lamb", "scale_momentum": 0.95},
            "optimizer is 'lamb'; .* with scale_momentum=0.95; nearest: mo",
        ),
        (
            {"optimizer": "lars", "batch_warmup_epochs": (3.0, 9.5)},
            "optimizer is 'lars'; .* batch_warmup_epochs=3,9.5; ",
        ),
        (
            {"optimizer": "lars", "controller": "plateau"},
            "optimizer is 'lars'; .* with controller=plateau; nearest: mom",
        ),
        (_GROWING | {"optimizer": "muon"}, "batch_scaling is 'linear'; .* with optimizer=muon; .*; nearest: sqrt$"),
        (
            _GROWING | {"scale_adam": "sde"},
            "scale_adam is 'sde'; .* --optimizer=adam or adamw, not momentum; nearest: no",
        ),
        (
            _ADAM | {"scale_learning_rate": 4.0, "scale_adam": "sde"},
            r"scale_adam is 'sde'; .* for a batch of 128: .* 16 · 0.1 = 1.6; nearest: half_life, or .* at most 79$",
        ),
        (
            _ADAM | {"scale_momentum": 0.95, "scale_adam": "sde"},
            "scale_adam is 'sde'; .* with scale_momentum, .*: half_l",
        ),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0; it must be in \[0, 1\); nearest: 0.999$"),
        (
            {"ema_decay": 0.9, "controller": "plateau"},
            "ema_decay is 0.9; .* with a controller, .*; nearest: controller=planned",
        ),
        ({"batch_warmup_epochs": (5.0, 9.0)}, "batch_warmup_factors is .* 8 · 0.25 = 2 is .* --ghost_batch_size 8$"),
        (
            _WARM | {"batch_warmup_epochs": (5.0, 90.0)},
            r"batch_warmup_epochs is .* at most 60 epochs, .*: \(5.0, 60.0\)$",
        ),
        (_WARM | {"batch_warmup_epochs": (5.0,)}, "batch_warmup_epochs is .* one time for each of the 2 factors$"),
        (_WARM | {"controller": "plateau"}, "batch_warmup_epochs is '5,9'; .* empty with a controller"),
        (
            {"lr_schedule": "cosine", "lr_end_factor": 1.0},
            r"lr_end_factor is 1.0; .* in \[0, 1\); nearest: 0.1",
        ),
        ({"context_length": 0}, "context_length is 0; it must be a whole number >= 1; nearest: 1"),
        (
            {"task": "language_model", "model": "transformer", "num_heads": 5},
            "model_width is 128; it must be a multiple of twice num_heads 5, .*; nearest: 120 or 130$",
        ),
        (_CONTRASTIVE | {"group_size": 1}, "group_size is 1; it must be a whole number >= 2; nearest: 2"),
        (_CONTRASTIVE | {"batch_size": 40}, "batch_size is 40; .* multiple of --group_size 16; nearest: 32 or 48$"),
        (_CONTRASTIVE | {"group_size": 1438}, "group_size is 1438; it must be at most dataset_size 1437; nearest: 16$"),
        (_CONTRASTIVE | _GROWING | {"max_batch_size": 100}, "max_batch_size is 100; .* --group_size 16; .* 96 or 112$"),
        ({"lr_decay_factor": 1.0}, "lr_decay_factor is 1.0; it must be greater than 1"),
        ({"lr_decay_epochs": (40.0, 20.0)}, "lr_decay_epochs is .* increasing order; nearest: 20,40"),
        ({"lr_decay_epochs": (40.0, 60.0)}, "lr_decay_epochs is .* between 0 and num_epochs 60; nearest: 40"),
        ({"noise_half_life_epochs": 0.0}, "noise_half_life_epochs is 0.0; it must be positive; nearest: 1"),
        ({"seed": -1}, "seed is -1"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"batch_size": 100_000}, "batch_size is 100000; it must be at most dataset_size 1437; nearest: 1432"),
        ({"scale_learning_rate": 1000.0}, "scale_learning_rate is 1000.0; .* nearest: 179$"),
        (_GROWING | {"max_batch_size": 4}, "max_batch_size is 4; .* nearest: 16$"),
        (_GROWING | {"max_batch_size": 12}, "max_batch_size is 12; .* nearest: 16$"),
        (_GROWING | {"max_batch_size": 12, "batch_growth": 4.0}, "max_batch_size is 12; .* nearest: 32$"),
        (_GROWING | {"max_batch_size": 12, "lr_schedule": "constant"}, "schedule is .* the learning rate never falls"),
        ({"ghost_batch_size": 1438}, "ghost_batch_size is 1438; it must be at most dataset_size 1437; nearest: 8$"),
        ({"num_epochs": 12.0}, "lr_decay_epochs is .* between 0 and num_epochs 12; nearest: 4,8,10$"),
        (_GROWING | {"max_batch_size": 100}, "max_batch_size is 100; .* --ghost_batch_size 8; nearest: 96 or 104"),
        (_GROWING | {"max_batch_size": 8}, "schedule is .* never grow: max_batch_size is 8; nearest: decay_learning"),
        (_GROWING | {"lr_schedule": "constant"}, "schedule is .* never grow: the learning rate never falls; nearest"),
        (_GROWING | {"batch_growth": 1.0}, "batch_growth is 1.0"),
        (_GROWING | {"batch_share": 2.0}, "batch_share is 2.0"),
        (_GROWING | {"batch_scaling": "log"}, "batch_scaling is 'log'"),
        (_GROWING | {"model": "wide_resnet", "model_depth": 15}, "model_depth is 15; .*: 16"),
        (_GROWING | {"controller": "plateau"}, "schedule is 'increase_batch_size'; .* with a controller"),
        ({"controller": "adabatch", "controller_options": PlateauOptions()}, "controller_options is .* AdaBatchOpt"),
        ({"sead": 1}, "field is 'sead'; .*; nearest: seed"),
    ],
)
def test_bad_values_are_refused_by_flag_name(changes, message):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        build.recipe(Config().replace(**changes), dataset_size=1437)


def test_adams_constants_follow_the_batch():
    changes = _GROWING | _ADAM | {"lr_decay_factor": 4.0, "batch_share": 0.5, "b2": 0.99, "weight_decay": 0.1}
    plain, scaled = (
        build.recipe(Config().replace(**changes, **more), 1437) for more in ({}, {"scale_adam": "half_life"})
    )
    np.testing.assert_array_equal(scaled.plan().batch_sizes, plain.plan().batch_sizes)
    assert plain.plan().others == {}
    # After a decay by 4 the batch is 4 times, and the learning rate twice, what they would be.
    values = {name: value.item() for name, value in scaled.others_at(25 * 1437).items()}
    assert values == pytest.approx({"b2": 0.99**4, "eps": 5e-9, "weight_decay": 0.1 * 4 / 2}, rel=1e-5)
    adam = build.recipe(
        Config().replace(**changes | {"optimizer": "adam", "max_batch_size": 72}, scale_adam="sde"), 1437
    )
    assert sorted(adam.plan().others) == ["b2", "eps"]  # its weight decay is in the gradient


def test_the_optimizer_has_what_the_plan_sets():
    changes = {"model": "mlp", "scale_learning_rate": 2.0, "scale_adam": "half_life", "b2": 0.95, "epsilon": 1e-7}
    config = Config().replace(**_ADAM, **changes)
    state = build.optimizer(config).init({"w": np.zeros((2, 2), np.float32)})
    values = {name: float(value) for name, value in state.hyperparams.items()}
    assert values == pytest.approx({"learning_rate": 0, "momentum": 0, "b2": 0.95, "eps": 1e-7, "weight_decay": 5e-4})
    plan = build.recipe(config, 1437).plan()
    build.engine(config, load_dataset("digits"), plan, devices="1").check_hyperparameters(plan[0].hyperparameters)


def test_an_average_spans_as_many_examples_whatever_the_batch():
    config = Config().replace(**_GROWING, ema_decay=0.99)
    recipe = build.recipe(config, 1437)
    sizes, decays = recipe.at(np.arange(0, 60) * 1437).batch_size, recipe.plan().others["ema_decay"]
    assert sizes.max() > sizes[0]
    assert decays == pytest.approx(0.99 ** (recipe.plan().batch_sizes / sizes[0]))
    state = build.optimizer(config).init({"w": np.ones((2, 2), np.float32)})
    assert float(state.hyperparams["ema_decay"]) == pytest.approx(0.99)
    np.testing.assert_array_equal(average_of(state)["w"], np.ones((2, 2)))


def test_smaller_batches_first():
    recipe = build.recipe(Config().replace(**_WARM, batch_scaling="sqrt"), 1437)
    values = recipe.at(np.array([0, 6, 10]) * 1437)
    assert values.batch_size.tolist() == [8, 16, 32]
    np.testing.assert_allclose(values.learning_rate, 0.05 * np.sqrt([0.25, 0.5, 1]))
    grown = build.recipe(Config().replace(**_WARM | _GROWING, batch_scaling="sqrt"), 1437)
    assert grown.at(0).batch_size == 8
    assert grown.plan().batch_sizes.max() > 32


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (_ADAM | _GROWING, "warning: batch_share is 1; for Adam it must be at most 0.5 with scaling 0.5: "),
        (_ADAM | _GROWING | {"batch_share": 0.5}, ""),
        (_ADAM | {"scale_learning_rate": 2.0}, ""),
        (_GROWING, ""),
    ],
)
def test_a_batch_that_grows_too_fast_for_adam_is_told(changes, warning, capsys):
    build.warn_of_instability(Config().replace(**changes))
    error = capsys.readouterr().err
    assert error.startswith(warning)
    assert error.count("\n") == bool(warning)


@pytest.mark.parametrize("others", [{}, {"batch_scaling": "sqrt"}, {"scale_learning_rate": 2.0}, {"model": "mlp"}])
@pytest.mark.parametrize("name", ["scale_learning_rate", "scale_momentum"])
@pytest.mark.parametrize("value", [0.01, 0.9993, 17.3, 1000.0])
def test_the_nearest_scale_is_valid(name, value, others):
    config = Config().replace(**others)
    unit = build.unit_of(config)
    try:
        recipe = build.recipe(config.replace(**{name: value}), 1437)
    except InvalidArgument as error:
        assert error.name == name
        if error.nearest is None:
            assert name == "scale_momentum" and value > 1
            return
        recipe = build.recipe(config.replace(**{name: float(error.nearest)}), 1437)
    assert not np.any(recipe.plan().batch_sizes % unit)


@pytest.mark.parametrize(
    ("lr_schedule", "expected"),
    [
        ("constant", [0.0, 0.4, 0.8, 0.8, 0.8]),
        ("step", [0.0, 0.4, 0.8, 0.4, 0.2]),
        ("cosine", [0.0, 0.4, 0.8, 0.4, 0.0]),
        ("quarter_cosine", [0.0, 0.4, 0.8, 0.8 * 0.5**0.5, 0.0]),
        ("linear", [0.0, 0.4, 0.8, 0.4, 0.0]),
        ("exponential", [0.0, 0.4, 0.8, 0.4, 0.2]),
    ],
)
def test_learning_rate_schedules_after_a_warm_up(lr_schedule, expected):
    """At epochs 0, 1, 2 (its end), 6 and 10 (the run's)."""
    steps = {"lr_decay_epochs": (6.0, 9.0), "lr_decay_factor": 2.0}
    config = Config().replace(learning_rate=0.8, num_epochs=10, warmup_epochs=2, lr_schedule=lr_schedule, **steps)
    rates = build.recipe(config, dataset_size=1000).at([0, 1000, 2000, 6000, 10_000]).learning_rate
    assert rates == pytest.approx(expected, abs=1e-12)


def test_plain_sgd_has_no_momentum_and_others_the_usual():
    assert build.recipe(Config().replace(optimizer="sgd"), 1437).at(0).momentum == 0.0
    assert build.recipe(Config().replace(optimizer="nesterov"), 1437).at(0).momentum == 0.9


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        # Section 5.1's three, then Section 5.2's three conversions.
        ("cifar10", [78_125, 34_376, 28_876, 29_142, 6_407, 2_305]),
        ("digits", [7_185, 3_162, 2_747, 2_747, 1_454, 819]),
        ("cifar10_small", [21_875, 11_375, 10_256, 10_293, 5_196, 2_681]),
        ("fashion_mnist", [56_250, 24_750, 20_790, 20_982, 10_689, 5_626]),
    ],
)
def test_the_papers_schedules(name, updates):
    preset = presets.get(name)
    first = presets.section_5_1(preset, preset.config).values()
    second = list(presets.section_5_2(preset, preset.config).values())[1:]
    plans = [build.recipe(one, preset.dataset_size).plan() for one in (*first, *second)]
    assert [plan.num_updates for plan in plans] == updates


def test_a_folders_name_says_what_differs_from_the_preset():
    config = Config().replace(lr_decay_epochs=(4.0, 8.5), controller="adabatch", controller_options=_EVERY_5)
    options = "controller_options=every_epochs=5+bound_by_decay=true"
    assert runs.run_name(config, Config()) == f"lr_decay_epochs=4.0+8.5,controller=adabatch,{options},seed=0"


def test_a_name_too_long_for_a_folder_still_tells_runs_apart():
    configs = [Config().replace(dataset="é" * 300, batch_size=size, seed=seed) for size in (8, 16) for seed in (0, 123)]
    names = [runs.run_name(config, Config()) for config in configs]
    assert len(set(names)) == 4
    assert all(200 >= len(name.encode()) > 170 and name.startswith("dataset=éé") for name in names)
    assert [name.rsplit(",", 1)[1] for name in names] == ["seed=0", "seed=123"] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controller": "cabs"}, r"optimizer is 'momentum'; it must be sgd for cabs; nearest: sgd"),
        ({"controller": "adascale", "optimizer": "adam"}, r"optimizer is 'adam'; .* for adascale; nearest: momentum"),
        ({"controller": "gradient_noise"}, r"batch_size is 8; it must be at least two of .*; nearest: 16"),
        (
            {"controller": "gradient_noise", "ghost_batch_size": 4, "microbatch_size": 64},
            r"microbatch_size is 64; it must be from .* 4 to half of batch_size 8: .*; nearest: 4",
        ),
        ({"measure_noise": True}, r"batch_size is 8; it must be at least two of"),
        ({"controller": "adabatch", "max_batch_size": 100}, r"max_batch_size is 100; .*; nearest: 96 or 104"),
        ({"controller": "adabatch", "controller_hysteresis": -1.0}, r"controller_hysteresis is -1.0; .*; nearest: 0"),
        ({"controller": "adabatch", "controller_warmup_epochs": -1.0}, r"controller_warmup_epochs is -1.0; .*"),
    ],
)
def test_a_controller_that_cannot_be(changes, message):
    dataset = load_dataset("digits")
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        config = Config().replace(**changes)
        # On one device, where small batches are one microbatch.
        build.engine(config, dataset, build.controller(config, 1437), devices="1")
