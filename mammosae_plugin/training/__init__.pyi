# What the package offers; each name is imported when it is asked for, because torch and SAELens take seconds.
from .augmentation import Augmentation as Augmentation
from .classifier import train_classifier as train_classifier
from .classifier_settings import ClassifierTraining as ClassifierTraining
from .sae import train_sae as train_sae
from .sae import train_saes as train_saes
from .saving import save_sae as save_sae
from .settings import SAETraining as SAETraining
from .sweep import final_metrics_of as final_metrics_of
from .sweep import grid as grid
from .sweep import published_grid as published_grid
