"""Mammograms with labels and boxes: VinDr-Mammo, phantoms in its format, preprocessing, screening of bad images."""

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.base import Batch, DatasetError, Item, MammogramDataset, collate
from mammosae_plugin.datasets.concepts import CONCEPTS, GRADED_CONCEPTS, n_classes_of
from mammosae_plugin.datasets.phantoms import make_phantoms
from mammosae_plugin.datasets.preprocessing import PREPROCESSING, preprocess
from mammosae_plugin.datasets.screening import (
    check_suspects,
    leave_out_bad,
    read_quarantine,
    read_suspects,
    screen_images,
)
from mammosae_plugin.datasets.vindr import VinDrMammo

__all__ = [
    "CONCEPTS",
    "GRADED_CONCEPTS",
    "PREPROCESSING",
    "BadImageError",
    "Batch",
    "DatasetAbout",
    "DatasetError",
    "Item",
    "MammogramDataset",
    "VinDrMammo",
    "check_suspects",
    "collate",
    "leave_out_bad",
    "make_phantoms",
    "n_classes_of",
    "preprocess",
    "read_quarantine",
    "read_suspects",
    "screen_images",
]
