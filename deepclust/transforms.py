"""Views of rows for augmentation: the T of a self-augmentation loss.

A transform is called with rows (n, D) and a generator on the CPU, and gives as many rows, on their
device and in their type. The same state of the generator gives the same view. Transforms are plain
values: they compare by their parameters, and can be saved as those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample

from deepclust.kernels import _checks
from deepclust.kernels._blocks import full_precision


@dataclass(frozen=True)
class ImageTransform:
    """Small random turns, shifts and changes of size of images, each row its own.

    The pixel at p, counted from the middle, becomes what the row has at R p / scale + shift, R a
    turn, by bilinear interpolation. Beyond its edge an image goes on as its border: a background
    stays what it is in any scale of X, where zeros would draw an edge into standardised images.
    Nothing is mirrored: a mirrored digit is another thing, or none.

    Args:
        image_shape: (H, W) or (H, W, channels) of the image in each row, channels last.
        degrees: Turns are drawn from -degrees to degrees, at most 180.
        translate: Shifts are drawn from -translate to translate, a share of width and height, at
            most 1.
        zoom: Scales are drawn from 1 - zoom to 1 + zoom; below 1.
        noise: Standard deviation of Gaussian noise, as a share of that of all values of the batch.

    Raises:
        ValueError: If a parameter is out of its range; when called, if x has another width.
        TypeError: When called, if x is not a floating-point tensor.

    Example:
        >>> import torch
        >>> transform = ImageTransform((8, 8))
        >>> transform(torch.rand(5, 64), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 64])
    """

    image_shape: Sequence[int]
    degrees: float = 15.0
    translate: float = 0.1
    zoom: float = 0.1
    noise: float = 0.0

    def __post_init__(self) -> None:
        try:
            shape = tuple(index(size) for size in self.image_shape)
        except TypeError:
            shape = ()
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(
                f"image_shape: got {self.image_shape!r}; it takes (H, W) or (H, W, channels)"
            )
        # A list, which is what JSON makes of it, is the same shape.
        object.__setattr__(self, "image_shape", shape)
        _check_range("degrees", self.degrees, "from 0 to 180", 180)
        _check_range("translate", self.translate, "from 0 to 1", 1)
        _check_range("zoom", self.zoom, "from 0 to below 1", _BELOW_ONE)
        _check_range("noise", self.noise, "of at least 0")

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Views (n, D) of rows x (n, D), D = H * W * channels."""
        height, width, channels = (*self.image_shape, 1)[:3]
        _checks.check_matrix("x", x, height * width * channels)
        if len(x) == 0:
            return x
        wide = x.to(_checks.compute_dtype(x.dtype))
        images = wide.view(-1, height, width, channels).permute(0, 3, 1, 2)
        # Four numbers a row, from the CPU: the geometry is the same on any device.
        draws = 2 * torch.rand(len(x), 4, generator=generator, dtype=torch.float32) - 1
        turn, zoom, dx, dy = draws.to(images, non_blocking=True).unbind(1)
        angle, scale = math.radians(self.degrees) * turn, 1 + self.zoom * zoom
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        # affine_grid counts from -1 to 1 along either side, however long it is.
        source_x = torch.stack([cosine, -sine * (height / width), 2 * self.translate * dx], 1)
        source_y = torch.stack([sine * (width / height), cosine, 2 * self.translate * dy], 1)
        with full_precision(x):
            grid = affine_grid(
                torch.stack([source_x, source_y], 1), list(images.shape), align_corners=False
            )
            views = grid_sample(images, grid, padding_mode="border", align_corners=False)
        view = views.permute(0, 2, 3, 1).reshape(x.shape)
        if self.noise > 0:
            own = _on_device(generator, x.device)
            view = view + self.noise * wide.std(correction=0) * _normal(view, own)
        return view.to(x.dtype)


@dataclass(frozen=True)
class FeatureNoise:
    """Noise on all values and zeros in place of some, for rows that are no images.

    Args:
        std: Standard deviation of Gaussian noise, as a share of each column's own over the batch: a
            column that is constant there gets none.
        drop: The probability with which each value becomes 0, below 1, as in a denoising
            autoencoder; the others are not scaled up.

    Raises:
        ValueError: If a parameter is out of its range; when called, if x is not (n, D).
        TypeError: When called, if x is not a floating-point tensor.

    Example:
        >>> import torch
        >>> noise = FeatureNoise(std=0.0, drop=0.5)
        >>> noise(torch.ones(1, 6), torch.Generator().manual_seed(0))
        tensor([[1., 0., 0., 0., 1., 0.]])
    """

    std: float = 0.1
    drop: float = 0.1

    def __post_init__(self) -> None:
        _check_range("std", self.std, "of at least 0")
        _check_range("drop", self.drop, "from 0 to below 1", _BELOW_ONE)

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Views (n, D) of rows x (n, D)."""
        _checks.check_matrix("x", x)
        own = _on_device(generator, x.device)
        view = x.to(_checks.compute_dtype(x.dtype))
        if self.std > 0:
            # torch's std over rows takes ten times as long.
            spread = (view - view.mean(0)).square().mean(0).sqrt()
            view = view + self.std * spread * _normal(view, own)
        if self.drop > 0:
            dropped = torch.rand(x.shape, generator=own, device=x.device) < self.drop
            view = view.masked_fill(dropped, 0)
        return view.to(x.dtype)


_BELOW_ONE = math.nextafter(1, 0)


def _check_range(name: str, value: Any, takes: str, most: float = math.inf) -> None:
    """Require a finite number from 0 to `most`."""
    if not (_checks.is_number(value) and 0 <= value <= most and value < math.inf):
        raise ValueError(f"{name}: got {value!r}; it takes a number {takes}")


def _on_device(generator: Generator, device: torch.device) -> Generator:
    """A generator of that device, seeded from this one: what is as large as x is drawn in place."""
    seed = torch.randint(2**63 - 1, (), generator=generator)
    return Generator(device).manual_seed(int(seed))


def _normal(like: Tensor, generator: Generator) -> Tensor:
    # In float64 the draws themselves would take four times as long.
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float32, device=like.device)
    return noise.to(like.dtype)
