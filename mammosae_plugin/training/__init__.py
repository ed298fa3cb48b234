"""Training: sparse autoencoders on activation rows, and the classifiers whose features they explain."""

from mammosae_plugin.training.classifier import ClassifierTraining, train_classifier
from mammosae_plugin.training.sae import SAETraining, train_sae

__all__ = ["ClassifierTraining", "SAETraining", "train_classifier", "train_sae"]
