"""Estimators in the manner of scikit-learn, one file a method, and the parts that make them."""

from deepclust.cluster._saving import load
from deepclust.cluster._trainer import Epochs
from deepclust.cluster.abc import ABC, EpochGaussians, EpochMeans
from deepclust.cluster.acai import ACAI, Interpolation
from deepclust.cluster.dcan import DCAN, Adversarial
from deepclust.cluster.dcn import DCN, RunningMeans
from deepclust.cluster.dec import DEC, Hardening
from deepclust.cluster.deep_clustering import DeepClustering, KMeansLoss
from deepclust.cluster.depict import DEPICT, BalancedSoftMax
from deepclust.cluster.idec import IDEC
from deepclust.cluster.interventions import CollapseGuard, SoftReset
from deepclust.cluster.kmeans import KMeans
from deepclust.cluster.mini_batch_kmeans import MiniBatchKMeans
from deepclust.cluster.regularisers import Balance, Locality, Reconstruction, SelfAugmentation
from deepclust.cluster.vade import Mixture, VaDE

__all__ = [
    "ABC",
    "ACAI",
    "DCAN",
    "DCN",
    "DEC",
    "DEPICT",
    "IDEC",
    "Adversarial",
    "Balance",
    "BalancedSoftMax",
    "CollapseGuard",
    "DeepClustering",
    "EpochGaussians",
    "EpochMeans",
    "Epochs",
    "Hardening",
    "Interpolation",
    "KMeans",
    "KMeansLoss",
    "Locality",
    "MiniBatchKMeans",
    "Mixture",
    "Reconstruction",
    "RunningMeans",
    "SelfAugmentation",
    "SoftReset",
    "VaDE",
    "load",
]
