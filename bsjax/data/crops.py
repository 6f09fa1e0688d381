"""Crops of images of many sizes: at random in training, as Inception's, and of the centre in the evaluation."""

import math
from typing import NamedTuple

import numpy as np

_NUM_ATTEMPTS = 10


class Crop(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int
    is_mirrored: bool = False


def random_crop(
    seed: int,
    position: int,
    height: int,
    width: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Crop:
    r"""A part of random area and shape, mirrored left to right half of the time.

    .. math:: hw = a HW, \quad w / h = r, \quad a \sim U(a_0, a_1), \quad \log r \sim U(\log r_0, \log r_1)

    Sizes are rounded, and the place is uniform among those inside of the image. After ten sizes that do not fit, the
    crop is the largest one around the centre with an allowed shape. It is a function of the arguments alone, and the
    same in every version of numpy.

    Args:
      seed: of the run.
      position: of the example in the stream of examples.
      height: of the image, in pixels, at least 1.
      width: of the image.
      area: a_0 and a_1, shares of the image's area.
      aspect_ratio: r_0 and r_1, width over height.

    >>> random_crop(seed=0, position=7, height=375, width=500) == random_crop(seed=0, position=7, height=375, width=500)
    True
    >>> random_crop(seed=0, position=7, height=10, width=100, area=(1.0, 1.0))[:4]
    (0, 43, 10, 13)

    Reference: Szegedy et al., 2015 (https://arxiv.org/abs/1409.4842), Section 6.
    """
    uniform = _uniform(seed, position, 4 * _NUM_ATTEMPTS + 1)
    mirrored = bool(uniform[-1] < 0.5)
    for share, shape, down, right in uniform[:-1].reshape(_NUM_ATTEMPTS, 4).tolist():
        target = (area[0] + share * (area[1] - area[0])) * height * width
        ratio = math.exp(math.log(aspect_ratio[0]) + shape * math.log(aspect_ratio[1] / aspect_ratio[0]))
        h, w = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < h <= height and 0 < w <= width:
            return Crop(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w, mirrored)
    h = min(height, max(1, round(width / aspect_ratio[0])))
    w = min(width, max(1, round(height * aspect_ratio[1])))
    return Crop((height - h) // 2, (width - w) // 2, h, w, mirrored)


def center_crop(height: int, width: int, share: float = 0.875) -> Crop:
    """The square around the centre whose side is a share of the shorter side: 224 of 256 pixels.

    >>> center_crop(375, 500)[:4]
    (23, 86, 328, 328)
    """
    side = max(1, round(share * min(height, width)))
    return Crop((height - side) // 2, (width - side) // 2, side, side)


def _uniform(seed: int, position: int, count: int) -> np.ndarray:
    """float64 [count] in [0, 1): a function of seed and position whose bits numpy does not change."""
    bits = np.random.Philox(key=np.array([seed, position], np.uint64)).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53
