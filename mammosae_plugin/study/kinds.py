"""The kinds of studies: from a configuration to the study of its kind, and a whole one in one call."""

__all__ = ["open_study", "run_study"]

from pathlib import Path

from mammosae_plugin import distributed
from mammosae_plugin.config import AnyStudy, StudyConfig
from mammosae_plugin.study.embeddings import EmbeddingStudy
from mammosae_plugin.study.steps import Steps
from mammosae_plugin.study.study import Study


def open_study(config: AnyStudy) -> Steps:
    """The steps of the study that a configuration describes.

    Raises:
        InputError: Anything that is wrong with the data, the checkpoints or the configuration, in one line.
    """
    return Study(config) if isinstance(config, StudyConfig) else EmbeddingStudy(config)


def run_study(config: AnyStudy) -> Path:
    """Run a whole study and return the path of its report. A killed study is run again and continues.

    Of several processes of torchrun the first writes the report, when the others have returned.

    Raises:
        InputError: Anything that is wrong with the data, the checkpoints or the configuration, in one line.
    """
    distributed.start()
    study = open_study(config)
    study.run()
    return study.report_file
