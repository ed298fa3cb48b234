"""Figures and tables of a study: matplotlib figures without global state, tables as CSV, Markdown and LaTeX.

`write_figures` and `write_tables` make everything from a study's findings; the single plots take plain data frames and
arrays and return a matplotlib `Figure`. File names come from `names`, so that the report finds what was written.
"""

from mammosae_plugin.schema.names import figure_2_name, figure_3_name, figure_4_name
from mammosae_plugin.schema.results import Results, may_show_images
from mammosae_plugin.visualization.curves import plot_sweep, plot_sweeps
from mammosae_plugin.visualization.decay import plot_score_decay
from mammosae_plugin.visualization.examples import DrawnExample, draw_example
from mammosae_plugin.visualization.heatmaps import plot_heatmaps
from mammosae_plugin.visualization.layers import plot_layers
from mammosae_plugin.visualization.output import HeatmapPanels, write_figures, write_tables
from mammosae_plugin.visualization.retrieval import plot_hits, plot_k_sweep
from mammosae_plugin.visualization.saes import plot_pareto, plot_quality_and_recovery, plot_recovery
from mammosae_plugin.visualization.scatter import plot_class_means
from mammosae_plugin.visualization.style import save_figure
from mammosae_plugin.visualization.tables import (
    Estimate,
    table_1,
    table_2,
    table_interventions,
    table_layers,
    table_rankings,
    table_roles,
    write_table,
)

__all__ = [
    "DrawnExample",
    "Estimate",
    "HeatmapPanels",
    "Results",
    "draw_example",
    "figure_2_name",
    "figure_3_name",
    "figure_4_name",
    "may_show_images",
    "plot_class_means",
    "plot_heatmaps",
    "plot_hits",
    "plot_k_sweep",
    "plot_layers",
    "plot_pareto",
    "plot_quality_and_recovery",
    "plot_recovery",
    "plot_score_decay",
    "plot_sweep",
    "plot_sweeps",
    "save_figure",
    "table_1",
    "table_2",
    "table_interventions",
    "table_layers",
    "table_rankings",
    "table_roles",
    "write_figures",
    "write_table",
    "write_tables",
]
