"""The variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepclust.networks.mlp import MLPAutoencoder


class VariationalAutoencoder(MLPAutoencoder):
    """A fully connected autoencoder whose code is a Gaussian, diag(exp(log_var)) its covariance.

    q(z | x) = N(mean(x), diag(exp(log_var(x)))), mean and log_var linear in the last hidden layer,
    from which z = mean + exp(log_var / 2) * noise, noise ~ N(0, I), is drawn (section 3 of Kingma
    and Welling, 2014). VaDE (Jiang et al., 2017) clusters such codes, with hidden layers of 500,
    500 and 2000.

    Its code, in `layers`, `encode` and `forward`, is the mean: so it is also a plain autoencoder,
    and can be trained as one first.

    Args:
        sizes: As in `MLPAutoencoder`; with two sizes, mean and log_var are linear in the rows.
        activation: As in `MLPAutoencoder`.
        code: Of the mean.
        output: As in `MLPAutoencoder`.
        init_std: As in `MLPAutoencoder`.

    Attributes:
        log_var: The layer beside the encoder's last.

    Example:
        >>> import torch
        >>> network = VariationalAutoencoder((64, 32, 10))
        >>> mean, log_var = network.posterior(torch.zeros(5, 64))
        >>> network.decode(network.sample(mean, log_var)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "relu",
        code: str = "linear",
        output: str = "linear",
        init_std: float | str | None = None,
    ) -> None:
        super().__init__(sizes, activation=activation, code=code, output=output, init_std=init_std)
        self.log_var = nn.Linear(self.widths[-2], self.widths[-1])
        self.reset_parameters()

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (N, d_m) of q(z | x) for rows x (N, d_0)."""
        last = self.n_layers - 1
        for layer in range(last):
            x = self.encode_layer(layer, x)
        return self.encode_layer(last, x), self.log_var(x)

    def start_variances(self, log_var: Tensor) -> None:
        """Give all rows the log-variance (d_m,), from which training goes on."""
        with torch.no_grad():
            self.log_var.weight.zero_()
            self.log_var.bias.copy_(log_var)

    def sample(self, mean: Tensor, log_var: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes z = mean + exp(log_var / 2) * noise.

        Args:
            mean: (N, d_m).
            log_var: (N, d_m).
            noise: (N, d_m); by default drawn from N(0, I) by torch's global generator.
        """
        if noise is None:
            noise = torch.randn_like(mean)
        return mean + (log_var / 2).exp() * noise

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that codes depend on, those of log_var among them."""
        return [*super().encoder_parameters(), *self.log_var.parameters()]
