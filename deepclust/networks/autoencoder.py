"""What every network promises to the training methods, and the features that are clustered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import index
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

# In place: no derivative needs what a layer gave before its activation.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda h: h,
    "relu": torch.relu_,
    "leaky_relu": partial(nn.functional.leaky_relu, inplace=True),
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
}


class Autoencoder(nn.Module, ABC):
    """Rows to codes and, where there is a decoder, back.

    Rows are flat, float, of any meaning; images are flattened channels last.

    Attributes:
        n_features: Width of the rows.
        code_width: Width of the code.
        has_decoder: Whether `decode` works.

    Example:
        >>> import torch
        >>> class Halves(Autoencoder):
        ...     def layers(self, x):
        ...         return [x / 2]
        >>> Halves(3, 3).encode(torch.ones(1, 3))
        tensor([[0.5000, 0.5000, 0.5000]])
    """

    has_decoder = False

    def __init__(self, n_features: int, code_width: int) -> None:
        super().__init__()
        self.n_features, self.code_width = n_features, code_width

    @abstractmethod
    def layers(self, x: Tensor) -> list[Tensor]:
        """The outputs of the encoder's layers for rows x (N, n_features), after their activations.

        Hidden layers are (N, width), or (N, C, H, W) where they are convolutions; the last is the
        code (N, code_width).
        """

    def encode(self, x: Tensor) -> Tensor:
        """Codes z (N, code_width) of rows x (N, n_features)."""
        return self.layers(x)[-1]

    def decode(self, z: Tensor) -> Tensor:
        """Reconstructions (N, n_features) of codes z (N, code_width).

        Raises:
            ValueError: If there is no decoder.
        """
        raise ValueError(
            f"decoder: {type(self).__name__} has none; rows are reconstructed by a network with one"
        )

    def denoise(self, x: Tensor, corruption: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
        """The code of corrupted rows, and what it is decoded to.

        Args:
            x: Rows (N, n_features).
            corruption: The share of values that dropout sets to zero in the rows, and then in what
                each further layer sees, where there are such layers.

        Returns:
            z~ (N, code_width), and the reconstructions of the rows and of the output of each
            further layer: none without a decoder, and one if its layers are not ours to see.
        """
        z = self.encode(dropout(x, corruption[0]))
        return z, [self.decode(z)] if self.has_decoder else []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (N, code_width) and reconstructions (N, n_features)."""
        z = self.encode(x)
        return z, self.decode(z)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that codes depend on."""
        return []

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that only reconstructions depend on."""
        return []


class LayeredAutoencoder(Autoencoder):
    """An encoder of layers, and a decoder that is its mirror image, layer by layer.

    Layer l, from 0, maps h_l to h_(l+1), from rows h_0 to the code; its mirror maps back:

        h_(l+1) = g_l(W_l h_l + b_l);    h'_l = g'_l(W'_l h'_(l+1) + b'_l)

    with the code's activation for g of the last layer, the output's for g' of the first, and
    `activation` for all others.

    Args:
        widths: The number of values in a row, in each hidden layer's output, and in the code.
        encoder: The layers in order.
        decoder: Their mirror images, that of the last layer first.
        activation: "relu", "leaky_relu" (slope 0.01), "sigmoid" or "tanh".
        code: "linear", "sigmoid" or "tanh".
        output: "linear", "sigmoid" or "tanh".
        init_std: Weights are drawn from N(0, init_std^2), or, if "glorot", uniformly within
            sqrt(6 / (fan-in + fan-out)) (Glorot and Bengio, 2010), and biases start at 0; by
            default both follow PyTorch's own rule, uniform within 1/sqrt(fan-in).

    Raises:
        ValueError: If a parameter is none of those above.

    Example:
        >>> import torch
        >>> from deepclust.networks import MLPAutoencoder
        >>> network = MLPAutoencoder((64, 32, 10))  # such a network
        >>> h = network.encode_layer(0, torch.zeros(5, 64))
        >>> h.shape, network.decode_layer(0, h).shape
        (torch.Size([5, 32]), torch.Size([5, 64]))
    """

    has_decoder = True

    def __init__(
        self,
        widths: Sequence[int],
        encoder: Sequence[nn.Module],
        decoder: Sequence[nn.Module],
        *,
        activation: str,
        code: str,
        output: str,
        init_std: float | str | None,
    ) -> None:
        super().__init__(widths[0], widths[-1])
        if isinstance(init_std, str) and init_std != "glorot":
            raise ValueError(f"init_std: got {init_std!r}; it takes a number, 'glorot' or None")
        for name, value, taken in (
            ("activation", activation, ("relu", "leaky_relu", "sigmoid", "tanh")),
            ("code", code, ("linear", "sigmoid", "tanh")),
            ("output", output, ("linear", "sigmoid", "tanh")),
        ):
            if value not in taken:
                raise ValueError(f"{name}: got {value!r}; it takes one of {', '.join(taken)}")
        self.widths = tuple(widths)
        self.activation, self.code, self.output = activation, code, output
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.init_std = init_std
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights that `init_std` is for; else they are as each layer draws its own."""
        if self.init_std is None:
            return
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                if isinstance(self.init_std, str):
                    nn.init.xavier_uniform_(layer.weight)
                else:
                    nn.init.normal_(layer.weight, std=self.init_std)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    @property
    def n_layers(self) -> int:
        """Layers of the encoder."""
        return len(self.encoder)

    def encode_layer(self, layer: int, h: Tensor) -> Tensor:
        """What encoder layer `layer`, from 0, makes of the output h of the one below (0: rows)."""
        g = self.code if layer == self.n_layers - 1 else self.activation
        return ACTIVATIONS[g](self.encoder[layer](h))

    def decode_layer(self, layer: int, h: Tensor) -> Tensor:
        """What the mirror of encoder layer `layer` makes of h: as the input of that layer."""
        g = self.output if layer == 0 else self.activation
        return ACTIVATIONS[g](self.decoder[self.n_layers - 1 - layer](h))

    def layers(self, x: Tensor) -> list[Tensor]:
        """The outputs of the encoder's layers for rows x (N, n_features), the code last."""
        outputs = []
        for layer in range(self.n_layers):
            x = self.encode_layer(layer, x)
            outputs.append(x)
        return outputs

    def encode(self, x: Tensor) -> Tensor:
        """Codes z (N, code_width) of rows x (N, n_features)."""
        # Unlike layers(x), this keeps no layer longer than it is needed.
        for layer in range(self.n_layers):
            x = self.encode_layer(layer, x)
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Reconstructions (N, n_features) of codes z (N, code_width)."""
        for layer in reversed(range(self.n_layers)):
            z = self.decode_layer(layer, z)
        return z

    def denoise(self, x: Tensor, corruption: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
        """The code of corrupted rows, and what each layer is decoded to.

        z~^l = g(W^l dropout(z~^(l-1))) upwards, then z^^(l-1) = g(W'^l z^^l) downwards from the
        code (eqs. 9 and 10 of Dizaji et al., 2017).

        Args:
            x: Rows (N, n_features).
            corruption: The share of values that dropout sets to zero in what each layer sees, the
                rows first.

        Returns:
            z~^L (N, code_width), and z^^0, ..., z^^(L-1), each as the input of its layer is.

        Raises:
            ValueError: If there is not one share for each layer.
        """
        if len(corruption) != self.n_layers:
            raise ValueError(
                f"corruption: got {len(corruption)} shares; it takes one for each of the"
                f" {self.n_layers} layers of the encoder"
            )
        for layer, share in enumerate(corruption):
            x = self.encode_layer(layer, dropout(x, share))
        code, outputs = x, []
        for layer in reversed(range(self.n_layers)):
            x = self.decode_layer(layer, x)
            outputs.append(x)
        return code, outputs[::-1]

    def denoise_layer(self, layer: int, x: Tensor, corruption: float) -> tuple[Tensor, Tensor]:
        """What one layer makes of its dropped-out input, and the clean input h that it should be.

        Layer l and its mirror as a denoising autoencoder of two layers, which sees the clean output
        h of the layers below (section 3.2 of Xie et al., 2016, eqs. 6 to 9):

            x~ = dropout(h);   h' = g1(W1 x~ + b1);   h~ = dropout(h');   y = g2(W2 h~ + b2)

        and is trained to make y equal h. g1 is the activation that made h', and g2 the one that
        made h.

        Args:
            layer: The number of the layer, from 0.
            x: Rows (N, n_features) of the data.
            corruption: The share of values that dropout sets to zero, before and after the layer.
        """
        h = x
        with torch.no_grad():
            for below in range(layer):
                h = self.encode_layer(below, h)
        code = self.encode_layer(layer, dropout(h, corruption))
        return self.decode_layer(layer, dropout(code, corruption)), h

    def layer_parameters(self, layer: int) -> list[nn.Parameter]:
        """The parameters of encoder layer `layer`, from 0, and of its mirror in the decoder."""
        mirror = self.decoder[self.n_layers - 1 - layer]
        return [*self.encoder[layer].parameters(), *mirror.parameters()]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that codes depend on."""
        return list(self.encoder.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that only reconstructions depend on."""
        return list(self.decoder.parameters())


def redraw(network: nn.Module) -> None:
    """Draw all weights again, by the `reset_parameters` of each layer and then of what holds it."""

    def draw(module: nn.Module) -> None:
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()

    network.apply(draw)


def features(layers: Sequence[Tensor], which: Literal["last"] | Sequence[int] = "last") -> Tensor:
    """The features that are clustered: the code, or several layers side by side.

    Convolutional layers (N, C, H, W) are averaged over their positions first, to (N, C).

    Args:
        layers: What `Autoencoder.layers` gives.
        which: "last" for the code, or numbers of layers from 0; negative ones count from the end.

    Returns:
        Features (N, D), the layers in the order of their numbers in `which`.

    Raises:
        ValueError: If `which` is empty, or names a layer that there is not.

    Example:
        >>> import torch
        >>> hidden, code = torch.ones(5, 8, 4, 4), torch.zeros(5, 2)
        >>> features([hidden, code]).shape, features([hidden, code], (0, -1)).shape
        (torch.Size([5, 2]), torch.Size([5, 10]))
    """
    n = len(layers)
    try:
        numbers = [n - 1] if isinstance(which, str) and which == "last" else [*map(index, which)]
    except TypeError:
        numbers = []
    if not numbers or not all(-n <= number < n for number in numbers):
        raise ValueError(
            f"features: got {which!r}; it takes 'last' or numbers of layers from {-n} to {n - 1}"
        )
    chosen = [layers[number] for number in numbers]
    pooled = [h.mean((2, 3)) if h.ndim == 4 else h for h in chosen]
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, 1)


def features_width(network: Autoencoder, which: Literal["last"] | Sequence[int] = "last") -> int:
    """The width D of `features(network.layers(x), which)`.

    Args:
        network: The network, which sees one row of zeros.
        which: As in `features`.

    Raises:
        ValueError: As `features`.

    Example:
        >>> from deepclust.networks import MLPAutoencoder
        >>> features_width(MLPAutoencoder((64, 32, 10)), (0, 1))
        42
    """
    with evaluating(network) as like:
        return features(network.layers(like.new_zeros(1, network.n_features)), which).shape[1]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[Tensor]:
    """In evaluation mode and without gradients; afterwards each module is in the mode it was in.

    Gives an empty tensor of the type, and on the device, that the network takes.
    """
    modes = [(module, module.training) for module in network.modules()]
    like = next(network.parameters(), torch.empty(0))
    network.eval()
    try:
        with torch.no_grad():
            # Not `like` itself: a lazy module's parameters have no more than a type and a device.
            yield torch.empty(0, dtype=like.dtype, device=like.device)
    finally:
        for module, mode in modes:
            module.training = mode
