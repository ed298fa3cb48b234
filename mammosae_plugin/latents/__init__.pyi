# What the package offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .encoding import encode_latents as encode_latents
from .one_image import OneImage as OneImage
from .one_image import encode_image as encode_image
from .rows import encode_rows as encode_rows
from .rows import write_sparse_features as write_sparse_features
from .table import EvaluationRows as EvaluationRows
from .table import LatentTable as LatentTable
from .table import Readout as Readout
