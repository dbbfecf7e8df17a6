"""Flat rows as images, and back."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

from torch import Tensor


def image_size(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(H, W, C) of a shape (H, W) or (H, W, C).

    Raises:
        ValueError: If it is neither, or a size is below 1.

    Example:
        >>> image_size((28, 28))
        (28, 28, 1)
    """
    try:
        sizes = [index(size) for size in image_shape]
    except TypeError:
        sizes = []
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(
            f"image_shape: got {image_shape!r}; it takes (H, W) or (H, W, C), integers of at least"
            " 1"
        )
    h, w, c = (*sizes, 1)[:3]
    return h, w, c


def to_images(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Rows x (N, H W C) as images (N, C, H, W), a view of them.

    Raises:
        ValueError: If the rows are not that wide.

    Example:
        >>> import torch
        >>> to_images(torch.zeros(5, 12), (2, 2, 3)).shape
        torch.Size([5, 3, 2, 2])
    """
    h, w, c = size
    if x.ndim != 2 or x.shape[1] != h * w * c:
        raise ValueError(
            f"image_shape: got {size} for rows of shape {tuple(x.shape)}; it takes rows"
            f" (N, {h * w * c})"
        )
    # In the strides of torch.channels_last, in which convolutions then stay.
    return x.view(len(x), h, w, c).permute(0, 3, 1, 2)


def to_rows(images: Tensor) -> Tensor:
    """Images (N, C, H, W) as rows (N, H W C), a view of them if they lie in memory channels last.

    Example:
        >>> import torch
        >>> to_rows(torch.tensor([[[[1, 2]], [[3, 4]]]]))  # two channels of one row
        tensor([[1, 3, 2, 4]])
    """
    return images.permute(0, 2, 3, 1).flatten(1)
