"""Accuracies that others published on the data of experiments/settings.py, with their conditions.

Only what was read in the source that is named; of secondary tables it is said that they are.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """An accuracy in percent, as the source gives it."""

    method: str  # as in SETTINGS, where it is there
    accuracy: str
    source: str


SOURCES = {
    "xie": (
        "Xie, Girshick and Farhadi, ICML 2016: the paper, with a pre-training of 50,000 updates a"
        " layer and 100,000 of the whole autoencoder"
    ),
    "keras": (
        "github.com/XifengGuo/DEC-keras, results/exp1/results.csv: mean of 10 runs, in brackets the"
        " least and the most. Layers as here; a pre-training of 300 epochs on MNIST and of 50 on"
        " USPS, the 9,298 images"
    ),
    "guo": (
        "Guo, Gao, Liu and Yin, IJCAI 2017. Its DEC is a rerun of theirs. Of how many runs, we have"
        " not checked"
    ),
    "brb": (
        "Miklautz et al., ICLR 2025: the baselines of BRB, from a table in their repository, mean"
        " and standard deviation of 10 seeds. The configuration there that bears this name has Adam"
        " at 1e-3, 250 epochs of pre-training, 400 of clustering, and an augmentation-invariance"
        " loss; that it made this table is our inference"
    ),
    "vade": "github.com/slim1017/VaDE, README: what its test script is said to reach",
    "gultepe": (
        "Gultepe and Makrehchi, Human-centric Computing and Information Sciences 2018, table 4,"
        " which quotes other papers. ABC is its AEC. Which of the two USPS sets a figure belongs to"
        " it does not say; DEPICT's is the one of 11,000 images"
    ),
    "quoted": (
        "Dizaji et al., ICCV 2017, as later papers quote it: not checked against the paper's own"
        " tables"
    ),
}

PUBLISHED: dict[str, list[Published]] = {
    "optdigits": [
        Published("DEC", "88.2 ± 1.1", "brb"),
        Published("IDEC", "86.8 ± 0.2", "brb"),
        Published("DCN", "86.6 ± 0.4", "brb"),
    ],
    "usps": [
        Published("k-means", "69.4", "gultepe"),
        Published("autoencoder + k-means", "70.9 (69.6 to 72.6)", "keras"),
        Published("DEC", "76.4 (75.1 to 76.9)", "keras"),
        Published("DEC", "78.9 ± 1.1", "brb"),
        Published("IDEC", "81.6 ± 0.3", "brb"),
        Published("DCN", "78.3 ± 1.0", "brb"),
        Published("ABC", "71.5", "gultepe"),
        Published("DCEC", "79.0", "gultepe"),
    ],
    "usps_11000": [
        Published("DEPICT", "96.4", "gultepe"),
        Published("DEPICT", "89.9", "quoted"),
    ],
    "mnist_test": [Published("DEPICT", "96.3", "quoted")],
    "mnist": [
        Published("k-means", "53.5", "xie"),
        Published("autoencoder + k-means", "87.9 (80.7 to 92.1)", "keras"),
        Published("DEC", "84.3", "xie"),
        Published("DEC", "86.6", "guo"),
        Published("DEC", "91.2 (83.0 to 96.4)", "keras"),
        Published("DEC", "91.6 ± 2.0", "brb"),
        Published("IDEC", "88.1", "guo"),
        Published("IDEC", "93.2 ± 2.2", "brb"),
        Published("DCN", "83.0", "gultepe"),
        Published("DCN", "89.2 ± 2.0", "brb"),
        Published("ABC", "76.0", "gultepe"),
        Published("VaDE", "94.5", "vade"),
        Published("DCEC", "89.0", "gultepe"),
        Published("DEPICT", "96.5", "gultepe"),
    ],
}
