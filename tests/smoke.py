"""An installed deepclust, seen from outside of the tree: `python smoke.py [cpp or eager]`.

`make dist` and cibuildwheel run it where a wheel and what it requires are all that there is.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import metadata
from pathlib import Path

import torch

import deepclust
from deepclust import functional as F

expected = sys.argv[1] if len(sys.argv) > 1 else "cpp"
package = Path(deepclust.__file__).parent
assert not (package.parent / "csrc").exists(), f"imported from the tree: {package}"
assert (package / "py.typed").is_file()
assert (package / "_C.pyi").is_file()
assert metadata.version("deepclust") == deepclust.__version__

found = deepclust.backends()
print(f"deepclust {deepclust.__version__}, Python {sys.version.split()[0]}, {found}")
assert ("not built" in found["cpp"]) == (expected == "eager"), found["cpp"]

# Functions run where `auto` sends them, and agree with plain torch.
torch.manual_seed(0)
z, centroids = torch.randn(300, 10), torch.randn(7, 10)
q = F.assign(z, F.StudentT(centroids), backend="eager")
torch.testing.assert_close(F.assign(z, F.StudentT(centroids)), q)
torch.testing.assert_close(F.kmeans_assign(z, centroids)[0], torch.cdist(z, centroids).argmin(1))
losses = [F.dec_loss(z, centroids, F.dec_target(q), backend=name) for name in ("auto", "eager")]
torch.testing.assert_close(*losses)

# One OpenMP runtime: that of torch. The extension brings none, and loads none of the system's.
if sys.platform == "linux":
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    runtimes = {Path(name).resolve().parent for name in mapped if "libgomp" in name}
    assert runtimes <= {Path(torch.__file__).resolve().parent / "lib"}, runtimes

# Imported last: scikit-learn has a runtime of its own.
from deepclust.cluster import DEC, KMeans  # noqa: E402
from deepclust.datasets import load_digits  # noqa: E402

X = load_digits().X[:500]
assert len(set(KMeans(n_clusters=10, random_state=0).fit_predict(X))) == 10
dec = DEC(n_clusters=10, hidden=[32], tune_updates=20, max_updates=20, random_state=0).fit(X)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.safetensors"
    dec.save(path)
    assert (DEC.load(path).predict(X) == dec.labels_).all()
print("smoke: all is well")
