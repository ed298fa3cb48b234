# What the package offers; each name is imported when it is asked for, because torch, SAELens and datasets take seconds.
from .comparison import Comparison as Comparison
from .comparison import compare_findings as compare_findings
from .findings import About as About
from .findings import Findings as Findings
from .findings import load_findings as load_findings
from .findings import publish_findings as publish_findings
from .findings import stage_findings as stage_findings
from .models import publish_model as publish_model
from .pulling import pull as pull
from .releases import RELEASES as RELEASES
from .releases import Release as Release
from .releases import register_releases as register_releases
from .saes import publish_sae as publish_sae
from .space import build_space as build_space
from .space import publish_space as publish_space
