"""The pictures of the pages of methods: each on the 1,797 digits that scikit-learn carries.

    python -m experiments.gallery             all of them, some minutes
    python -m experiments.gallery dec idec    these

Seed 0, one thread, products in bfloat16, at most 1,000 updates of clustering, and all else as it is
by default unless a function below says otherwise. A picture shows two moments on their first two
principal components, most often where the clustering starts and where it ends. Labels are read for
the accuracy above each panel, and to give a cluster the number of the digit it is matched to.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from deepclust import _files, cluster
from deepclust.datasets import load_digits
from deepclust.metrics import clustering_accuracy, confusion_matrix
from deepclust.plots import Moment, embedding
from deepclust.report import Recorder
from experiments.run import HERE

K = 10
COMMON: dict[str, Any] = {"max_updates": 1_000, "autocast": "bfloat16", "random_state": 0}
IMAGES = {"image_shape": (8, 8)}


@cache
def digits() -> tuple[Any, Any]:
    """Rows (1797, 64) and their classes."""
    loaded = load_digits()
    return loaded.X, loaded.y


@cache
def network() -> Any:
    """The autoencoder that methods without one of their own begin with."""
    return cluster.DEC(K, **COMMON | {"max_updates": 0}).fit(digits()[0]).network_


def moment(name: str, z: Any, labels: Any) -> Moment:
    """Embeddings (N, D) of the digits, clusters numbered by what they are matched to."""
    _, y = digits()
    _, _, found = confusion_matrix(y, labels)  # in the order of the classes
    number = np.empty(K, int)
    number[[*found, *sorted(set(range(K)) - set(found))]] = np.arange(K)
    accuracy = clustering_accuracy(y, labels)
    return Moment(f"{name}: {100 * accuracy:.1f} %", None, z, number[labels])


def trained(name: str, estimator: Any) -> list[Moment]:
    """Where the clustering starts, and where it ends."""
    X, _ = digits()
    recorder = Recorder(max_rows=len(X))
    estimator.set_params(callbacks=[recorder]).fit(X)
    start = recorder.moments()[0]
    return [
        moment("autoencoder + k-means", start.z, start.labels),
        moment(name, estimator.transform(X), estimator.labels_),
    ]


def on_the_autoencoder(name: str, **parameters: Any) -> list[Moment]:
    kind = getattr(cluster, name)
    return trained(name, kind(K, pretrained=network(), **COMMON, **parameters))


def k_means() -> list[Moment]:
    """The pixels, from one start and from twenty."""
    X, _ = digits()
    one, best = (cluster.KMeans(K, n_init=n, random_state=0).fit(X) for n in (1, 20))
    return [
        moment("k-means, one start", X, one.labels_),
        moment("the best of 20 starts", X, best.labels_),
    ]


def start() -> list[Moment]:
    """What the page "Start in five minutes" makes."""
    X, _ = digits()
    km = cluster.KMeans(K, n_init=20, random_state=0).fit(X)
    lengths = {"tune_updates": 1_000, "max_updates": 500}
    dec = cluster.DEC(K, hidden=(128, 128), **lengths, random_state=0).fit(X)
    return [
        moment("k-means, pixels", X, km.labels_),
        moment("DEC, codes", dec.transform(X), dec.labels_),
    ]


def acai() -> list[Moment]:
    """Whitened codes and k-means, without the critic and with it."""
    X, _ = digits()
    without, with_critic = (
        cluster.ACAI(K, **COMMON | {"max_updates": 0, "lam": lam}).fit(X) for lam in (0.0, 0.5)
    )
    return [
        moment("without critic", without.transform(X), without.labels_),
        moment("ACAI", with_critic.transform(X), with_critic.labels_),
    ]


def depict() -> list[Moment]:
    """As its page recommends it, on the published network."""
    parts = {"target": "published-code", "regularisers": [cluster.Balance()], "augment": "auto"}
    return trained("DEPICT", cluster.DEPICT(K, tune_updates=1_000, **COMMON, **IMAGES, **parts))


def deep_clustering() -> list[Moment]:
    """IDEC's losses, and two more."""
    others = [cluster.Reconstruction(), cluster.Balance(), cluster.SelfAugmentation()]
    parts = {"clustering": cluster.Hardening(weight=0.1), "regularisers": others}
    return on_the_autoencoder("DeepClustering", **IMAGES, **parts)


METHODS: dict[str, Callable[[], list[Moment]]] = {
    "start": start,
    "kmeans": k_means,
    "dec": partial(on_the_autoencoder, "DEC"),
    "idec": partial(on_the_autoencoder, "IDEC"),
    "dcn": partial(on_the_autoencoder, "DCN"),
    "abc": partial(on_the_autoencoder, "ABC"),
    "vade": partial(on_the_autoencoder, "VaDE"),
    "depict": depict,
    "acai": acai,
    "dcan": partial(on_the_autoencoder, "DCAN"),
    "deep_clustering": deep_clustering,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "figures")
    args = parser.parse_args(argv)
    if unknown := set(args.methods) - METHODS.keys():
        parser.error(f"{min(unknown)}: no such method; there are {', '.join(METHODS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.methods or METHODS:
        with threadpool_limits(1):
            moments = METHODS[name]()
        figure = embedding(moments, K, legend=False)
        figure.suptitle("Principal plane of the digits, by cluster; accuracy", x=0.008, ha="left")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=130)
        # A quarter of the length; this choice of 256 colours keeps those of the clusters.
        few = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
        file = args.out / f"method-{name}.png"
        with _files.atomic_path(file) as path:
            few.save(path, "png", optimize=True)
        print(f"{file}: {', '.join(panel.stage for panel in moments)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
