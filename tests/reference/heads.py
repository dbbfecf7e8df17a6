"""The three heads: the score s_ij of every pair, and its derivative, one formula each.

`pull_back(z, ds)` turns ds_ij = dL/ds_ij into dL/dz and dL/d(parameter): the chain rule as a plain
sum over pairs. Everything is (N, K, D) at once: these are for small sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class StudentT:
    """DEC (Xie et al. 2016), eq. 1: the logarithm of its numerator.

    s_ij = -(nu+1)/2 log(1 + ||z_i - mu_j||^2 / nu)
    """

    centroids: np.ndarray
    nu: float = 1.0
    parameters: tuple[str, ...] = field(default=("centroids",), repr=False)

    def scores(self, z: np.ndarray) -> np.ndarray:
        squared = ((z[:, None, :] - self.centroids[None, :, :]) ** 2).sum(axis=2)
        return -(self.nu + 1.0) / 2.0 * np.log1p(squared / self.nu)

    def pull_back(self, z: np.ndarray, ds: np.ndarray) -> dict[str, np.ndarray]:
        difference = z[:, None, :] - self.centroids[None, :, :]
        squared = (difference**2).sum(axis=2)
        # ds_ij/dz_i = -(nu+1)/nu (z_i - mu_j) / (1 + ||z_i - mu_j||^2 / nu) = -ds_ij/dmu_j
        factor = -(self.nu + 1.0) / self.nu / (1.0 + squared / self.nu)
        pairs = (ds * factor)[:, :, None] * difference
        return {"z": pairs.sum(axis=1), "centroids": -pairs.sum(axis=0)}


@dataclass
class Linear:
    """DEPICT (Dizaji et al. 2017), eq. 1: the exponent of its softmax.

    s_ij = z_i . theta_j + b_j
    """

    weight: np.ndarray
    bias: np.ndarray | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("weight",) if self.bias is None else ("weight", "bias")

    def scores(self, z: np.ndarray) -> np.ndarray:
        products = (z[:, None, :] * self.weight[None, :, :]).sum(axis=2)
        return products if self.bias is None else products + self.bias[None, :]

    def pull_back(self, z: np.ndarray, ds: np.ndarray) -> dict[str, np.ndarray]:
        gradients = {
            "z": (ds[:, :, None] * self.weight[None, :, :]).sum(axis=1),
            "weight": (ds[:, :, None] * z[:, None, :]).sum(axis=0),
        }
        if self.bias is not None:
            gradients["bias"] = ds.sum(axis=0)
        return gradients


@dataclass
class Gaussian:
    """VaDE (Jiang et al. 2017), p(c) p(z|c) under its logarithm, diagonal covariance.

    s_ij = log w_j - 1/2 sum_d [log(2 pi) + v_jd + (z_id - mu_jd)^2 exp(-v_jd)],   v = log variance
    """

    means: np.ndarray
    log_var: np.ndarray
    log_weights: np.ndarray
    parameters: tuple[str, ...] = field(default=("means", "log_var", "log_weights"), repr=False)

    def scores(self, z: np.ndarray) -> np.ndarray:
        difference = z[:, None, :] - self.means[None, :, :]
        log_var = self.log_var[None, :, :]
        terms = np.log(2.0 * np.pi) + log_var + difference**2 * np.exp(-log_var)
        return self.log_weights[None, :] - 0.5 * terms.sum(axis=2)

    def pull_back(self, z: np.ndarray, ds: np.ndarray) -> dict[str, np.ndarray]:
        difference = z[:, None, :] - self.means[None, :, :]
        precision = np.exp(-self.log_var)[None, :, :]
        # ds_ij/dz_id = -(z_id - mu_jd) / var_jd;  ds_ij/dv_jd = ((z_id - mu_jd)^2 / var_jd - 1) / 2
        pairs = -ds[:, :, None] * difference * precision
        log_var = ds[:, :, None] * 0.5 * (difference**2 * precision - 1.0)
        return {
            "z": pairs.sum(axis=1),
            "means": -pairs.sum(axis=0),
            "log_var": log_var.sum(axis=0),
            "log_weights": ds.sum(axis=0),
        }


Head = StudentT | Linear | Gaussian
