"""PyTorch twins of the classifiers in `bsjax.models`, and a plain training loop's update: what bsjax is compared with.

The convolutions run in channels-last format, which is the faster one on a CPU. Importing this needs PyTorch.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own name for it)
from torch import nn

from bsjax.errors import check_choice


class Form(NamedTuple):
    """A way to write an update in PyTorch.

    Attributes:
      compiled: by torch.compile: the loss and its gradient; else eager.
      norm: batch norm over the "whole" batch; over its "ghosts" by a reshape; or over microbatches of a ghost each,
        whose gradients are "accumulated".
    """

    compiled: bool = False
    norm: str = "whole"

    def __str__(self) -> str:
        return ("compiled" if self.compiled else "eager") + ("" if self.norm == "whole" else f", {self.norm}")


class _BatchNorm(nn.BatchNorm2d):
    """Over ghosts of that many examples in training; None for the whole batch."""

    def __init__(self, channels: int, ghost_batch_size: int | None, momentum: float):
        super().__init__(channels, eps=1e-5, momentum=momentum)
        self.ghost_batch_size = ghost_batch_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = self.ghost_batch_size
        if not self.training or size is None or len(x) <= size:
            return super().forward(x)
        if not torch.compiler.is_compiling():  # PyTorch's own kernel is faster than what follows, unless that is fused
            return torch.cat([super(_BatchNorm, self).forward(ghost) for ghost in x.split(size)])
        n, channels, height, width = x.shape
        ghosts = x.permute(0, 2, 3, 1).reshape(n // size, -1, channels)
        var, mean = torch.var_mean(ghosts, dim=1, correction=0, keepdim=True)
        with torch.no_grad():
            self.running_mean.lerp_(mean.mean(dim=(0, 1)), self.momentum)
            self.running_var.lerp_(var.mean(dim=(0, 1)), self.momentum)
        ghosts = (ghosts - mean) * (torch.rsqrt(var + self.eps) * self.weight) + self.bias
        return ghosts.reshape(n, height, width, channels).permute(0, 3, 1, 2)


class _Conv(nn.Conv2d):
    """Without bias. With size 3 and stride 2 flax pads below and to the right only, PyTorch's users all around."""

    def __init__(self, before: int, after: int, size: int, stride: int, pads_as_flax: bool):
        self.pads_below = pads_as_flax and stride == 2 and size == 3
        super().__init__(before, after, size, stride, 0 if self.pads_below else (size - 1) // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.pads_below else x)


class _Network(nn.Module):
    """Layers in lists with flax's names, in the order of flax's calls."""

    def __init__(self, ghost_batch_size: int | None, momentum: float, pads_as_flax: bool):
        super().__init__()
        self.Conv, self.GhostBatchNorm, self.Dense = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self._norm_options, self._pads_as_flax = (ghost_batch_size, momentum), pads_as_flax

    def add_conv(self, before: int, after: int, size: int = 3, stride: int = 1) -> None:
        self.Conv.append(_Conv(before, after, size, stride, self._pads_as_flax))
        nn.init.kaiming_normal_(self.Conv[-1].weight)

    def add_norm(self, channels: int) -> None:
        self.GhostBatchNorm.append(_BatchNorm(channels, *self._norm_options))

    def add_dense(self, before: int, after: int) -> None:
        self.Dense.append(nn.Linear(before, after))


class _MLP(_Network):
    def __init__(self, image_shape: Sequence[int], num_classes: int, *options: Any, depth: int = 2, width: int = 128):
        super().__init__(*options)
        sizes = [int(np.prod(image_shape)), *[width] * depth, num_classes]
        for before, after in itertools.pairwise(sizes):
            self.add_dense(before, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1).flatten(1)
        for dense in self.Dense[:-1]:
            x = F.relu(dense(x))
        return self.Dense[-1](x)


class _CNN(_Network):
    def __init__(self, image_shape: Sequence[int], num_classes: int, *options: Any, depth: int = 2, width: int = 16):
        super().__init__(*options)
        height, columns, before = image_shape
        for layer in range(depth):
            after = width * 2**layer
            self.add_conv(before, after)
            self.add_norm(after)
            height, columns, before = height // 2, columns // 2, after
        self.add_dense(height * columns * before, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.Conv, self.GhostBatchNorm, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        return self.Dense[0](x.permute(0, 2, 3, 1).flatten(1))  # flax's order, and no copy in channels-last format


class _ResNet9(_Network):
    def __init__(self, image_shape: Sequence[int], num_classes: int, *options: Any, width: int = 24):
        super().__init__(*options)
        before = 4 * image_shape[-1]
        for factor in (1, 2, 2, 2, 4, 4, 4, 4):
            self.add_conv(before, factor * width)
            self.add_norm(factor * width)
            before = factor * width
        self.add_dense(before, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = zip(self.Conv, self.GhostBatchNorm, strict=True)

        def layer(x: torch.Tensor, pools: bool = False) -> torch.Tensor:
            conv, norm = next(layers)
            x = conv(x)
            return F.relu(norm(F.max_pool2d(x, 2) if pools else x))

        x = layer(layer(F.pixel_unshuffle(x, 2)), pools=True)
        x = x + layer(layer(x))
        x = layer(layer(x, pools=True))
        x = x + layer(layer(x))
        return self.Dense[0](x.amax(dim=(2, 3))) / 8


class _WideResNet(_Network):
    def __init__(self, image_shape: Sequence[int], num_classes: int, *options: Any, depth: int = 16, width: int = 4):
        super().__init__(*options)
        self.num_blocks, before = (depth - 4) // 6, 16
        self.add_conv(image_shape[-1], before)
        for group in range(3):
            after = 16 * width * 2**group
            for block in range(self.num_blocks):
                stride = 2 if group > 0 and block == 0 else 1
                self.add_norm(before)
                if block == 0:
                    self.add_conv(before, after, 1, stride)
                self.add_conv(before, after, 3, stride)
                self.add_norm(after)
                self.add_conv(after, after)
                before = after
        self.add_norm(before)
        self.add_dense(before, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convs, norms = iter(self.Conv), iter(self.GhostBatchNorm)
        x = next(convs)(x)
        for block in range(3 * self.num_blocks):
            y = F.relu(next(norms)(x))
            if block % self.num_blocks == 0:
                x = next(convs)(y)
            y = F.relu(next(norms)(next(convs)(y)))
            x = x + next(convs)(y)
        return self.Dense[0](F.relu(next(norms)(x)).mean(dim=(2, 3)))


class _ResNet18(_Network):
    def __init__(self, image_shape: Sequence[int], num_classes: int, *options: Any, width: int = 64):
        super().__init__(*options)
        layers = [(image_shape[-1], width, 3, 1)]
        self.changes_shape, before = [], width
        for stage in range(4):
            after = width * 2**stage
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                self.changes_shape.append(before != after)
                layers += [(before, after, 3, stride), (after, after, 3, 1)]
                layers += [(before, after, 1, stride)] if before != after else []
                before = after
        for layer in layers:
            self.add_conv(*layer)
            self.add_norm(layer[1])
        self.add_dense(before, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = zip(self.Conv, self.GhostBatchNorm, strict=True)

        def normalised(x: torch.Tensor) -> torch.Tensor:
            conv, norm = next(layers)
            return norm(conv(x))

        x = F.relu(normalised(x))
        for changes_shape in self.changes_shape:
            y = normalised(F.relu(normalised(x)))
            x = F.relu(y + (normalised(x) if changes_shape else x))
        return self.Dense[0](x.mean(dim=(2, 3)))


_MODELS: dict[str, Any] = {
    "mlp": _MLP,
    "cnn": _CNN,
    "resnet9": _ResNet9,
    "wide_resnet": _WideResNet,
    "resnet18": _ResNet18,
}


def create_model(
    name: str,
    image_shape: Sequence[int],
    num_classes: int,
    ghost_batch_size: int | None = None,
    momentum: float = 0.01,
    pads_as_flax: bool = False,
    **sizes: int,
) -> nn.Module:
    """The twin of a classifier that `bsjax.models.create_model` makes, with the same sizes.

    Args:
      name: mlp, cnn, resnet9, resnet18 or wide_resnet; the large classifiers have no twin.
      image_shape: height, width, channels.
      num_classes: the number of logits.
      ghost_batch_size: examples that share batch-norm statistics; None for all of the batch.
      momentum: weight of a batch in batch norm's running averages.
      pads_as_flax: where a convolution of stride 2 has its zeros, see `_Conv`.
      **sizes: `depth` and `width`; default, the model's own.

    Raises:
      InvalidArgument: the model has no twin.
    """
    model = _MODELS[check_choice("model", name, _MODELS)](
        image_shape, num_classes, ghost_batch_size, momentum, pads_as_flax, **sizes
    )
    return model.to(memory_format=torch.channels_last)


def copy_parameters(params: Mapping[str, Any], model: nn.Module) -> None:
    """Copies a linen model's parameters into its twin."""
    copied = 0
    with torch.no_grad():
        for kind in ("Conv", "GhostBatchNorm", "Dense"):
            for number, layer in enumerate(getattr(model, kind)):
                for name, value in params[f"{kind}_{number}"].items():
                    array = torch.from_numpy(np.array(value))
                    if name == "kernel":
                        array = array.permute(3, 2, 0, 1) if kind == "Conv" else array.T
                    (layer.bias if name == "bias" else layer.weight).copy_(array)
                    copied += 1
    assert copied == sum(len(layer) for layer in params.values()) == len(list(model.parameters()))


class Trainer:
    """Updates as one writes them in PyTorch: SGD with momentum, and weight decay of kernels, as in `bsjax.optimizers`.

    Args:
      model: of `create_model`; its ghosts fit the form.
      images: uint8 [N, height, width, channels], of training.
      labels: int [N].
      mean: float [channels], of the pixels.
      std: float [channels].
      weight_decay: added to the gradient.
      momentum: of SGD.
      form: how the update is written.
      microbatch_size: examples for each gradient that is accumulated; None for all.
      augmentation: one of `bsjax.data.AUGMENTATIONS`.
      padding: pixels on each side of an image that is cropped.
    """

    def __init__(
        self,
        model: nn.Module,
        images: np.ndarray,
        labels: np.ndarray,
        mean: np.ndarray,
        std: np.ndarray,
        weight_decay: float,
        momentum: float,
        form: Form,
        microbatch_size: int | None = None,
        augmentation: str = "none",
        padding: int = 4,
    ):
        self.model, self._microbatch_size = model, microbatch_size
        self._augmentation, self._padding = augmentation, padding
        self._images, self._labels = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
        self._mean, self._std = torch.from_numpy(mean), torch.from_numpy(std)
        kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        self._optimizer = torch.optim.SGD(groups, 0.0, momentum, fused=True)  # the fastest of its three on a CPU
        self._loss = torch.compile(self._loss_of, dynamic=False) if form.compiled else self._loss_of

    def update(self, index: torch.Tensor, learning_rate: float) -> torch.Tensor:
        """One update on the examples of an index; returns the loss before it."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        images, labels = self._images[index], self._labels[index]
        size, total = self._microbatch_size or len(index), torch.zeros(())
        for start in range(0, len(index), size):
            part = slice(start, start + size)
            shifts = self._draw_shifts(len(index[part]))
            loss = self._loss(images[part], labels[part], *shifts) * (len(index[part]) / len(index))
            loss.backward()
            total = total + loss.detach()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def evaluate(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 256) -> tuple[float, float]:
        """The mean loss and the accuracy over test images, uint8 [n, height, width, channels], and labels int64 [n]."""
        self.model.eval()
        loss = num_correct = 0.0
        with torch.inference_mode():
            for some, classes in zip(images.split(batch_size), labels.split(batch_size), strict=True):
                logits = self.model(self._standardised(some).permute(0, 3, 1, 2))
                loss += F.cross_entropy(logits, classes, reduction="sum").item()
                num_correct += (logits.argmax(dim=1) == classes).sum().item()
        self.model.train()
        return loss / len(labels), num_correct / len(labels)

    def logits(self, index: torch.Tensor) -> torch.Tensor:
        """Of the model in training."""
        with torch.no_grad():
            return self.model(self._standardised(self._images[index]).permute(0, 3, 1, 2))

    def _standardised(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() - self._mean) / self._std

    def _loss_of(self, images: torch.Tensor, labels: torch.Tensor, *shifts: torch.Tensor) -> torch.Tensor:
        x = self._standardised(images)
        if shifts:
            rows, columns = shifts
            padded = F.pad(x, (0, 0, *(self._padding,) * 4))
            x = padded[torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]
        return F.cross_entropy(self.model(x.permute(0, 3, 1, 2)), labels)

    def _draw_shifts(self, size: int) -> tuple[torch.Tensor, ...]:
        """The rows and the columns of padded images that random crops have, of half of them mirrored."""
        if self._augmentation == "none":
            return ()
        height, width = self._images.shape[1:3]
        rows, columns = (
            torch.randint(0, 2 * self._padding + 1, (size, 1)) + torch.arange(pixels) for pixels in (height, width)
        )
        if self._augmentation == "crop_flip":
            columns = torch.where(torch.rand(size, 1) < 0.5, columns.flip(1), columns)
        return rows, columns
