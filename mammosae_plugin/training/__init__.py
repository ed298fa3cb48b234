"""Training: sparse autoencoders on activation rows, and the classifiers whose features they explain."""

from mammosae_plugin.training.classifier import ClassifierTraining, train_classifier
from mammosae_plugin.training.sae import SAETraining, train_sae
from mammosae_plugin.training.saving import save_sae

__all__ = ["ClassifierTraining", "SAETraining", "save_sae", "train_classifier", "train_sae"]
