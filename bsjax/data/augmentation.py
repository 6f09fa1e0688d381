"""Augmentation of images inside jit, with a key per image."""

import jax
import jax.numpy as jnp

AUGMENTATIONS = ("none", "crop", "crop_flip")


def augment(name: str, images: jax.Array, keys: jax.Array, padding: int = 4) -> jax.Array:
    """Augments each image with its own key.

    Args:
      name: "none", "crop" (pad with zeros, then crop at random to the old size), or "crop_flip" (crop, then mirror
        half of the images left to right).
      images: float [n, height, width, channels], standardised, so that zero is the mean colour.
      keys: [n], one per image.
      padding: pixels on each side. A side of one pixel, such as the height of a signal, is not padded.

    Returns:
      The images, of the same shape and dtype.
    """
    if name == "none":
        return images
    vertical, horizontal = (padding if side > 1 else 0 for side in images.shape[1:3])

    def augment_one(image: jax.Array, key: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)  # the types below give the same draws in float64
        padded = jnp.pad(image, ((vertical, vertical), (horizontal, horizontal), (0, 0)))
        ends = jnp.array([2 * vertical + 1, 2 * horizontal + 1], jnp.int32)
        top, left = jax.random.randint(crop_key, (2,), 0, ends, jnp.int32)
        image = jax.lax.dynamic_slice(padded, (top, left, jnp.int32(0)), image.shape)
        if name == "crop_flip":
            image = jnp.where(jax.random.bernoulli(flip_key, jnp.float32(0.5)), image[:, ::-1], image)
        return image

    return jax.vmap(augment_one)(images, keys)


def distort(images: jax.Array, keys: jax.Array, amplitude: float = 0.0, noise: float = 0.0) -> jax.Array:
    r"""Scales each image at random, and adds noise to it.

    .. math:: x' = e^{u} x + \sigma n, \quad u \sim U(-a, a), \quad n \sim N(0, 1) \text{ at each pixel}

    Args:
      images: float [n, height, width, channels], standardised.
      keys: [n], one per image.
      amplitude: a, 0 or positive.
      noise: σ, 0 or positive.

    Returns:
      The images, of the same shape and dtype.
    """

    def distort_one(image: jax.Array, key: jax.Array) -> jax.Array:
        scale_key, noise_key = jax.random.split(key)  # float32 makes the same draws in float64 too
        scale = jnp.exp(jax.random.uniform(scale_key, (), jnp.float32, -amplitude, amplitude))
        added = noise * jax.random.normal(noise_key, image.shape, jnp.float32)
        return scale.astype(image.dtype) * image + added.astype(image.dtype)

    return jax.vmap(distort_one)(images, keys)
