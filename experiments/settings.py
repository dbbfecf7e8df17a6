"""The grid of experiments/run.py, as plain data: data sets, and settings of methods.

Nothing here is chosen by labels. What differs between data sets follows from rules, below, that
read the numbers of rows and of clusters alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Data:
    """A file in the folder of data sets.

    Attributes:
        file: its name; deepclust.datasets.load reads it.
        n_clusters: K, which is the number of classes.
        unit_rows: divide each row by its length.
        last: only the last so many rows.
        pool: images shrunk to the means of blocks of so many by so many pixels; 0 for none.
        held_out: the last so many rows are not fitted, but predicted.
    """

    file: str
    n_clusters: int
    unit_rows: bool = False
    last: int | None = None
    pool: int = 0
    held_out: int = 0


DATA = {
    "optdigits": Data("optdigits.npz", 10),
    "usps": Data("usps.npz", 10),
    "usps_11000": Data("usps_11000.npz", 10),
    "mnist": Data("mnist.npz", 10),
    "mnist_test": Data("mnist.npz", 10, last=10_000),
    "r8": Data("reuters21578_r8_tfidf2000.npz", 8),
    # As DCAN was published: 196 pixels, and predicted for rows that it had not seen. Both splits
    # are the usual ones.
    "mnist_14": Data("mnist.npz", 10, pool=2, held_out=10_000),
    "r8_split": Data("reuters21578_r8_tfidf2000.npz", 8, held_out=2_189),
    "stackoverflow": Data("emb_minilm_stackoverflow.npz", 20, unit_rows=True),
}

# In place of an image_shape: that of the data.
OF_THE_DATA = "of the data"

# method: a name of deepclust.cluster, or one of run.METHODS. The rest are its parameters, but for
#     subsample: on data of more rows, fit so many of them, drawn by the seed.
# regularisers and interventions, where given, are {a name of deepclust.cluster: its arguments}.
DEPICT = {"method": "DEPICT", "image_shape": OF_THE_DATA}
# Squared targets sharpen, but let clusters starve; the second term of eq. 4 as a loss keeps them.
BALANCED = {"target": "published-code", "regularisers": {"Balance": {}}}
VIEWS = {"augment": "auto", "image_shape": OF_THE_DATA}
FULL = {**DEPICT, **BALANCED, **VIEWS}
SETTINGS: dict[str, dict[str, Any]] = {
    "k-means": {"method": "k-means", "n_init": 20},
    "k-means-sklearn": {"method": "scikit-learn k-means", "n_init": 20},
    "spectral": {
        "method": "spectral",
        "affinity": "nearest_neighbors",
        "n_neighbors": 10,
        "subsample": 10_000,
    },
    "ae-k-means-inertia": {"method": "autoencoder + k-means", "init_criterion": "inertia"},
    "ae-k-means-gaussian": {"method": "autoencoder + k-means", "init_criterion": "gaussian"},
    "dec": {"method": "DEC"},
    "dec-inertia": {"method": "DEC", "init_criterion": "inertia"},
    "dec-resets": {"method": "DEC", "interventions": {"SoftReset": {}}},
    "dec-guard": {"method": "DEC", "interventions": {"CollapseGuard": {}}},
    "dec-recluster": {"method": "DEC", "recluster": True},
    "idec": {"method": "IDEC"},
    "idec-resets": {"method": "IDEC", "interventions": {"SoftReset": {}}},
    "idec-recluster": {"method": "IDEC", "recluster": True},
    "dcn": {"method": "DCN"},
    "abc": {"method": "ABC"},
    "vade": {"method": "VaDE"},
    "ae-k-means-views": {
        "method": "autoencoder + k-means",
        "init_criterion": "gaussian",
        **VIEWS,
    },
    "dec-views": {"method": "DEC", **VIEWS},
    "idec-views": {"method": "IDEC", **VIEWS},
    "dcn-views": {"method": "DCN", **VIEWS},
    "depict": DEPICT,
    "depict-ae-k-means": {**DEPICT, "method": "DEPICT autoencoder + k-means"},
    "depict-squared": {**DEPICT, "target": "published-code"},
    "depict-exact": {**DEPICT, "target": "exact"},
    "depict-squared-views": {**DEPICT, **VIEWS, "target": "published-code"},
    "depict-balanced": {**DEPICT, **BALANCED},
    "depict-balanced-views": FULL,
    # Where the labels still move after 2,000 updates.
    "depict-balanced-views-long": {**FULL, "max_updates": 4_000},
    # The same length; every 20 passes the encoder is moved towards fresh weights.
    "depict-balanced-views-resets": {
        **FULL,
        "max_updates": 4_000,
        "interventions": {"SoftReset": {}},
    },
    "depict-balanced-views-resets-long": {
        **FULL,
        "max_updates": 8_000,
        "interventions": {"SoftReset": {}},
    },
    # Both of what the published code has in place of the paper's: target, and weight of layers.
    "depict-code-balanced-views": {**FULL, "hidden_weight": 0.1},
    # The same with one choice less, or another one.
    "depict-balanced-views-paper": {**FULL, "target": "paper"},
    "depict-balanced-views-exact": {**FULL, "target": "exact"},
    "depict-balanced-views-noiseless": {**FULL, "corruption": 0.0},
    "depict-balanced-views-not-joint": {**FULL, "joint": False, "layer_updates": 800},
    "depict-balanced-views-detached": {**FULL, "clean_gradient": False},
}

# Does ACAI's critic help? Methods on autoencoders, each without and with it: the settings
# "adv-METHOD-AUTOENCODER" and "adv-METHOD-AUTOENCODER-critic". Networks are small, for one core.
SMALL = {"hidden": (256, 256), "autocast": None}
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "mlp": SMALL,
    # Its layers are trained one by one to undo dropout, before the whole is.
    "denoising": {**SMALL, "layer_updates": 1_000},
    "conv": {
        "network": "conv",
        "hidden": ((16, 3, 2, 1), (32, 3, 2, 1)),
        "image_shape": OF_THE_DATA,
        "autocast": None,
    },
    # Begins with the weights of "mlp", as published; the variances are the clustering's.
    "variational": SMALL,
}
# Which methods go with which: DEPICT, whose own autoencoder has noise before every layer, takes the
# place of the stacked denoising one; one without noise would be another method. Of a variational
# network k-means, DEC, IDEC and DCN see the mean alone, which makes it an MLP: there it is the two
# methods whose losses have the variance. Without a reconstruction DEC moves the encoder alone.
POINTWISE = {
    "k-means": {"method": "autoencoder + k-means"},
    "dec": {"method": "DEC"},
    "idec": {"method": "IDEC"},
    "dcn": {"method": "DCN"},
}
CLUSTERINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mlp": POINTWISE,
    "denoising": {**POINTWISE, "depict": {**DEPICT, "network": "mlp", "layer_updates": 0}},
    "conv": {**POINTWISE, "depict": DEPICT},
    "variational": {
        "vade": {"method": "VaDE"},
        "abc-kl": {"method": "ABC", "form": "gaussian"},
    },
}
CRITIC = {"regularisers": {"Interpolation": {}}}
GRID = {
    f"adv-{name}-{kind}{end}": {**network, **method, **critic}
    for kind, network in AUTOENCODERS.items()
    for name, method in CLUSTERINGS[kind].items()
    for end, critic in (("", {}), ("-critic", CRITIC))
}
# ACAI as published, but for the length and the rate of Adam, 1e-3 for 1e-4: 5,000 updates of the
# 262,144. Without critic there is one too, which nothing is held to: it tells what it could see.
PUBLISHED_ACAI = {
    "method": "ACAI",
    "network": "conv",
    "image_shape": OF_THE_DATA,
    "latent_dim": 32,
    "batch_size": 64,
    "tune_updates": 5_000,
}
ACAIS = {
    f"acai{critic}{codes}": {**PUBLISHED_ACAI, **lam, **whiten}
    for critic, lam in (("", {}), ("-without-critic", {"lam": 0.0}))
    for codes, whiten in (("", {}), ("-not-whitened", {"whiten": False}))
}
# From ABC's distance to a divergence with a closed form, and on to one without: DCAN. All begin
# with one autoencoder.
CHAIN: dict[str, dict[str, Any]] = {
    "dcan-ae-k-means": {**SMALL, "method": "autoencoder + k-means"},
    "dcan-abc": {**SMALL, "method": "ABC"},
    "dcan-abc-kl": {**SMALL, "method": "ABC", "form": "gaussian"},
    "dcan": {**SMALL, "method": "DCAN"},
    "dcan-mixture": {**SMALL, "method": "DCAN", "clusters": "mixture"},
    "dcan-paper": {**SMALL, "method": "DCAN", "preset": "paper", "max_updates": 500},
}
SETTINGS |= {**GRID, **ACAIS, **CHAIN}


def rules(setting: dict[str, Any], n_rows: int, n_clusters: int) -> dict[str, Any]:
    """What a deep setting gets on data of this size; its own parameters come before these."""
    given: dict[str, Any] = {"latent_dim": max(10, n_clusters), "autocast": "bfloat16"}
    if setting["method"].endswith("autoencoder + k-means") or setting["method"] == "ACAI":
        given["max_updates"] = 0
    if setting["method"].startswith("DEPICT"):
        # What two cores do in minutes: an update takes ten times as long as of DEC's network.
        return {"tune_updates": 2_500, "max_updates": 2_000, **given}
    if setting.get("preset", "quick") == "quick" or setting["method"] == "DCAN":
        # In proportion to the rows, 2,500 for 5,620 of them, to the nearest 500; at most 14,000,
        # which is what a CPU does to MNIST in an hour.
        given["tune_updates"] = min(500 * max(1, round(n_rows * 2_500 / 5_620 / 500)), 14_000)
        if n_rows >= 50_000:
            given.setdefault("max_updates", 7_000)
            if setting["method"] in ("DEC", "IDEC"):
                given["update_interval"] = 140
        if setting["method"] in ("DCN", "ABC", "VaDE", "DCAN"):
            given["max_updates"] = 50 * -(-n_rows // 256)  # 50 passes, as DCN was published
    return given
