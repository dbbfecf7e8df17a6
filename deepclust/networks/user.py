"""Networks that are not ours: a user's own modules, and none at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from deepclust.networks.autoencoder import Autoencoder, evaluating
from deepclust.networks.images import image_size, to_images, to_rows


class UserNetwork(Autoencoder):
    """An encoder of the user's, and a decoder if there is one.

    Both are tried on two rows of zeros, in evaluation mode, when the object is made.

    Args:
        encoder: A module that makes codes (N, D) of rows (N, n_features), or of images
            (N, C, H, W) where image_shape is given.
        decoder: A module that makes such rows, or images, of codes.
        n_features: Width of the rows; with image_shape it can be left out.
        image_shape: (H, W) or (H, W, C): rows are such images, flattened channels last.

    Raises:
        TypeError: If encoder or decoder is no module.
        ValueError: If one of them fails on the two rows or gives anything else than the above, or
            n_features and image_shape do not agree.

    Example:
        >>> import torch
        >>> encoder = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten())
        >>> network = UserNetwork(encoder, image_shape=(8, 8))
        >>> network.n_features, network.code_width, network.has_decoder
        (64, 144, False)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module | None = None,
        *,
        n_features: int | None = None,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        size = None if image_shape is None else image_size(image_shape)
        if size is not None:
            if n_features not in (None, math.prod(size)):
                raise ValueError(
                    f"image_shape: got {size} for rows of {n_features} values; it takes one of"
                    " H W C = n_features"
                )
            n_features = math.prod(size)
        if n_features is None or n_features < 1:
            raise ValueError(f"n_features: got {n_features}; it takes an integer of at least 1")
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(module, nn.Module) and (name == "encoder" or module is not None):
                kind = type(module).__name__
                raise TypeError(f"{name}: got {kind}; it takes a torch.nn.Module")
        super().__init__(n_features, 0)
        self.encoder, self.decoder, self.image_size = encoder, decoder, size
        self.has_decoder = decoder is not None
        with evaluating(self) as like:
            x = self._shaped(like.new_zeros(2, n_features))
            z = _try("encoder", encoder, "rows" if size is None else "images", x, ("N", "D"))
            self.code_width = z.shape[1]
            if decoder is not None:
                _try("decoder", decoder, "codes", z, ("N", *x.shape[1:]))

    def layers(self, x: Tensor) -> list[Tensor]:
        """The code (N, code_width) alone: what is inside the encoder is not known."""
        return [self.encoder(self._shaped(x))]

    def decode(self, z: Tensor) -> Tensor:
        """Reconstructions (N, n_features) of codes z (N, code_width).

        Raises:
            ValueError: If there is no decoder.
        """
        if self.decoder is None:
            return super().decode(z)
        output: Tensor = self.decoder(z)
        return output if self.image_size is None else to_rows(output)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters of the encoder."""
        return list(self.encoder.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The parameters of the decoder, without those that it shares with the encoder."""
        if self.decoder is None:
            return []
        shared = {id(parameter) for parameter in self.encoder.parameters()}
        return [parameter for parameter in self.decoder.parameters() if id(parameter) not in shared]

    def _shaped(self, x: Tensor) -> Tensor:
        """Rows as the encoder takes them."""
        return x if self.image_size is None else to_images(x, self.image_size)


class GivenEmbeddings(Autoencoder):
    """No network: rows are their own codes.

    Args:
        n_features: Width of the rows.

    Example:
        >>> import torch
        >>> x = torch.ones(5, 3)
        >>> GivenEmbeddings(3).encode(x) is x
        True
    """

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features, n_features)

    def layers(self, x: Tensor) -> list[Tensor]:
        """The rows x (N, n_features) themselves."""
        return [x]


def _try(
    name: str, module: nn.Module, what: str, given: Tensor, shape: tuple[int | str, ...]
) -> Tensor:
    """The module's output, if it is a float tensor of this shape, in which letters are any size."""
    of = f"{what} {tuple(given.shape)}"
    try:
        output = module(given)
    except Exception as error:
        raise ValueError(f"{name}: failed for {of}: {type(error).__name__}: {error}") from error
    got = type(output).__name__
    if isinstance(output, Tensor):
        got = f"shape {tuple(output.shape)}"
        if not output.is_floating_point():
            got = f"{output.dtype} of {got}"
        elif len(output.shape) == len(shape) and all(
            isinstance(wanted, str) or size == wanted
            for size, wanted in zip(output.shape, (len(given), *shape[1:]), strict=True)
        ):
            return output
    wanted = ", ".join(map(str, shape))
    raise ValueError(f"{name}: gave {got} for {of}; it takes a module whose output is ({wanted})")
