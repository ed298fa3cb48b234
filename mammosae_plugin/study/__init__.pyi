# What the package offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .study import Study as Study
from .study import run_study as run_study
