"""Flags become a Config; bad texts, and flags that belong to another choice, are refused."""

import dataclasses
import re

import pytest
from absl import flags

from bsjax import InvalidArgument
from bsjax.controllers import AdaBatchOptions
from experiments.harness import config_flags, presets
from experiments.harness.config import CONCERNS, Config

_RESNETS = "resnet9|resnet18|wide_resnet|resnet50|inception_resnet_v2"
_OWN_SIZES = {"model_depth": None, "model_width": None}
_EVERY_5 = AdaBatchOptions(every_epochs=5, bound_by_decay=True)


def parse(*arguments: str, preset: Config | None = None, except_for: tuple[str, ...] = ()) -> Config:
    """The Config of a command line, with its own flags."""
    values = flags.FlagValues()
    config_flags.define_flags(except_for, values)
    values(["program", *arguments])
    return config_flags.config_from_flags(preset or presets.get("cifar10").config, values)


def test_every_field_is_of_one_concern_and_has_a_flag_in_its_group():
    values = flags.FlagValues()
    config_flags.define_flags(values=values)
    groups = {concern.__doc__: {field.name for field in dataclasses.fields(concern)} for concern in CONCERNS.values()}
    found = {name: {flag.name for flag in group} for name, group in values.flags_by_module_dict().items()}
    assert found == groups | {CONCERNS["recipe"].__doc__: groups[CONCERNS["recipe"].__doc__] | {"batch_size_unit"}}
    assert sum(map(len, groups.values())) == len(Config().flat())


@pytest.mark.parametrize(
    ("argument", "fields"),
    [
        ("", {}),
        ("--batch_size=64 --learning_rate=0.3", {"batch_size": 64, "learning_rate": 0.3}),
        ("--model_width=2", {"model_width": 2}),
        ("--lr_decay_epochs=1,2.5", {"lr_decay_epochs": (1.0, 2.5)}),
        ("--lr_decay_epochs=", {"lr_decay_epochs": ()}),
        ("--batch_warmup_epochs=2,5", {"batch_warmup_epochs": (2.0, 5.0)}),
        ("--batch_warmup_epochs=2 --batch_warmup_factors=.5 --batch_scaling=sqrt",
         {"batch_warmup_epochs": (2.0,), "batch_warmup_factors": (0.5,), "batch_scaling": "sqrt"}),
        ("--optimizer=adamw --b2=0.95 --epsilon=1e-7", {"optimizer": "adamw", "b2": 0.95, "epsilon": 1e-7}),
        ("--decay_biases_and_norms", {"decay_biases_and_norms": True}),
        ("--scale_learning_rate=2 --batch_scaling=0.6", {"scale_learning_rate": 2.0, "batch_scaling": 0.6}),
        ("--scale_learning_rate=2 --batch_scaling=sqrt", {"scale_learning_rate": 2.0, "batch_scaling": "sqrt"}),
        (
            "--controller=adabatch --controller_options=every_epochs=5,bound_by_decay=true",
            {"controller": "adabatch", "controller_options": _EVERY_5},
        ),
        ("--controller=plateau --controller_options=factor=0.1", {"controller": "plateau"}),  # which is its default
        # Settings of the preset that the chosen model or task lacks are reset; decays scale with the length.
        ("--model=resnet18", {"model": "resnet18", **_OWN_SIZES}),
        ("--model=mlp --model_depth=3", {"model": "mlp", "model_depth": 3}),
        ("--task=autoencoder", {"task": "autoencoder", "model": "conv_autoencoder", **_OWN_SIZES}),
        ("--task=language_model --context_length=8 --num_heads=2 --positions=learned",
         {"task": "language_model", "model": "transformer", "context_length": 8, "num_heads": 2,
          "positions": "learned", **_OWN_SIZES}),
        ("--task=language_model --context_length=8 --batch_size_unit=tokens --batch_size=256 --max_batch_size=512 "
         "--schedule=increase_batch_size",
         {"task": "language_model", "model": "transformer", "context_length": 8, "batch_size": 32,
          "max_batch_size": 64, "schedule": "increase_batch_size", **_OWN_SIZES}),
        ("--task=contrastive --group_size=16 --eval_group_size=4 --temperature=.5 --augmentation=crop",
         {"task": "contrastive", "model": "mlp", "group_size": 16, "eval_group_size": 4, "temperature": 0.5,
          "augmentation": "crop", **_OWN_SIZES}),
        ("--lr_schedule=linear --lr_end_factor=.1", {"lr_schedule": "linear", "lr_end_factor": 0.1}),
        ("--num_epochs=20", {"num_epochs": 20.0, "lr_decay_epochs": (6.0, 12.0, 16.0)}),
        ("--num_epochs=20 --lr_decay_epochs=3", {"num_epochs": 20.0, "lr_decay_epochs": (3.0,)}),
    ],
)  # fmt: skip
def test_flags_set_their_fields_and_no_others(argument, fields):
    assert parse(*argument.split()) == presets.get("cifar10").config.replace(**fields)


def test_decays_that_move_are_told(capsys):
    parse("--num_epochs=20")
    assert "The preset's decays move with --num_epochs=20, to epochs 6, 12, 16." in capsys.readouterr().err


def test_fields_left_out_have_no_flag_and_nothing_that_depends_on_them_is_refused():
    with pytest.raises(flags.UnrecognizedFlagError):
        parse("--seed=1", except_for=("seed",))
    assert parse("--batch_share=0.5", except_for=("schedule",)).conversion.batch_share == 0.5


@pytest.mark.parametrize(
    ("arguments", "owner"),
    [
        ("--label_smoothing=0.1 --task=autoencoder", "--task=classification"),
        ("--augmentation=crop --task=autoencoder", "--task=classification|contrastive"),
        ("--augmentation=none --crop_padding=2", "--augmentation=crop|crop_flip"),
        ("--dropout=0.1 --task=autoencoder", f"--model=mlp|cnn|{_RESNETS}|transformer"),
        ("--reconstruction=bernoulli", "--task=autoencoder"),
        ("--label_smoothing=0.1 --task=contrastive", "--task=classification"),
        ("--group_size=8", "--task=contrastive"),
        ("--num_features=8 --task=autoencoder", "--task=contrastive"),
        ("--model=resnet18 --model_depth=18", "--model=mlp|cnn|wide_resnet|conv_autoencoder|transformer"),
        ("--context_length=32", "--task=language_model"),
        ("--num_heads=2 --task=autoencoder", "--model=transformer"),
        ("--positions=rope", "--model=transformer"),
        ("--lr_end_factor=0.1", "--lr_schedule=cosine|quarter_cosine|linear"),
        ("--model=mlp --ghost_batch_size=8", f"--model=cnn|{_RESNETS}"),
        ("--model=mlp --batch_norm_decay=0.9", f"--model=cnn|{_RESNETS}"),
        ("--lr_schedule=cosine --lr_decay_epochs=1,2", "--lr_schedule=step|exponential"),
        ("--lr_schedule=linear --lr_decay_factor=2", "--lr_schedule=step|exponential"),
        ("--optimizer=sgd --momentum=0", "--optimizer=momentum|nesterov|adam|adamw|rmsprop|lars|lamb|muon"),
        ("--b2=0.95", "--optimizer=adam|adamw|rmsprop|lamb|muon"),
        ("--epsilon=1e-7 --optimizer=lars", "--optimizer=adam|adamw|rmsprop|lamb|muon"),
        (
            "--scale_adam=sde --optimizer=adam",
            "--schedule=increase_batch_size or --scale_learning_rate or --scale_momentum or --batch_warmup_epochs",
        ),
        ("--batch_warmup_factors=0.5", "--batch_warmup_epochs"),
        ("--max_batch_size=640", "--schedule=increase_batch_size or --controller"),
        ("--batch_growth=2", "--schedule=increase_batch_size or --controller"),
        ("--batch_scaling=sqrt", "--schedule=increase_batch_size or --scale_learning_rate or --batch_warmup_epochs"),
        ("--batch_share=0.5 --controller=adabatch", "--schedule=increase_batch_size"),
        ("--controller_hysteresis=0.1", "--controller"),
        ("--min_batch_size=128", "--controller"),
        ("--layer_norm_noise", "--task=language_model"),
    ],
)
def test_a_flag_that_belongs_to_another_choice_is_refused(arguments, owner):
    name = re.findall(r"--(\w+)", arguments)
    message = rf"^({'|'.join(name)}) is .* must be combined with {re.escape(owner)}; it has no effect with .*=.*$"
    with pytest.raises(InvalidArgument, match=message):
        parse(*arguments.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--lr_decay_epochs=1,x", "lr_decay_epochs is '1,x'; it must be numbers separated by commas"),
        ("--batch_warmup_epochs=2,x", "batch_warmup_epochs is '2,x'; .* numbers separated by commas; nearest: 3,10$"),
        ("--num_epochs=100 --lr_decay_epochs=60,120", "lr_decay_epochs is '60,120'; .* num_epochs 100; nearest: 60$"),
        ("--controller=plateau --controller_options=patience", "controller_options is 'patience'; .* NAME=VALUE"),
        ("--controller=plateau --controller_options=patince=3", "controller_options is 'patince'; .*: patience$"),
        ("--controller=gradient_noise --controller_options=example_price=0", "controller_options: example_price is 0"),
        ("--controller_options=a=1", "controller_options is 'a'; it must be empty: planned has no options$"),
        ("--controller=nois", "controller is 'nois'; it must be one of planned, gradient_noise, "),
        ("--batch_size_unit=tokens",
         "batch_size_unit is 'tokens'; .* with --task=classification; .*; nearest: examples$"),
        ("--task=language_model --context_length=64 --batch_size_unit=tokens --batch_size=100",
         "batch_size is 100; .* a multiple of --context_length 64 in tokens; nearest: 64 or 128$"),
        ("--task=language_model --batch_size_unit=token",
         "batch_size_unit is 'token'; .* examples, tokens; nearest: tokens$"),
        ("--task=autoencoder --model=cnn", "model is 'cnn'; .* task=autoencoder; nearest: conv_autoencoder"),
    ],
)  # fmt: skip
def test_bad_texts_are_refused_by_flag_name(arguments, message):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        parse(*arguments.split())
