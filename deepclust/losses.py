"""Losses beside the clustering loss, and the schedules that weigh them.

Every loss is a function of tensors that has no dimensions, is computed in float32 or wider whatever
the types that come in, reads nothing back to the host, and is 0 for no rows. Letters: n rows of a
batch, K clusters, D width; `z` (n, D) embeddings, `q` (n, K) soft assignment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid

from deepclust import functional as F
from deepclust.kernels import _checks
from deepclust.kernels._blocks import full_precision
from deepclust.kernels.heads import as_head, check_inputs, origin_of

# The weight of a loss: a constant, or a function of the number of updates done in the stage.
Schedule = float | Callable[[int], float]


def reconstruction(output: Tensor, x: Tensor) -> Tensor:
    """Squared error of a reconstruction.

    1/N sum_i ||x_i - x^_i||^2 / D: the least squares of the autoencoders (section 3.2 of Xie et
    al., 2016), divided by the width so that its size does not depend on it.

    Args:
        output: Reconstructions (n, D).
        x: What they should be (n, D).

    Returns:
        The mean over all elements.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> reconstruction(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor(5.)
    """
    _check_shape("output", output, "x", x)
    # Under autocast both may be of a half type, in which squares and their mean would be rounded.
    output, x = _wide(output, x)
    return _mean((output - x).square())


def layer_reconstruction(
    outputs: Sequence[Tensor], clean: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """Squared errors of an autoencoder's layers, each divided by the size of the layer.

    sum_l w_l 1/N sum_i ||z_i^l - z^_i^l||^2 / |z_i^l|, l from 0, the rows themselves: the second
    term of eq. 11 of Dizaji et al. (2017), where all weights are 1.

    Args:
        outputs: z^^0, z^^1, ... (n, ...), what the decoder makes of the code at each layer.
        clean: z^0, z^1, ..., what the encoder gives there, of the same shapes.
        weights: w_l, by default 1.

    Returns:
        The weighted sum of the means over all elements; 0 for no layers.

    Raises:
        ValueError: If the numbers of layers or the shapes of one differ.

    Example:
        >>> import torch
        >>> zero, one = torch.zeros(1, 4), torch.ones(1, 4)
        >>> layer_reconstruction([zero, zero], [one, 2 * one], [1, 0.1])
        tensor(1.4000)
    """
    weights = [1.0] * len(outputs) if weights is None else weights
    if not len(outputs) == len(clean) == len(weights):
        raise ValueError(
            f"outputs: got {len(outputs)} layers, with {len(clean)} of clean and {len(weights)}"
            " weights; it takes as many of each"
        )
    terms = [
        weight * reconstruction(output, z)
        for output, z, weight in zip(outputs, clean, weights, strict=True)
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def binary_reconstruction(logits: Tensor, x: Tensor) -> Tensor:
    """Bernoulli negative log likelihood of a reconstruction.

    -1/N sum_i 1/D sum_d [x_id log m_id + (1 - x_id) log(1 - m_id)], m = sigmoid(logits): what VaDE
    (Jiang et al., 2017) and the published code of ABC (Song et al., 2013) take for pixels. Both add
    up the D elements of a row, which is a weight of D here.

    Args:
        logits: The decoder's output (n, D), before the sigmoid.
        x: Rows (n, D) with values from 0 to 1.

    Returns:
        The mean over all elements, in nats.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> binary_reconstruction(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor(0.6931)
    """
    _check_shape("logits", logits, "x", x)
    logits, x = _wide(logits, x)
    return binary_cross_entropy_with_logits(logits, x, reduction="sum") / max(x.numel(), 1)


def balance(shares: Tensor, prior: Tensor | None = None) -> Tensor:
    """How far the sizes of the clusters are from those that one expects.

    L_ba = KL(G || U) = sum_k g_k log(g_k / u_k), g_k = P(y = k) the mean of q_ik over the rows: the
    balanced assignments loss in the taxonomy of Aljalbout et al. (2018). A cluster with g_k = 0
    adds 0, with a finite gradient.

    Args:
        shares: g (K,), the mean of q over a batch, or a running mean.
        prior: u (K,), the expected shares, by default 1/K each; `size_prior` makes them and
            `by_rank` gives them to clusters. u_k = 0 counts as the smallest normal number: a
            cluster that should be empty costs much, but not infinitely much.

    Returns:
        The divergence, in nats.

    Raises:
        ValueError: If shapes or devices do not fit.
        TypeError: If one is not a floating-point tensor.

    Example:
        >>> import torch
        >>> q = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> balance(q.mean(0))
        tensor(0.)
        >>> balance(q.mean(0), torch.tensor([0.8, 0.2]))
        tensor(0.2231)
    """
    _check_line("shares", shares)
    (shares,) = _wide(shares)
    tiny = torch.finfo(shares.dtype).tiny
    if prior is None:
        ratio = shares * len(shares)
    else:
        _checks.check_vector("prior", prior, len(shares))
        _checks.check_same_device(shares=shares, prior=prior)
        # In the shares' type: a prior of float64 must not make the whole loss so.
        ratio = shares / prior.to(shares.dtype).clamp_min(tiny)
    return (shares * ratio.clamp_min(tiny).log()).sum()


@dataclass(frozen=True)
class zipf:  # noqa: N801 - called as a function is, and printed as it was called
    """Zipf's law for the sizes of clusters: the second is 1/2^s of the first, the third 1/3^s.

    f(k; s, N) = (1 / k^s) / sum_{n=1..N} (1 / n^s), k the rank.

    Args:
        s: The exponent, at least 0, which makes all alike.

    Raises:
        ValueError: If s is not a finite number of at least 0.

    Example:
        >>> zipf(s=1.0).shares(2)
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    s: float = 1.0

    def __post_init__(self) -> None:
        if not (_checks.is_number(self.s) and 0 <= self.s < math.inf):
            raise ValueError(f"s: got {self.s!r}; it takes a finite number of at least 0")

    def shares(self, n_clusters: int) -> Tensor:
        """f (n_clusters,), from the largest to the smallest, in float64."""
        weights = torch.arange(1, n_clusters + 1, dtype=torch.float64) ** -float(self.s)
        return weights / weights.sum()


def size_prior(
    prior: str | zipf | Sequence[float] | np.ndarray[Any, Any] | Tensor, n_clusters: int
) -> Tensor:
    """The expected shares of K clusters by rank, from whichever way they were stated.

    Args:
        prior: "uniform", `zipf(s)`, or the shares themselves (K,) in any order, which sum to 1
            within 0.001 and are made to do so to the last digit.
        n_clusters: K.

    Returns:
        The shares (K,) in float64 on the CPU, the largest first.

    Raises:
        ValueError: If n_clusters is below 1, or prior is none of these, does not have K shares, one
            is negative or not finite, or their sum is not 1.

    Example:
        >>> size_prior([0.25, 0.75], 2)
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    if n_clusters < 1:
        raise ValueError(f"n_clusters: got {n_clusters}; it takes an integer of at least 1")
    if isinstance(prior, str) and prior == "uniform":
        return torch.full((n_clusters,), 1 / n_clusters, dtype=torch.float64)
    if isinstance(prior, zipf):
        return prior.shares(n_clusters)
    try:
        values = prior.detach().cpu() if isinstance(prior, Tensor) else np.array(prior, float)
    except (TypeError, ValueError):
        values = np.array(math.nan)
    if values.ndim != 1:
        raise ValueError(
            f"prior: got {prior!r}; it takes 'uniform', zipf(s) or {n_clusters} shares"
        )
    if len(values) != n_clusters:
        raise ValueError(f"prior: got {len(values)} shares for n_clusters={n_clusters}")
    shares = torch.as_tensor(values, dtype=torch.float64)
    if not bool((shares.isfinite() & (shares >= 0)).all()):
        raise ValueError(f"prior: got {shares.tolist()}; it takes finite shares of at least 0")
    total = float(shares.sum())
    if abs(total - 1) > 1e-3:
        raise ValueError(f"prior: got a sum of {total:.6g}; it takes shares that sum to 1")
    return shares.sort(descending=True).values / total


def by_rank(prior: Tensor, sizes: Tensor) -> Tensor:
    """Give the largest cluster the largest share, the second largest the second, and so on.

    A prior states how large clusters are, not which one is the largest: that the present sizes say.

    Args:
        prior: Shares (K,).
        sizes: The clusters' sizes (K,), in any unit; of equal ones the first is the larger.

    Returns:
        The shares (K,) in the order of the clusters, in the type of prior.

    Raises:
        ValueError: If shapes or devices do not fit.
        TypeError: If one is not a floating-point tensor.

    Example:
        >>> import torch
        >>> by_rank(size_prior(zipf(), 3), torch.tensor([1.0, 20.0, 3.0]))
        tensor([0.1818, 0.5455, 0.2727], dtype=torch.float64)
    """
    _check_line("prior", prior)
    _checks.check_vector("sizes", sizes, len(prior))
    _checks.check_same_device(prior=prior, sizes=sizes)
    ranked = sizes.sort(descending=True, stable=True).indices
    return torch.empty_like(prior).scatter(0, ranked, prior.sort(descending=True).values)


def locality(z: Tensor, neighbours: Tensor, similarity: Tensor | None = None) -> Tensor:
    """Keep embeddings of neighbours together.

    L_lp = 1/n sum_i sum_{j in N_k(i)} s(x_i, x_j) ||z_i - z_j||^2, the locality-preserving loss in
    the taxonomy of Aljalbout et al. (2018), as a mean over the rows; N_k(i) are the neighbours of
    x_i in the data, found before.

    Args:
        z: Embeddings (n, D).
        neighbours: The embeddings (n, m, D) of each row's m neighbours, which get gradients too.
        similarity: s (n, m), by default 1.

    Returns:
        The mean over the n rows.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If z is not a floating-point tensor.

    Example:
        >>> import torch
        >>> locality(torch.zeros(1, 2), torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
        tensor(5.)
    """
    _checks.check_matrix("z", z)
    n, d = z.shape
    if neighbours.ndim != 3 or neighbours.shape[::2] != (n, d):
        raise ValueError(
            f"neighbours: got shape {tuple(neighbours.shape)}; it takes ({n}, m, {d}) for z"
            f" {tuple(z.shape)}"
        )
    z, neighbours = _wide(z, neighbours)
    squared = (z.unsqueeze(1) - neighbours).square().sum(2)
    if similarity is not None:
        if similarity.shape != squared.shape:
            raise ValueError(
                f"similarity: got shape {tuple(similarity.shape)}; it takes {tuple(squared.shape)}"
            )
        squared = squared * similarity.to(squared.dtype)
    return _mean(squared.sum(1))


def self_augmentation(z: Tensor, view: Tensor, similarity: str = "cosine") -> Tensor:
    """Make the embedding of a row and that of another view of it alike.

    L = -1/n sum_i s(f(x_i), f(T(x_i))), T an augmentation, after Hu et al. (2017), who hold f(x)
    fixed: `z.detach()` does that.

    Args:
        z: Embeddings (n, D) of the rows.
        view: Embeddings (n, D) of their views.
        similarity: s. "cosine": the cosine of the angle between the two; a row of zeros, which has
            no angle, counts as one of length 1 whose cosine is 0. "squared": -||z_i - view_i||^2.

    Returns:
        The mean over the n rows.

    Raises:
        ValueError: If the shapes differ, or there is no such similarity.
        TypeError: If z is not a floating-point tensor.

    Example:
        >>> import torch
        >>> z, view = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> self_augmentation(z, view), self_augmentation(z, view, "squared")
        (tensor(-0.6000), tensor(20.))
    """
    _checks.check_matrix("z", z)
    _check_shape("view", view, "z", z)
    z, view = _wide(z, view)
    if similarity == "squared":
        return _mean((z - view).square().sum(1))
    if similarity != "cosine":
        raise ValueError(f"similarity: got {similarity!r}; it takes 'cosine' or 'squared'")
    return -_mean((_directions(z) * _directions(view)).sum(1))


def soft_kmeans(z: Tensor, head: F.StudentT | Tensor, **options: Any) -> Tensor:
    """The k-means loss with soft assignments in place of hard ones.

    L = 1/n sum_i sum_k q_ik ||z_i - mu_k||^2, q the Student-t assignment (eq. 1 of Xie et al.,
    2016). Gradients go through the distances and through q.

    Args:
        z: Embeddings (n, D).
        head: StudentT, or a tensor of centroids (K, D), for which nu is 1.
        **options: `backend`, `precision` and `check`, as in `functional.assign`.

    Returns:
        The mean over the n rows.

    Raises:
        ValueError: If shapes, devices or values do not fit.
        TypeError: If types do not fit, or head is of another kind.

    Example:
        >>> import torch
        >>> soft_kmeans(torch.tensor([[0.0]]), torch.tensor([[0.0], [1.0]]))
        tensor(0.3333)
    """
    student = as_head(head)
    if not isinstance(student, F.StudentT):
        raise TypeError(
            f"head: got {type(student).__name__}; it takes StudentT or a tensor of centroids (K, D)"
        )
    check_inputs(z, student)
    z, centroids = _wide(z, student.centroids)
    q = F.assign(z, F.StudentT(centroids, student.nu), **options)
    with full_precision(z):
        origin = origin_of(centroids)
        z, mu = z - origin, centroids - origin
        # Not clamped at 0: that would take the gradient of points that lie on a centroid.
        squared = z.square().sum(1, keepdim=True) + mu.square().sum(1) - 2 * z @ mu.T
    return _mean((q * squared).sum(1))


def interpolation(z: Tensor, alpha: Tensor) -> Tensor:
    """Codes between pairs of rows, the first row with the last, the second with the last but one.

    alpha_i z_i + (1 - alpha_i) z_(n+1-i): what ACAI decodes (Berthelot et al., 2018),
    with the pairs of its published code. With alpha from 0 to 1/2 the partner weighs more.

    Args:
        z: Codes (n, D).
        alpha: The weights (n,) of the rows themselves.

    Returns:
        The codes between (n, D), in float32 or wider.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If one is not a floating-point tensor.

    Example:
        >>> import torch
        >>> interpolation(torch.tensor([[0.0], [8.0]]), torch.tensor([0.25, 0.5]))
        tensor([[6.],
                [4.]])
    """
    _checks.check_matrix("z", z)
    _checks.check_vector("alpha", alpha, len(z))
    z, alpha = _wide(z, alpha)
    alpha = alpha.unsqueeze(1)
    return alpha * z + (1 - alpha) * z.flip(0)


def critic_error(guess: Tensor, alpha: Tensor | None = None) -> Tensor:
    """How far a critic is from the share alpha that a row was mixed with, or from "not mixed".

    1/n sum_i (d_i - alpha_i)^2, the norm of all terms of Berthelot et al. (2018). The critic d is
    trained to (gamma from 0 to 1)

        L_d = ||d(x^_alpha) - alpha||^2 + ||d(gamma x + (1 - gamma) x^)||^2,

    and the autoencoder to the reconstruction and lambda ||d(x^_alpha)||^2: to rows x^_alpha,
    decoded between two codes, that the critic takes for ones that were not mixed.

    Args:
        guess: d (n,), the critic's numbers.
        alpha: What they should be (n,); by default 0.

    Returns:
        The mean over the n rows.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> guess, alpha = torch.tensor([0.5, 0.0]), torch.tensor([0.25, 0.25])
        >>> critic_error(guess, alpha), critic_error(guess)
        (tensor(0.0625), tensor(0.1250))
    """
    if alpha is not None:
        _check_shape("alpha", alpha, "guess", guess)
        guess, alpha = _wide(guess, alpha)
        guess = guess - alpha
    (guess,) = _wide(guess)
    return _mean(guess.square())


def centre_cross_entropy(z: Tensor, centres: Tensor) -> Tensor:
    """The cluster term in the published code of ABC, for codes of a sigmoid layer.

    L = -1/n sum_i sum_d c_id log z_id, c_i the centre of the cluster of row i. The paper (Song et
    al., 2013) has ||z_i - c_i||^2 here, `functional.kmeans_loss`. The two are not alike: this one
    is least where z is 1, not where z is c, and what holds z back is the reconstruction alone.

    Args:
        z: Codes (n, D) between 0 and 1; below the smallest normal number they count as that.
        centres: c (n, D), the centre that each row is assigned to.

    Returns:
        The mean over the n rows.

    Raises:
        ValueError: If the shapes differ.
        TypeError: If z is not a floating-point tensor.

    Example:
        >>> import torch
        >>> centre_cross_entropy(torch.tensor([[0.5, 1.0]]), torch.tensor([[1.0, 1.0]]))
        tensor(0.6931)
    """
    _checks.check_matrix("z", z)
    _check_shape("centres", centres, "z", z)
    z, centres = _wide(z, centres)
    return -_mean((centres * z.clamp_min(torch.finfo(z.dtype).tiny).log()).sum(1))


def mixture_divergence(mean: Tensor, log_var: Tensor, gamma: Tensor, head: F.Gaussian) -> Tensor:
    """How far the encoder's posterior is from the Gaussian mixture in the embedding: VaDE's prior.

    1/n sum_i KL(q(z, c | x_i) || p(z, c)) with q(z, c | x) = N(z; mu~, s~^2) gamma_c and p(z, c) =
    pi_c N(z; mu_c, s_c^2), which is

        1/n sum_i [ 1/2 sum_k gamma_ik sum_d (log s_kd^2 + s~_id^2 / s_kd^2
                                              + (mu~_id - mu_kd)^2 / s_kd^2)
                    - sum_k gamma_ik log(pi_k / gamma_ik) - 1/2 sum_d (1 + log s~_id^2) ],

    the terms that the evidence lower bound of Jiang et al. (2017) has beside the reconstruction,
    with the other sign.

    Args:
        mean: mu~ (n, D), the encoder's means.
        log_var: log s~^2 (n, D), the encoder's variances.
        gamma: q(c | x) (n, K), rows summing to one; the paper takes p(c | z) of a draw z from the
            posterior, `functional.assign(z, head)`. Where it is 0 it adds 0, with a finite
            gradient.
        head: The mixture (K, D). Its weights are normalised here, pi = softmax(log_weights), lest
            they lower the loss by all growing alike.

    Returns:
        The mean over the n rows, in nats; at least 0, but for rounding.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If types do not fit, or head is of another kind.

    Example:
        >>> import torch
        >>> from deepclust import functional as F
        >>> zero = torch.zeros(1, 1)
        >>> standard = F.Gaussian(zero, zero, torch.zeros(1))
        >>> mixture_divergence(zero + 2, zero, zero + 1, standard)
        tensor(2.)
    """
    if not isinstance(head, F.Gaussian):
        raise TypeError(f"head: got {type(head).__name__}; it takes Gaussian")
    _checks.check_matrix("mean", mean, head.n_features)
    _check_shape("log_var", log_var, "mean", mean)
    _checks.check_probabilities("gamma", gamma, (len(mean), head.n_clusters))
    mean, log_var, gamma, *params = _wide(mean, log_var, gamma, *head.params)
    means, mixture_log_var, log_weights = params
    with full_precision(mean):
        # Around the middle of the clusters the squares keep their digits, wherever the data lie.
        origin = origin_of(means)
        x, mu, precision = mean - origin, means - origin, torch.exp(-mixture_log_var)
        # s~^2 / s^2 + (mu~ - mu)^2 / s^2, summed over d, in products that never hold n x K x D.
        spread = (x.square() + log_var.exp()) @ precision.T - 2 * x @ (mu * precision).T
        spread = spread + (mu.square() * precision + mixture_log_var).sum(1)
    tiny = torch.finfo(mean.dtype).tiny
    log_pi = log_softmax(log_weights, 0).clamp_min(math.log(tiny))
    log_ratio = gamma.clamp_min(tiny).log() - log_pi
    return _mean((gamma * (spread / 2 + log_ratio)).sum(1) - (1 + log_var).sum(1) / 2)


def adversarial_discriminator(positives: Tensor, negatives: Tensor) -> Tensor:
    """Cross-entropy of a discriminator that tells draws from a clustering from codes.

    L = -1/m sum_j log Dis(c_j) - 1/n sum_i log(1 - Dis(z_i)), Dis = sigmoid(logits): eq. 1 of DCAN
    (Lim, 2024) with the other sign. Draws from the clustering have the label 1, codes the label 0.

    Args:
        positives: Logits (m,) of draws c from the clustering.
        negatives: Logits (n,) of codes z.

    Returns:
        The sum of the two means, in nats: 2 log 2 of one that does not know, and no less than
        2 log 2 - 2 JSD(c || z) of any, in expectation.

    Raises:
        ValueError: If one has not one dimension.
        TypeError: If one is not a floating-point tensor.

    Example:
        >>> import torch
        >>> adversarial_discriminator(torch.zeros(2), torch.zeros(3))
        tensor(1.3863)
    """
    _check_line("positives", positives, "n")
    _check_line("negatives", negatives, "n")
    positives, negatives = _wide(positives, negatives)
    return -_mean(logsigmoid(positives)) - _mean(logsigmoid(-negatives))


def adversarial_encoder(negatives: Tensor, update: str = "non-saturating") -> Tensor:
    """What an encoder minimises against the discriminator of its codes.

    "minimax": 1/n sum_i log(1 - Dis(z_i)), the part of eq. 1 of DCAN (Lim, 2024) that depends on
    the encoder. "non-saturating": -1/n sum_i log Dis(z_i), with the same fixed point, and gradients
    where the discriminator is sure of itself, of which the first has none (section 3 of Goodfellow
    et al., 2014).

    Args:
        negatives: Logits (n,) of codes z.
        update: "minimax" or "non-saturating".

    Returns:
        The mean over the n codes, in nats.

    Raises:
        ValueError: If negatives has not one dimension, or there is no such update.
        TypeError: If negatives is not a floating-point tensor.

    Example:
        >>> import torch
        >>> sure = torch.tensor([-2.0])
        >>> adversarial_encoder(sure), adversarial_encoder(sure, "minimax")
        (tensor(2.1269), tensor(-0.1269))
    """
    _check_line("negatives", negatives, "n")
    (negatives,) = _wide(negatives)
    if update == "minimax":
        return _mean(logsigmoid(-negatives))
    if update != "non-saturating":
        raise ValueError(f"update: got {update!r}; it takes 'non-saturating' or 'minimax'")
    return -_mean(logsigmoid(negatives))


def jensen_shannon(loss: Tensor) -> Tensor:
    """The Jensen-Shannon divergence that the loss of a discriminator stands for.

    JSD = log 2 - L/2: where Dis is the best there is, -L = -log 4 + 2 JSD (Lemma 2 of DCAN; theorem
    1 of Goodfellow et al., 2014). Any other discriminator gives less, in expectation, so this is
    below the divergence; of one that is worse than a guess it is negative.

    Args:
        loss: L, from `adversarial_discriminator`.

    Returns:
        The estimate, in nats, at most log 2.

    Example:
        >>> import torch
        >>> jensen_shannon(adversarial_discriminator(torch.tensor([9.0]), torch.tensor([-9.0])))
        tensor(0.6930)
    """
    return math.log(2.0) - loss / 2


@dataclass(frozen=True)
class ramp:  # noqa: N801 - called as a function is, and printed as it was called
    """A weight that goes from `start` to `end` in a straight line over so many updates, and stays.

    Args:
        start: The weight at update 0.
        end: The weight from update `updates` on.
        updates: At least 1.

    Raises:
        ValueError: If updates is below 1.

    Example:
        >>> weight = ramp(0.0, 1.0, 10)
        >>> weight(0), weight(5), weight(50)
        (0.0, 0.5, 1.0)
    """

    start: float
    end: float
    updates: int

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"updates: got {self.updates}; it takes an integer of at least 1")

    def __call__(self, update: int) -> float:
        """The weight at this update."""
        return self.start + (self.end - self.start) * min(update / self.updates, 1.0)


@dataclass(frozen=True)
class switch:  # noqa: N801 - called as a function is, and printed as it was called
    """A weight that changes once.

    Args:
        before: The weight before that update.
        after: The weight from that update on.
        update: At least 0.

    Raises:
        ValueError: If update is negative.

    Example:
        >>> weight = switch(0.0, 1.0, 100)
        >>> weight(99), weight(100)
        (0.0, 1.0)
    """

    before: float
    after: float
    update: int

    def __post_init__(self) -> None:
        if self.update < 0:
            raise ValueError(f"update: got {self.update}; it takes an integer of at least 0")

    def __call__(self, update: int) -> float:
        """The weight at this update."""
        return self.before if update < self.update else self.after


@dataclass(frozen=True)
class JointWeight:
    """One of the two weights that `joint` makes of a function of the update.

    Args:
        alpha: The weight of the clustering loss, by the number of updates.
        of: "clustering" for alpha itself, "other" for 1 - alpha.

    Raises:
        ValueError: When called, if alpha is not a number from 0 to 1 then.
    """

    alpha: Callable[[int], float]
    of: Literal["clustering", "other"]

    def __call__(self, update: int) -> float:
        """The weight at this update."""
        alpha = self.alpha(update)
        if not (_checks.is_number(alpha) and 0 <= alpha <= 1):
            raise ValueError(
                f"alpha: got {alpha!r} at update {update}; it takes a number from 0 to 1"
            )
        return alpha if self.of == "clustering" else 1.0 - alpha


def joint(alpha: Schedule) -> tuple[Schedule, Schedule]:
    """The weights of a clustering loss and of the other losses that share one total.

    L = alpha L_c + (1 - alpha) L_n, as in the taxonomy of Aljalbout et al. (2018): 0 is
    pre-training, 1 is clustering alone, `ramp` and `switch` go from one to the other.

    Args:
        alpha: From 0 to 1: a number, or a function of the update.

    Returns:
        (alpha, 1 - alpha), numbers or functions as alpha is.

    Raises:
        ValueError: If alpha is out of its range; of a function, when it is called.

    Example:
        >>> joint(0.25)
        (0.25, 0.75)
        >>> clustering, other = joint(ramp(0.0, 1.0, 10))
        >>> clustering(2), other(2)
        (0.2, 0.8)
    """
    if callable(alpha):
        return JointWeight(alpha, "clustering"), JointWeight(alpha, "other")
    if not (_checks.is_number(alpha) and 0 <= alpha <= 1):
        raise ValueError(
            f"alpha: got {alpha!r}; it takes a number from 0 to 1, or a function of the update"
        )
    return alpha, 1.0 - alpha


def weight_at(schedule: Schedule, update: int, name: str) -> float:
    """The weight of a loss at an update.

    Args:
        schedule: A number, or a function of the update.
        update: The number of updates done in the stage.
        name: The loss, for the error.

    Returns:
        The weight.

    Raises:
        ValueError: If it is negative, NaN or infinite.
        TypeError: If it is not a number.

    Example:
        >>> weight_at(ramp(0.0, 1.0, 10), 5, "kl")
        0.5
    """
    weight = schedule(update) if callable(schedule) else schedule
    takes = f"at update {update}; it takes a finite number of at least 0"
    if not _checks.is_number(weight):
        raise TypeError(f"weight of {name}: got {weight!r} {takes}")
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight of {name}: got {weight!r} {takes}")
    return float(weight)


def _wide(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the widest of their types, at least float32."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def _mean(values: Tensor) -> Tensor:
    """The mean over all elements; over none it is 0."""
    return values.sum() / max(values.numel(), 1)


def _directions(z: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay, with the gradient of a row that is left as it is."""
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return z / torch.where(length > 0, length, 1)


def _check_line(name: str, value: Tensor, length: str = "K") -> None:
    """Require a floating-point tensor of one dimension, however long."""
    if isinstance(value, Tensor) and value.ndim != 1:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; it takes ({length},)")
    _checks.check_vector(name, value, len(value))


def _check_shape(name: str, value: Tensor, like: str, other: Tensor) -> None:
    """Require one shape: broadcasting would give a number that means something else."""
    if value.shape != other.shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; {like} has {tuple(other.shape)}")
