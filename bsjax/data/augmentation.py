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
      padding: pixels on each side.

    Returns:
      The images, of the same shape and dtype.
    """
    if name == "none":
        return images

    def augment_one(image: jax.Array, key: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)  # the types below give the same draws in float64
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1, jnp.int32)
        image = jax.lax.dynamic_slice(padded, (top, left, jnp.int32(0)), image.shape)
        if name == "crop_flip":
            image = jnp.where(jax.random.bernoulli(flip_key, jnp.float32(0.5)), image[:, ::-1], image)
        return image

    return jax.vmap(augment_one)(images, keys)
