# What the room offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .answers import parse_ranking as parse_ranking
from .by_directions import name_by_directions as name_by_directions
from .by_labels import name_by_labels as name_by_labels
from .by_labels import name_by_labels_of as name_by_labels_of
from .by_texts import name_by_texts as name_by_texts
from .by_texts import name_by_texts_of as name_by_texts_of
from .named_files import read_names as read_names
from .names import LatentNames as LatentNames
from .terms import Terms as Terms
from .terms import load_terms as load_terms
