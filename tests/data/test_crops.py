"""Random crops: their distribution, their bits, and that they are inside of the image."""

import numpy as np
import pytest

from bsjax.data.crops import center_crop, random_crop

GOLDEN = [(26, 214, 140, 121, False), (16, 104, 285, 348, False)]


def test_area_shape_place_and_mirroring_are_uniform():
    """No size fails to fit into this image, so that the first attempt is the crop."""
    crops = np.array([random_crop(3, p, 1000, 1000, area=(0.08, 0.5), aspect_ratio=(1 / 2, 2)) for p in range(3000)])
    top, left, height, width, mirrored = crops.T
    for uniform in (
        (height * width / 1e6 - 0.08) / 0.42,
        np.log2(width / height) / 2 + 0.5,
        top / (1000 - height),
        left / (1000 - width),
    ):
        assert abs(uniform.mean() - 0.5) < 4 / np.sqrt(12 * len(crops))
        np.testing.assert_allclose(np.quantile(uniform, [0.1, 0.9]), [0.1, 0.9], atol=0.03)
    assert abs(mirrored.mean() - 0.5) < 4 / np.sqrt(4 * len(crops))
    assert abs(np.corrcoef(mirrored, left)[0, 1]) < 4 / np.sqrt(len(crops))


@pytest.mark.parametrize("size", [(375, 500), (1, 1), (3, 500), (500, 2), (64, 64)])
def test_crops_are_inside_of_the_image(size):
    for position in range(200):
        top, left, height, width, _ = random_crop(0, position, *size)
        assert 0 <= top < top + height <= size[0]
        assert 0 <= left < left + width <= size[1]


def test_a_crop_belongs_to_the_seed_and_the_position():
    crops = {random_crop(seed, position, 375, 500) for seed in range(5) for position in (*range(20), 2**40, 2**62)}
    assert len(crops) == 5 * 22


def test_bits_are_those_of_philox_in_every_version():
    assert random_crop(0, 0, 375, 500) == GOLDEN[0]
    assert random_crop(1, 2**33, 375, 500) == GOLDEN[1]


def test_what_does_not_fit_becomes_the_largest_allowed_shape_around_the_center():
    assert random_crop(0, 0, 30, 300, area=(1, 1))[:4] == (0, 130, 30, 40)
    assert random_crop(0, 0, 300, 30, area=(1, 1))[:4] == (130, 0, 40, 30)
    assert random_crop(0, 0, 50, 50, area=(1, 1), aspect_ratio=(1, 1))[:4] == (0, 0, 50, 50)


def test_the_centers_square_is_224_of_256():
    assert center_crop(256, 256) == (16, 16, 224, 224, False)
    assert center_crop(256, 512)[:4] == (16, 144, 224, 224)
