"""Images with labels and boxes: kinds of datasets, DICOM, phantoms, preprocessing, screening of bad images."""

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets import collections  # noqa: F401 (it registers the readers of collections)
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.any_images import AnyImages, as_images, for_network, made_of
from mammosae_plugin.datasets.base import Batch, DatasetError, Item, MammogramDataset, collate
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.datasets.csv_folder import CsvFolder, LabelSettings
from mammosae_plugin.datasets.dicom import read_dicom
from mammosae_plugin.datasets.exams import by_exam
from mammosae_plugin.datasets.image_table import ImageTable, ImageTableSettings, load_images
from mammosae_plugin.datasets.mapping import ImageMapping, load_mapping
from mammosae_plugin.datasets.phantom_pairs import PAIR_ATTRIBUTES, make_phantom_pairs, read_pairs
from mammosae_plugin.datasets.phantoms import make_phantoms
from mammosae_plugin.datasets.preparation import Transform
from mammosae_plugin.datasets.prepared_folder import prepare_dicom, read_transforms
from mammosae_plugin.datasets.preprocessing import PREPROCESSING, preprocess
from mammosae_plugin.datasets.protocol import StudyDataset, is_study_dataset, require_study_dataset
from mammosae_plugin.datasets.registry import DatasetKind, DataSettings, dataset_kinds, open_dataset, register_dataset
from mammosae_plugin.datasets.screening import (
    check_suspects,
    leave_out_bad,
    read_quarantine,
    read_suspects,
    screen_images,
)
from mammosae_plugin.datasets.slices import Slicing, hounsfield_windows, organ_regions
from mammosae_plugin.datasets.splits import age_bins, make_split, read_split, write_split
from mammosae_plugin.datasets.vindr import CONCEPTS, VinDrMammo
from mammosae_plugin.datasets.volume_folders import TotalSegmentator, VolumeFolder
from mammosae_plugin.datasets.volume_settings import TotalSegmentatorSettings, VolumeFolderSettings
from mammosae_plugin.datasets.volumes import VolumeSlices

__all__ = [
    "CONCEPTS",
    "PAIR_ATTRIBUTES",
    "PREPROCESSING",
    "AnyImages",
    "BadImageError",
    "Batch",
    "Concept",
    "CsvFolder",
    "DataSettings",
    "DatasetAbout",
    "DatasetError",
    "DatasetKind",
    "ImageMapping",
    "ImageTable",
    "ImageTableSettings",
    "Item",
    "LabelSettings",
    "MammogramDataset",
    "Slicing",
    "StudyDataset",
    "TotalSegmentator",
    "TotalSegmentatorSettings",
    "Transform",
    "VinDrMammo",
    "Vocabulary",
    "VolumeFolder",
    "VolumeFolderSettings",
    "VolumeSlices",
    "age_bins",
    "as_images",
    "by_exam",
    "check_suspects",
    "collate",
    "dataset_kinds",
    "for_network",
    "hounsfield_windows",
    "is_study_dataset",
    "leave_out_bad",
    "load_images",
    "load_mapping",
    "made_of",
    "make_phantom_pairs",
    "make_phantoms",
    "make_split",
    "open_dataset",
    "organ_regions",
    "prepare_dicom",
    "preprocess",
    "read_dicom",
    "read_pairs",
    "read_quarantine",
    "read_split",
    "read_suspects",
    "read_transforms",
    "register_dataset",
    "require_study_dataset",
    "screen_images",
    "write_split",
]
