# What the package offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .encoding import encode_latents as encode_latents
from .table import EvaluationRows as EvaluationRows
from .table import LatentTable as LatentTable
from .table import Readout as Readout
