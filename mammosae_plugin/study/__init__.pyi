# What the package offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .embeddings import EmbeddingStudy as EmbeddingStudy
from .kinds import open_study as open_study
from .kinds import run_study as run_study
from .repairing import Repair as Repair
from .repairing import repair as repair
from .study import Study as Study
