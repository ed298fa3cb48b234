"""A whole study from one configuration: its data and networks, its steps at each layer, its results, the demo."""

from mammosae_plugin.study.study import Study, run_study

__all__ = ["Study", "run_study"]
