"""The methods by the names that they have on the command line."""

from __future__ import annotations

from typing import Any

from deepclust.cluster import (
    ABC,
    ACAI,
    DCAN,
    DCN,
    DEC,
    DEPICT,
    IDEC,
    DeepClustering,
    KMeans,
    MiniBatchKMeans,
    VaDE,
)

METHODS: dict[str, Any] = {
    "dec": DEC,
    "idec": IDEC,
    "depict": DEPICT,
    "dcn": DCN,
    "abc": ABC,
    "vade": VaDE,
    "acai": ACAI,
    "dcan": DCAN,
    "deep-clustering": DeepClustering,
    "kmeans": KMeans,
    "mini-batch-kmeans": MiniBatchKMeans,
}


def name_of(estimator: Any) -> str:
    """The name of the method that an estimator is of."""
    return next(name for name, kind in METHODS.items() if type(estimator) is kind)
