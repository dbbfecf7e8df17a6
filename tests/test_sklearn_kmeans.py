"""scikit-learn's own tests of k-means, run on our classes in the place of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest
import sklearn
from sklearn.utils.fixes import parse_version

MODULE = "sklearn.cluster.tests.test_k_means"
RUN = f"""
import sys
import pytest
import sklearn.cluster
from deepclust.cluster import KMeans, MiniBatchKMeans

sklearn.cluster.KMeans, sklearn.cluster.MiniBatchKMeans = KMeans, MiniBatchKMeans
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--pyargs", "{MODULE}", *sys.argv[1:]]))
"""

# Tests that never meet our classes would pass whatever these do. They are not run.
PRIVATE = "tests functions private to scikit-learn"
FUNCTION = "tests a function of scikit-learn that has its own KMeans, or none"
NOT_OURS = {
    "test_relocate_empty_clusters": PRIVATE,
    "test_minibatch_update_consistency": PRIVATE,
    "test_minibatch_reassign": PRIVATE,
    "test_euclidean_distance": PRIVATE,
    "test_inertia": PRIVATE,
    "test_is_same_clustering": PRIVATE,
    "test_k_means_function": FUNCTION,
    "test_kmeans_plusplus_wrong_params": FUNCTION,
    "test_kmeans_plusplus_output": FUNCTION,
    "test_kmeans_plusplus_norms": FUNCTION,
    "test_kmeans_plusplus_dataorder": FUNCTION,
}
# Those that our classes fail: how many, and why. They are run, and must fail.
FAILED = {
    "test_sample_weight_init": (2, "calls a private method of scikit-learn's class"),
    "test_sample_weight_zero": (2, "calls a private method of scikit-learn's class"),
    "test_wrong_params": (10, "expects scikit-learn's words; our errors name the argument"),
    "test_warning_elkan_1_cluster": (1, "there are no bounds here that one cluster cannot have"),
}


@pytest.mark.slow
@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"),
    reason="the lists are of the tests of scikit-learn 1.9",
)
def test_scikit_learns_tests_of_k_means(tmp_path: Path) -> None:
    """Each test but those named above passes: none is skipped, and no name is left over."""
    xml = tmp_path / "results.xml"
    chosen = " and ".join(f"not {name}" for name in NOT_OURS)
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "SKLEARN_RUN_FLOAT32_TESTS": "1"}
    command = [sys.executable, "-c", RUN, f"--junitxml={xml}", "-k", chosen]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    outcomes: dict[str, list[str]] = defaultdict(list)
    for case in ET.parse(xml).getroot().iter("testcase"):
        outcomes[case.get("name", "").partition("[")[0]].append(
            next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "")
        )
    failed = {name: (len(found), set(found)) for name, found in outcomes.items() if any(found)}
    assert failed == {name: (n, {"failure"}) for name, (n, _) in FAILED.items()}, run.stdout
    assert sum(found.count("") for found in outcomes.values()) >= 241, run.stdout
