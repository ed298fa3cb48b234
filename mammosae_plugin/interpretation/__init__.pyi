# What the room offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .by_labels import name_by_labels as name_by_labels
from .by_labels import name_by_labels_of as name_by_labels_of
from .names import LatentNames as LatentNames
