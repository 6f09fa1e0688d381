"""Figures 6 and 7 and ResNet-50: their plans, their controls, a run of the script, and rehearsals."""

import functools

import numpy as np
import pytest
from PIL import Image

from bsjax import InvalidArgument
from bsjax.errors import RunError
from experiments.harness import build, imagenet, rehearsal
from experiments.harness.config import Config
from experiments.harness.imagenet import DECAYING, FIGURE6, FIGURE7, GROWING, RESNET50

N = 1_281_167
SCHEDULES = {
    "figure6": (FIGURE6, imagenet.decayed_and_grown),
    "figure7": (FIGURE7, imagenet.raised_momentum),
    "resnet50": (RESNET50, imagenet.decayed_and_grown),
}


@functools.cache
def plans_of(figure, name, controls=False):
    choices, schedules = SCHEDULES[figure]
    preset = choices[name]
    configs = schedules(preset, preset.config) | (imagenet.controls(preset, preset.config) if controls else {})
    return {label: build.recipe(config, preset.dataset_size).plan() for label, config in configs.items()}


def phases_of(plan):
    """Batch size, learning rate and momentum between the decays, which follow a warm-up if there is one."""
    columns = (plan.batch_sizes, plan.learning_rates, plan.momentums)
    rows = [tuple(float(f"{x:.6g}") for x in row) for row in zip(*columns, strict=True)]
    return list(dict.fromkeys(rows[plan.num_updates // 10 :]))


@pytest.mark.parametrize(
    ("figure", "updates"),
    [("figure6", [14_076, 5_631]), ("figure7", [5_865, 3_519, 2_346]), ("resnet50", [14_076, 9_384])],
)
def test_the_plans_have_the_papers_updates(figure, updates):
    plans = list(plans_of(figure, "imagenet").values())
    assert [plan.num_updates for plan in plans] == updates
    for plan in plans:  # 30 epochs at the first batch size and 60 at the last, and the rest of a batch
        exact = 30 * N / plan.batch_sizes[0] + 60 * N / plan.batch_sizes[-1]
        assert 0 <= plan.num_updates - exact < 1
    preset = SCHEDULES[figure][0]["imagenet"]
    for label, said in preset.published.items():
        if said.updates.startswith("below"):
            below = int(said.updates.removeprefix("below ").replace(",", ""))
            assert plans_of(figure, "imagenet")[label].num_updates < 1.01 * below  # 3,519 of "below 3,500"


def test_the_plans_have_the_papers_batches_and_rates():
    decaying, growing = plans_of("figure6", "imagenet").values()
    assert phases_of(decaying) == [(8192, rate, 0.9) for rate in (3.0, 0.3, 0.03, 0.003)]
    assert phases_of(growing) == [(8192, 3.0, 0.9), (81_920, 3.0, 0.9), (81_920, 0.3, 0.9), (81_920, 0.03, 0.9)]
    for momentum, size, plan in zip(
        (0.9, 0.95, 0.975), (8192, 16_384, 32_768), plans_of("figure7", "imagenet").values(), strict=True
    ):
        rates = 3 * 65_536 / size / np.array([10, 100, 1000])
        assert phases_of(plan) == [
            (size, 3.0, momentum),
            *((65_536, float(f"{rate:.6g}"), momentum) for rate in rates),
        ]
    decaying, growing = plans_of("resnet50", "imagenet").values()
    assert phases_of(decaying) == [(8192, rate, 0.9) for rate in (3.2, 0.32, 0.032, 0.0032)]
    assert phases_of(growing) == [(8192, 3.2, 0.9), *((16_384, rate, 0.9) for rate in (0.64, 0.064, 0.0064))]
    for plan in (decaying, growing):
        warm_up = plan.examples_seen[: plan.num_updates] / N < 5
        np.testing.assert_allclose(plan.learning_rates[warm_up], 3.2 * np.arange(warm_up.sum()) * 8192 / N / 5)


@pytest.mark.parametrize("figure", SCHEDULES)
def test_the_small_copy_has_the_same_shares_growth_and_momentums(figure):
    large, small = (plans_of(figure, name) for name in ("imagenet", "tiny_imagenet"))
    for label, plan in large.items():
        copy = small[label]
        assert len(phases_of(copy)) == len(phases_of(plan))
        np.testing.assert_array_equal(
            [(batch / copy.batch_sizes[0], momentum) for batch, _, momentum in phases_of(copy)],
            [(batch / plan.batch_sizes[0], momentum) for batch, _, momentum in phases_of(plan)],
        )


@pytest.mark.parametrize("name", FIGURE6)
@pytest.mark.parametrize("figure", SCHEDULES)
def test_the_controls_change_the_noise_or_the_length(figure, name):
    plans = plans_of(figure, name, controls=True)
    growing = list(plans_of(figure, name).values())[1 if figure != "figure7" else 0]
    constant, short, decayed, twice = [plan for label, plan in plans.items() if label.startswith("Control")]
    assert len(set(constant.learning_rates[constant.num_updates // 10 :])) == 1
    assert short.num_updates == pytest.approx(growing.num_updates, rel=0.01)
    assert decayed.batch_sizes.max() == growing.batch_sizes.max()
    assert decayed.learning_rates[-1] < growing.learning_rates[-1]
    assert twice.batch_sizes.max() == 2 * growing.batch_sizes.max()


def test_the_table_of_plans_has_the_papers_words():
    preset = FIGURE7["imagenet"]
    head, *_, last = imagenet.plan_rows(preset, imagenet.raised_momentum(preset, preset.config))
    assert head[:4] == ["schedule", "updates", "in the paper", "top-1 there, %"]
    assert last == ["Momentum 0.975", "2,346", "below 2,500", "77.5, 76.8", "32,768 → 65,536"]


@pytest.fixture
def data_dir(tmp_path):
    """A folder with class folders of 640 JPEGs of many sizes to train on, in 100 classes, and 100 to test on."""
    random = np.random.RandomState(0)
    for number in range(740):
        split, size = ("train", "val")[number >= 640], random.randint(4, 9, 2)
        path = tmp_path / "data" / "tiny_imagenet_10" / split / f"class {number % 100:02}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(256, size=(*size, 3)).astype(np.uint8)).save(path)
    return tmp_path / "data"


def test_a_figure_is_trained_and_drawn(call, data_dir, read_csv, tmp_path):
    flags = ["--preset=tiny_imagenet", "--model=mlp", "--model_depth=1", "--num_epochs=3", "--seeds=1", "--jobs=1"]
    flags += ["--microbatch_size=auto", f"--workdir={tmp_path / 'figure'}", "--nocontrols", "--image_size=4"]
    result = call("figure6", *flags, BSJAX_DATA_DIR=str(data_dir))
    assert result.returncode == 0, result.stderr
    for name in ("test acc. %", "test top5 acc. %", "in the paper"):
        assert name in result.stdout
    rows = read_csv(tmp_path / "figure" / "figure6_table.csv")
    assert [(row["schedule"], row["updates"]) for row in rows] == [(imagenet.DECAYING, "60"), (imagenet.GROWING, "24")]
    assert "final_test_top5_accuracy" in read_csv(tmp_path / "figure" / "summary.csv")[0]
    assert (tmp_path / "figure" / "figure6.png").exists()


def test_a_rehearsal_predicts_each_phase_from_its_microbatches(call, tmp_path):
    flags = ["--preset=tiny_imagenet", "--rehearse", "--model=mlp", "--model_depth=1", "--microbatch_size=16"]
    result = call("figure6", *flags, f"--workdir={tmp_path / 'none'}")
    assert result.returncode == 0, result.stderr
    assert (
        "3 programs were compiled" in result.stdout
    )  # of the accumulation, its zeros and the optimizer, for all phases
    rows = [line.rsplit(maxsplit=8) for line in result.stdout.splitlines() if line.startswith((DECAYING, GROWING))]
    phases = [row for row in rows if "total" not in row]
    assert [row[1:6] for row in phases] == [
        ["0", "32", "16", "2", "4,688"],
        ["0", "32", "16", "2", "1,563"],
        ["10", "320", "16", "20", "313"],
    ]
    for *_, updates, seconds, _, hours in phases:
        assert float(hours) == pytest.approx(int(updates.replace(",", "")) * float(seconds) / 3600, rel=0.01)
    assert float(phases[2][6]) > float(phases[1][6])
    assert not (tmp_path / "none").exists()


def test_a_rehearsal_computes_the_time_and_the_memory_of_its_layout():
    preset = FIGURE6["tiny_imagenet"]
    config = preset.config.replace(model="mlp", model_depth=1, microbatch_size=16)
    sizes = [16 * 8, 32 * 8, 320 * 8]  # on eight devices
    rehearsed = rehearsal.Rehearsal(preset, config, set(sizes))
    alone, two, twenty = map(rehearsed.measure, sizes)
    assert (alone.num_microbatches, two.num_microbatches, twenty.num_microbatches) == (1, 2, 20)
    assert twenty.update_s - two.update_s == pytest.approx(18 * two.microbatch_s)
    assert alone.update_s == alone.microbatch_s > 0
    weights = 4 * 32 * 32 * 3 * build.model(config, 10).width  # of the first layer, which are most of them
    assert 4 * weights < two.memory_bytes < 10 * weights  # parameters, momentum, gradients and their sum; copies
    assert twenty.memory_bytes == two.memory_bytes


def test_a_rehearsal_whose_loss_is_not_finite_is_refused(monkeypatch):
    preset = FIGURE6["tiny_imagenet"]
    config = preset.config.replace(model="mlp", model_depth=1, microbatch_size=16)
    monkeypatch.setattr(rehearsal, "STD", 1e-38)  # the pixels overflow
    rehearsed = rehearsal.Rehearsal(preset, config, {128})
    with pytest.raises(InvalidArgument, match=r"loss of the first update is (nan|inf); it must be finite"):
        rehearsed.measure(128)


def test_random_images_are_the_same_at_each_call():
    images = rehearsal.RandomImages(1000, (4, 6, 3), 10)
    indices = np.array([[0, 999], [64, 5]])
    found = images.gather(indices)
    assert found["image"].shape == (2, 2, 4, 6, 3)
    assert (len(images), found["image"].dtype, found["label"].dtype) == (1000, np.uint8, np.int32)
    for key, values in images.gather(indices.ravel()).items():
        np.testing.assert_array_equal(values, found[key].reshape(4, *values.shape[1:]))


@pytest.mark.parametrize(
    ("fields", "num_workers", "message"),
    [
        ({"image_size": None}, 0, "image_size is None; it must be a number of pixels with tiny_imagenet_10, whose "
         "images have many sizes; nearest: 224"),
        ({"dataset": "digits", "image_size": 9}, 0, "image_size is 9; it must be left out with digits, whose images "
         "all have 8×8 pixels; nearest: 8"),
        ({"dataset": "digits", "image_size": 8, "on_bad_example": "skip_with_record"}, 0, "on_bad_example is "
         "'skip_with_record'; it must be fail with digits, whose images are decoded already; nearest: fail"),
        ({"dataset": "digits", "image_size": None}, 2, "num_workers is 2; it must be 0 with digits, which is decoded "
         "already: workers decode images of many sizes; nearest: 0"),
        ({"task": "language_model", "model": "transformer"}, 0, "dataset is 'tiny_imagenet_10'; it must be a text, "
         "which scripts/prepare_data.py prepares, with task=language_model"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_images_is_refused(data_dir, fields, num_workers, message):
    config = Config().replace(dataset="tiny_imagenet_10", image_size=4).replace(**fields)
    with pytest.raises(InvalidArgument) as refusal:
        build.dataset(config, data_dir, num_workers)
    assert str(refusal.value) == message


def test_the_config_says_how_images_are_read(data_dir):
    config = Config().replace(dataset="tiny_imagenet_10", image_size=5, seed=3)
    path = data_dir / "tiny_imagenet_10" / "train" / "class 00" / "0.JPEG"
    datasets = [build.dataset(config.replace(seed=seed), data_dir) for seed in (3, 4)]
    one, other = (dataset.train.gather(np.arange(20))["image"] for dataset in datasets)
    assert one.shape == (20, 5, 5, 3) and (one != other).any()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match=r"^example 0 is damaged, class 00/0.JPEG: .*on_bad_example=skip_with_record"):
        build.dataset(config, data_dir).train.gather(np.arange(2))
    skipping = build.dataset(config.replace(on_bad_example="skip_with_record"), data_dir).train
    assert (skipping.gather(np.arange(2))["label"] == 0).all() and list(skipping.bad_examples) == [0]
