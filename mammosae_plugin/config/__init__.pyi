# What the room offers; each name is imported when it is asked for.
from .common import Checkpoint as Checkpoint
from .common import Data as Data
from .embeddings import EmbeddingStudyConfig as EmbeddingStudyConfig
from .maps import AnalysisConfig as AnalysisConfig
from .maps import ModelConfig as ModelConfig
from .maps import NetworkStart as NetworkStart
from .maps import PreprocessingSettings as PreprocessingSettings
from .maps import ReportConfig as ReportConfig
from .maps import SAEConfig as SAEConfig
from .maps import SAETrainingSource as SAETrainingSource
from .maps import StudyConfig as StudyConfig
from .reading import BELOW_ROOT as BELOW_ROOT
from .reading import AnyStudy as AnyStudy
from .reading import describe_settings as describe_settings
from .reading import load_config as load_config
from .reading import load_data as load_data
from .reading import portable_config as portable_config
