"""Randomness of an example inside jit, keyed by (seed, stream position) alone; augmentation."""

import jax
import jax.numpy as jnp

AUGMENTATIONS = ("none", "crop", "crop_flip")


def position_keys(key: jax.Array, position_hi: jax.Array, position_lo: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two keys per example: for its augmentation, and for the model's dropout.

    Args:
      key: of the run.
      position_hi: uint32 [n], the upper half of the stream positions.
      position_lo: uint32 [n], the lower half.

    Returns:
      Keys [n] and keys [n].
    """

    def keys_of_one(hi: jax.Array, lo: jax.Array) -> jax.Array:
        return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, hi), lo))

    augmentation_keys, model_keys = jax.vmap(keys_of_one, out_axes=1)(position_hi, position_lo)
    return augmentation_keys, model_keys


def augment(name: str, images: jax.Array, keys: jax.Array, padding: int = 4) -> jax.Array:
    """Augments each image by its own key.

    Args:
      name: "none", "crop" (pad with zeros, then crop at random to the old size), or "crop_flip" (and mirror
        half of them left to right).
      images: float [n, height, width, channels], standardised, so that zero is the mean colour.
      keys: [n], the first of `position_keys`.
      padding: pixels on each side.

    Returns:
      As images.
    """
    if name == "none":
        return images

    def augment_one(image: jax.Array, key: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)  # the types below make the same draws in float64 too
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1, jnp.int32)
        image = jax.lax.dynamic_slice(padded, (top, left, jnp.int32(0)), image.shape)
        if name == "crop_flip":
            image = jnp.where(jax.random.bernoulli(flip_key, jnp.float32(0.5)), image[:, ::-1], image)
        return image

    return jax.vmap(augment_one)(images, keys)
