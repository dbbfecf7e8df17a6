"""The convolutional autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import ge, index

from torch import Tensor, nn

from deepclust.networks.autoencoder import LayeredAutoencoder
from deepclust.networks.images import image_size, to_images, to_rows

Shape = tuple[tuple[int, int, int, int], ...]

_DCEC: Shape = ((32, 5, 2, 2), (64, 5, 2, 2), (128, 3, 2, 0))

# (channels, kernel, stride, padding) of each convolution, of published networks. DCEC (Guo et al.,
# 2017), whose third convolution is padded if the sides are multiples of 8, as those of USPS are;
# DEPICT (Dizaji et al., 2017) by data set, from its published code.
CONV_SHAPES: dict[str, Shape] = {
    "dcec": _DCEC,
    "dcec-usps": (*_DCEC[:2], (128, 3, 2, 1)),
    "depict-mnist": ((50, 4, 2, 0), (50, 5, 2, 2)),
    "depict-usps": ((50, 4, 2, 0), (50, 5, 2, 2)),
    "depict-frgc": ((50, 4, 2, 2), (50, 5, 2, 2)),
    "depict-cmu-pie": ((50, 4, 2, 2), (50, 5, 2, 2)),
    "depict-ytf": ((50, 5, 2, 2), (50, 4, 2, 0)),
}


class ConvAutoencoder(LayeredAutoencoder):
    """A convolutional autoencoder of flat rows.

    Rows become images, pass the convolutions, and a fully connected layer makes the code; the
    decoder is the mirror image, with transposed convolutions that undo each convolution's size
    exactly, whatever the height and width.

    Args:
        image_shape: (H, W) or (H, W, C): rows are such images, flattened channels last.
        code_width: Width of the code.
        layers: (channels, kernel, stride, padding) of each convolution, or the name of a published
            shape, a key of `CONV_SHAPES`.
        activation: As in `MLPAutoencoder`, as are the next two.
        code: Of the code.
        output: Of the reconstruction.
        init_std: As in `MLPAutoencoder`.

    Attributes:
        shapes: (C, H, W) of the image and of the output of each convolution.

    Raises:
        ValueError: If a parameter is none of the above, or what reaches a convolution is smaller
            than its kernel.

    Example:
        >>> import torch
        >>> network = ConvAutoencoder((28, 28), 10, layers="depict-mnist")
        >>> network.shapes
        [(1, 28, 28), (50, 13, 13), (50, 7, 7)]
        >>> z, output = network(torch.zeros(5, 784))
        >>> z.shape, output.shape
        (torch.Size([5, 10]), torch.Size([5, 784]))
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        code_width: int,
        *,
        layers: str | Sequence[Sequence[int]] = "dcec",
        activation: str = "relu",
        code: str = "linear",
        output: str = "linear",
        init_std: float | str | None = None,
    ) -> None:
        size = image_size(image_shape)
        if code_width < 1:
            raise ValueError(f"code_width: got {code_width}; it takes an integer of at least 1")
        shapes = [(size[2], size[0], size[1])]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for number, (channels, kernel, stride, padding) in enumerate(_checked(layers)):
            below, *sides = shapes[-1]
            if min(sides) + 2 * padding < kernel:
                raise ValueError(
                    f"layers[{number}]: got images of {sides[0]} x {sides[1]}; a kernel of {kernel}"
                    f" with padding {padding} takes sides of at least {kernel - 2 * padding}"
                )
            # What the stride leaves of a side, the transposed convolution has to add again.
            left = [(side + 2 * padding - kernel) % stride for side in sides]
            after = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
            shapes.append((channels, after[0], after[1]))
            down.append(nn.Conv2d(below, channels, kernel, stride, padding))
            up.append(
                nn.ConvTranspose2d(
                    channels, below, kernel, stride, padding, output_padding=(left[0], left[1])
                )
            )
        widths = [*map(math.prod, shapes), code_width]
        super().__init__(
            widths,
            [*down, nn.Linear(widths[-2], code_width)],
            [nn.Linear(code_width, widths[-2]), *up[::-1]],
            activation=activation,
            code=code,
            output=output,
            init_std=init_std,
        )
        self.image_size, self.shapes = size, shapes

    def encode_layer(self, layer: int, h: Tensor) -> Tensor:
        """What encoder layer `layer`, from 0, makes of the output h of the one below (0: rows)."""
        if layer == 0:
            h = to_images(h, self.image_size)
        if layer == self.n_layers - 1:
            h = to_rows(h)
        return super().encode_layer(layer, h)

    def decode_layer(self, layer: int, h: Tensor) -> Tensor:
        """What the mirror of encoder layer `layer` makes of h: as the input of that layer."""
        h = super().decode_layer(layer, h)
        if layer == self.n_layers - 1:
            channels, *sides = self.shapes[-1]
            h = to_images(h, (sides[0], sides[1], channels))
        return to_rows(h) if layer == 0 else h


def _checked(layers: str | Sequence[Sequence[int]]) -> Shape:
    """The convolutions' (channels, kernel, stride, padding)."""
    if isinstance(layers, str):
        if layers not in CONV_SHAPES:
            raise ValueError(f"layers: got {layers!r}; it takes one of {', '.join(CONV_SHAPES)}")
        return CONV_SHAPES[layers]
    least = (1, 1, 1, 0)
    try:
        checked = [tuple(map(index, layer)) for layer in layers]
    except TypeError:
        checked = []
    if not checked or not all(len(layer) == 4 and all(map(ge, layer, least)) for layer in checked):
        raise ValueError(
            f"layers: got {layers!r}; it takes one or more (channels, kernel, stride, padding),"
            " integers of at least 1, but 0 for padding"
        )
    return tuple((a, b, c, d) for a, b, c, d in checked)
