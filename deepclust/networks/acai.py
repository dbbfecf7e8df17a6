"""The convolutional autoencoder of ACAI."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import pad

from deepclust.networks.autoencoder import Autoencoder
from deepclust.networks.images import image_size, to_images, to_rows

# Channels of the first convolutions, in the published runs: of digits, and of colour images.
ACAI_WIDTHS = {"acai": 16, "acai-64": 64}

SCALES = 3
SLOPE = 0.2


class ACAIAutoencoder(Autoencoder):
    """The convolutional autoencoder of ACAI (Berthelot et al., 2018, and their code).

    A 1 x 1 convolution, then three scales s = 0, 1, 2 of two 3 x 3 convolutions to `width` 2^s
    channels and an average over 2 x 2 positions; two more 3 x 3 convolutions make the code of it,
    which keeps its positions. Back go two 3 x 3 convolutions and a doubling of each side by scale,
    and two more to the image. Leaky ReLUs of slope 0.2; the code and the image are linear.

    Images get a frame of zeros up to sides that are multiples of 8, which the output loses again:
    28 x 28 become 32 x 32, as in the published code.

    Args:
        image_shape: (H, W) or (H, W, C): rows are such images, flattened channels last.
        code_width: Width of the code: a multiple of its positions, of which 32 x 32 images have 4 x
            4.
        width: Channels of the first convolutions; 16 in the published runs of digits, 64 in those
            of colour images.

    Attributes:
        code_shape: (C, H, W) of the code.

    Raises:
        ValueError: If a parameter is none of the above.

    Example:
        >>> import torch
        >>> network = ACAIAutoencoder((28, 28), 32)
        >>> network.code_shape
        (2, 4, 4)
        >>> z, output = network(torch.zeros(5, 784))
        >>> z.shape, output.shape
        (torch.Size([5, 32]), torch.Size([5, 784]))
    """

    has_decoder = True

    def __init__(self, image_shape: Sequence[int], code_width: int, *, width: int = 16) -> None:
        size = image_size(image_shape)
        step = 2**SCALES
        sides = [-(-side // step) for side in size[:2]]
        channels, left = divmod(code_width, sides[0] * sides[1])
        if channels < 1 or left:
            raise ValueError(
                f"code_width: got {code_width}; images of {size[0]} x {size[1]} take a multiple of"
                f" {sides[0] * sides[1]}, the {sides[0]} x {sides[1]} positions of the code"
            )
        if width < 1:
            raise ValueError(f"width: got {width}; it takes an integer of at least 1")
        super().__init__(size[0] * size[1] * size[2], code_width)
        self.image_size, self.width = size, width
        self.code_shape = (channels, sides[0], sides[1])
        # Left, right, above and below, as torch's pad takes them.
        across, down = step * sides[1] - size[1], step * sides[0] - size[0]
        self.frame = (across // 2, across - across // 2, down // 2, down - down // 2)
        widths = [width << scale for scale in range(SCALES + 1)]
        scales = [
            nn.Sequential(*_two(below, wide), nn.AvgPool2d(2))
            for below, wide in zip([width, *widths], widths[:-1], strict=False)
        ]
        scales[0].insert(0, nn.Conv2d(size[2], width, 1))
        code = nn.Sequential(*_two(widths[-2], widths[-1], channels)[:-1])
        self.encoder = nn.ModuleList([*scales, code])
        up: list[nn.Module] = []
        for below, wide in zip([channels, *widths[-2:0:-1]], widths[-2::-1], strict=True):
            up += [*_two(below, wide), nn.Upsample(scale_factor=2)]
        self.decoder = nn.Sequential(*up, *_two(width, width, size[2])[:-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, 1 / (1.04 fan-in)) and no biases, as the published code draws them."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                fan_in = layer.weight[0].numel()
                nn.init.normal_(layer.weight, std=((1 + SLOPE**2) * fan_in) ** -0.5)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def layers(self, x: Tensor) -> list[Tensor]:
        """What leaves each scale, (N, C, H, W), and the code (N, code_width)."""
        h = pad(to_images(x, self.image_size), self.frame)
        outputs = []
        for scale in self.encoder:
            h = scale(h)
            outputs.append(h)
        return [*outputs[:-1], to_rows(h)]

    def decode(self, z: Tensor) -> Tensor:
        """Reconstructions (N, n_features) of codes z (N, code_width)."""
        channels, *sides = self.code_shape
        framed = self.decoder(to_images(z, (sides[0], sides[1], channels)))
        return to_rows(pad(framed, [-side for side in self.frame]))

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that codes depend on."""
        return list(self.encoder.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that only reconstructions depend on."""
        return list(self.decoder.parameters())


def _two(below: int, first: int, second: int | None = None) -> list[nn.Module]:
    """Two 3 x 3 convolutions that keep the sides, each with its activation."""
    two: list[nn.Module] = []
    for before, after in ((below, first), (first, second or first)):
        # In place: no derivative needs what a layer gave before its activation.
        two += [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
    return two
