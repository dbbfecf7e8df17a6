"""k-means, or DEC, of a file that does not fit in memory: time, and peak resident memory (Linux).

python -m experiments.out_of_core --gigabytes 20 --folder /tmp --out out_of_core.json

Writes a `.npy` file of blobs, clusters it with each estimator in a fresh process, and deletes it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_ROWS = 1 << 18
N_BLOBS = 100


def write_blobs(path: Path, n: int, d: int) -> None:
    """Rows (n, d) float32 around N_BLOBS centres, in random order."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((N_BLOBS, d), np.float32)
    with open(path, "wb") as file:
        about = {"descr": "<f4", "fortran_order": False, "shape": (n, d)}
        np.lib.format.write_array_header_1_0(file, about)
        for start in range(0, n, BLOCK_ROWS):
            size = min(BLOCK_ROWS, n - start)
            rows = rng.standard_normal((size, d), np.float32)
            rows += centres[rng.integers(N_BLOBS, size=size)]
            file.write(rows.data)


def of_process(file: str, name: str) -> int:
    """A number that Linux has of this process."""
    found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/self/{file}").read_text(), re.M)
    assert found is not None
    return int(found[1])


def fit(path: str, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Cluster the file in this process, and say what it took."""
    from deepclust import cluster

    before = of_process("io", "rchar")
    imported = of_process("status", "VmHWM") << 10
    # Batches of rows in order, as the file's are in random order: picked ones cost a seek each.
    X = [np.load(path, mmap_mode="r")] if method == "MiniBatchKMeans" else path
    start = time.perf_counter()
    found = getattr(cluster, method)(**parameters).fit(X)
    seconds = time.perf_counter() - start
    read = of_process("io", "rchar") - before
    inertia = {}
    if hasattr(found, "inertia_"):
        inertia["inertia_a_row"] = found.inertia_ / len(found.labels_)
    return {
        "method": method,
        "parameters": parameters,
        "n": len(found.labels_),
        "d": found.n_features_in_,
        "seconds": round(seconds, 3),
        "gigabytes_read": round(read / 1e9, 2),
        "gigabytes_a_second": round(read / 1e9 / seconds, 3),
        "peak_resident_mb": of_process("status", "VmHWM") >> 10,
        "resident_mb_once_imported": imported >> 20,
        "iterations": found.n_iter_,
        "steps": getattr(found, "n_steps_", None),
        **inertia,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the file, in 1e9 bytes")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=3, help="of KMeans")
    parser.add_argument("--init", default="random")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--methods", nargs="+", default=["KMeans", "MiniBatchKMeans"])
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("out_of_core.json"))
    parser.add_argument("--fit", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        path, method, parameters = args.fit
        print(json.dumps(fit(path, method, json.loads(parameters))))
        return
    path = args.folder / "out-of-core.npy"
    common = {"n_clusters": args.clusters, "init": args.init, "n_init": 1, "random_state": 0}
    own = {
        "KMeans": {"max_iter": args.iterations, "tol": 0.0},
        # All of the epoch: it would end early where batches no longer help.
        "MiniBatchKMeans": {
            "max_iter": 1,
            "batch_size": args.batch_size,
            "max_no_improvement": None,
        },
        "DEC": {"hidden": [64], "latent_dim": 10, "tune_updates": 1000, "max_updates": 1000}
        | {"update_interval": 500, "tol": 0.0},
    }
    results = []
    try:
        start = time.perf_counter()
        write_blobs(path, int(args.gigabytes * 1e9) // (4 * args.features), args.features)
        print(f"{path} written in {time.perf_counter() - start:.0f} s", flush=True)
        for method in args.methods:
            parameters = json.dumps({**common, **own[method]})
            command = [sys.executable, "-m", "experiments.out_of_core", "--fit"]
            command += [str(path), method, parameters]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append({**json.loads(done.stdout), "command": sys.argv[1:]})
            print(json.dumps(results[-1]), flush=True)
            args.out.write_text(json.dumps(results, indent=2) + "\n")
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
