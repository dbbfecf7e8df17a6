"""Figure 1 of DEPICT's paper, from runs of experiments/run.py.

    python -m experiments.figures --data-dir DIR --data usps_11000

The paper's three panels and one more, each on its own first two principal components, coloured by
class: the rows, and the codes of the settings in PANELS. They have to have run on this machine
before; the picture goes to docs/figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepclust import _files
from deepclust.plots import Moment, embedding
from experiments.run import HERE, load, plan
from experiments.settings import DATA, SETTINGS

PANELS = {
    "not joint": "depict-balanced-views-not-joint",
    "joint": "depict-balanced-views",
    "joint, with resets": "depict-balanced-views-resets-long",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--data", choices=DATA, default="usps_11000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "figures")
    args = parser.parse_args(argv)
    loaded = load(args.data_dir, DATA[args.data])
    classes, y = np.unique(np.asarray(loaded.y), return_inverse=True)
    moments = [Moment("rows", None, np.asarray(loaded.X), y)]
    for title, name in PANELS.items():
        job = plan(args.data, name, args.seed, DATA[args.data], SETTINGS[name], loaded)
        codes = job.codes(args.cache)
        if not codes.exists():
            sys.exit(f"{codes} is not there: run {name} on {args.data}, seed {args.seed}, first")
        moments.append(Moment(title, None, np.load(codes), y))
    figure = embedding(moments, len(classes))
    figure.suptitle("Principal plane of the samples, by class", x=0.008, ha="left")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"depict-{args.data}.png"
    with _files.atomic_path(file) as path:
        figure.savefig(path, format="png", dpi=130)
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
