"""Training: sparse autoencoders on activation rows, and the classifiers whose features they explain."""

from mammosae_plugin.training.augmentation import Augmentation
from mammosae_plugin.training.classifier import train_classifier
from mammosae_plugin.training.classifier_settings import ClassifierTraining
from mammosae_plugin.training.sae import train_sae, train_saes
from mammosae_plugin.training.saving import save_sae
from mammosae_plugin.training.settings import SAETraining
from mammosae_plugin.training.sweep import final_metrics_of, grid, published_grid

__all__ = [
    "Augmentation",
    "ClassifierTraining",
    "SAETraining",
    "final_metrics_of",
    "grid",
    "published_grid",
    "save_sae",
    "train_classifier",
    "train_sae",
    "train_saes",
]
