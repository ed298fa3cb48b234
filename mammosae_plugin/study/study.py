"""A study of maps from one configuration: the only module that knows all rooms.

Each step keeps what it makes under a name that holds a digest of everything the step depends on, so a step whose inputs
have not changed is never repeated, one whose inputs have changed never reads old results, and a killed study is simply
run again.

Under torchrun every process runs the same study. Extraction, SAE training and encoding are shared among them; what else
is made is made by the first process, for which the others wait where they need it.
"""

__all__ = ["check_evidence_column", "Study"]

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mammosae_plugin.config import portable_config
from mammosae_plugin.datasets.concepts import nearest_names
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.kept import write_findings
from mammosae_plugin.own_files import remove_files
from mammosae_plugin.privacy.context import PrivacyContext
from mammosae_plugin.schema.findings import EVIDENCE
from mammosae_plugin.schema.names import LAYERS_FOLDER, REPORT_FILE, counted, layer_folder
from mammosae_plugin.study import results as study_results
from mammosae_plugin.study.inputs import EncoderGroup, StudyInputs
from mammosae_plugin.study.latent_names import check_names, name_lines, names_of_layer, require_tables
from mammosae_plugin.study.layer import LayerStudy
from mammosae_plugin.study.layer_passes import PassesLeft, permit
from mammosae_plugin.study.layer_report import write_layer_report
from mammosae_plugin.study.pages import map_of_layer, neighbours_of_layer
from mammosae_plugin.study.repairs import check_repairs, repair_lines, repairs
from mammosae_plugin.study.steps import Steps, dated

_OF_LESIONS = ("model", "concept", "method", "latent", "all_cpm", "all_cpm_low", "all_cpm_high", "all_cpm_chance",
               "p_adjusted", "healthy_cpm", "healthy_cpm_chance", "breast_cpm", "breast_cpm_chance", "pointing",
               "energy")  # fmt: skip


class Study(StudyInputs, Steps):
    """The steps of a study, each computed when it is asked for and kept in the output folder.

    It holds what all layers share, data and classifiers; what is done at a layer is its `LayerStudy`.

    Args:
        config: The study's configuration.

    Raises:
        InputError: Anything that is wrong with the data, the checkpoints or the configuration, in one line.
    """

    @cached_property
    def layers(self) -> tuple[LayerStudy, ...]:
        """The study at each of its layers, in the configuration's order.

        Names, shapes and given SAEs are tried on the network that each model starts from, before anything is trained.

        Raises:
            InputError: A layer that a model does not have or that cannot be studied, or an SAE that does not fit it.
        """
        layers = tuple(
            LayerStudy(self, name, hook_name, is_final=hook_name == self.final_hook)
            for name, hook_name in self.hook_names.items()
        )
        for model in self.config.models:
            for layer in layers:
                layer.check(model.name)
        return layers

    @property
    def report_file(self) -> Path:
        """Where the primary layer's report lies."""
        return self.results_folder / REPORT_FILE

    @property
    def primary(self) -> LayerStudy:
        """The layer whose report lies at the top: the final map, or else the last layer."""
        return next((layer for layer in self.layers if layer.is_final), self.layers[-1])

    @property
    def state(self) -> tuple[Mapping[str, Any], str]:
        """The settings, and what changes with the files of images and annotations."""
        return portable_config(self.config), self.file_stats

    # The steps

    def classify(self) -> None:
        """Train the classifiers that the configuration does not give as files; check those that it gives."""
        _ = self.concepts, self.layers  # what cannot be studied is told before hours of training
        _ = self.pair_images and self.pair_images.pairs
        check_repairs(self)
        check_names(self.config.analysis.names, self.all_images.images.columns)
        _ = self.encoder_groups

    def _at_each_layer(self, do: Callable[[LayerStudy], Any]) -> None:
        for layer in self.layers:
            with layer.errors_name_it():
                do(layer)

    def _with_each_network(self, do: Callable[[LayerStudy, EncoderGroup], Any]) -> None:
        """At all layers of one network before the next, which takes its place in memory."""
        for group in self.encoder_groups:
            for layer in self.layers:
                with layer.errors_name_it():
                    do(layer, group)

    def extract(self) -> None:
        """The rows on which the SAEs are trained; nothing where the configuration gives the SAEs as files."""
        self._at_each_layer(LayerStudy.extract)

    def train(self) -> None:
        """Train the SAEs, or read those that the configuration names."""
        self._at_each_layer(LayerStudy.train)

    def encode(self) -> None:
        """Make the latents tables."""
        self._with_each_network(LayerStudy.encode)

    def probe(self) -> None:
        """Table 1, class means and rankings."""
        self._at_each_layer(LayerStudy.probe)

    def intervene(self) -> None:
        """Figure 2, and the roles of latents; how long inner layers take is told, or refused, before the first pass."""
        left: list[PassesLeft] = []

        def ask(layer: LayerStudy, group: EncoderGroup) -> None:
            if not layer.is_intervened_on(group) and (found := layer.passes_left(group)):
                left.append(found)

        self._with_each_network(ask)
        permit(left, self.config.analysis.inner_hours)
        for layer in self.layers:
            layer.is_permitted = True
        self._with_each_network(LayerStudy.intervene)

    def localize(self) -> None:
        """Table 2."""
        self._at_each_layer(LayerStudy.localize)

    def evidence(self) -> None:
        """Every latent that fires, what it stands for and answers to, its name, groups, agreement, repairs."""
        tables = [table for layer in self.layers for table in layer.tables.values()]
        require_tables(self.config.analysis.names, tables)
        self._at_each_layer(names_of_layer)
        self._with_each_network(LayerStudy.tell)
        self._at_each_layer(lambda layer: (layer.groups, layer.views, layer.answers, repairs(layer)))
        self._at_each_layer(lambda layer: (neighbours_of_layer(layer), map_of_layer(layer)))

    def report_folder(self, layer: LayerStudy) -> Path:
        """Where a layer's results and report go."""
        return self.results_folder / layer_folder(layer.name, self.primary.name)

    def report(self) -> Path:
        """Write the findings and, from them, every layer's figures, tables and report; returns the primary report."""
        side_by_side = study_results.side_by_side(self.layers) if self.has_several_layers else []
        folders = {layer: self.report_folder(layer) for layer in self.layers}
        # As of figures: a layer that is no longer studied must not leave a report behind.
        for folder in (self.results_folder / LAYERS_FOLDER).glob("*"):
            if folder.is_dir() and folder not in folders.values():
                remove_files(folder)

        names = {layer: layer.name if self.config.layers else layer.module for layer in self.layers}
        found: dict[str, Any] = {}

        def collect(layer: LayerStudy) -> None:
            results = study_results.results(layer, side_by_side, self.primary.name)
            found[names[layer]] = dated(results, folders[layer])

        self._at_each_layer(collect)
        pages = {
            "neighbours": [neighbours_of_layer(layer).assign(layer=names[layer]) for layer in self.layers],
            "latent_map": [map_of_layer(layer)[0].assign(layer=names[layer]) for layer in self.layers],
        }
        study = write_findings(
            self.output, found, {name: pd.concat(frames, ignore_index=True) for name, frames in pages.items()}
        )
        self._at_each_layer(lambda layer: write_layer_report(layer, study.layer(names[layer])))
        PrivacyContext.of_dataset(self.all_images).keep(self.output)
        return self.report_file

    def evidence_summary(self, sort: str = "reliance", top: int = 20) -> str:
        """The verdicts on latents, the first latents by a column of the table, and the worst groups.

        Args:
            sort: The column; of effect, reliance and standardized_difference the size counts.
            top: How many latents of each classifier.

        Raises:
            InputError: There is no such column.
        """
        check_evidence_column(sort)
        lines = []
        for layer in self.layers:
            lines += [f"layer {layer.name}:"] if self.has_several_layers else []
            lines += _told(layer, sort, top)
        return "\n".join([*lines, f"kept in {self.work / 'analyses'}"])

    def summary(self, step: str) -> str:
        """What a command prints when its step is done: the main figures and where to find the rest."""
        if step == "extract" and self.config.sae.train is None:
            return "extract: nothing to do, because the study's SAE is given as a file"
        if step == "evidence":
            return self.evidence_summary()
        if step == "localize" and not self.pairs_with_boxes:
            return "localize: nothing to do, because no concept of the study has a box in the test split"
        if step == "report":
            others = [layer for layer in self.layers if layer is not self.primary]
            lines = [*_aurocs(self.primary), f"report: {self.report_file}"]
            return "\n".join(
                lines + [f"report of {layer.name}: {self.report_folder(layer) / 'report.html'}" for layer in others]
            )
        frames = {"probe": "reconstruction", "intervene": "interventions", "localize": "localization"}
        if step in frames:
            lines = []
            for layer in self.layers:
                frame: pd.DataFrame = getattr(layer, frames[step])
                lines += [f"layer {layer.name}:"] if self.has_several_layers else []
                lines.append(frame.to_string(index=False, max_rows=40))
                if step == "localize" and len(layer.lesions):
                    shown = [*_OF_LESIONS, *(name for name in ("gain",) if layer.lesions[name].notna().any())]
                    lines += ["lesions found, on all test images:", layer.lesions[shown].to_string(index=False)]
            return "\n".join([*lines, f"kept in {self.work / 'analyses'}"])
        if step == "extract":
            lines = [store.summary() for store in self.stores.values()]
            lines += [
                f"batch norms folded: the features of {name} differ by {error:.1e} (relative, of one image)"
                for name, error in self.folding_errors.items()
            ]
            lines += [
                f"compiled: the features of {name} differ by {error:.1e} (relative, of one image)"
                for name, error in self.compiling_errors.items()
            ]
            return "\n".join([*lines, f"extract: done; kept in {self.work / 'activations'}"])
        places = {"classify": "classifiers", "extract": "activations", "train": "sae", "encode": "latents"}
        return f"{step}: done; kept in {self.work / places[step]}"


_CALLED = 0.05  # false discovery rate
_COLUMNS = tuple(one.name for one in EVIDENCE[3:] if not one.name.startswith("cpm"))  # behind layer, model, concept
_SHOWN = (
    "latent",
    "verdict",
    "auroc",
    "auroc_low",
    "auroc_high",
    "auroc_q",
    "effect",
    "reliance",
    "place",
    "covariate",
)


def check_evidence_column(sort: str) -> None:
    """Refuse a column that the evidence on latents does not have, before anything is run for it.

    Raises:
        InputError: There is no such column.
    """
    if sort not in _COLUMNS:
        near = nearest_names(sort, _COLUMNS)
        raise InputError(
            f"there is no column {sort!r} to sort by{near}; choose a number of a latent, such as reliance, effect, "
            "auroc, auroc_q or place (docs/evidence.md has all)"
        )


def _told(layer: LayerStudy, sort: str, top: int) -> list[str]:
    """The verdicts on each pair's latents, and its first latents by a column, for a terminal."""
    frame, lines = layer.evidence, []
    for (model, concept), own in frame.groupby(["model", "concept"], sort=False) if len(frame) else ():
        counts = ", ".join(f"{n} {verdict}" for verdict, n in own["verdict"].value_counts().items())
        reasons = own["reason"].unique()
        same = f" ({reasons[0]})" if len(own) > 1 and len(reasons) == 1 and reasons[0] else ""
        lines.append(f"{model}/{concept}: {counted(len(own), 'latent')} fire: {counts}{same}")
        by = own[sort].abs() if sort in ("effect", "reliance", "standardized_difference") else own[sort]
        ascending = sort in ("latent", "verdict", "covariate") or sort.endswith(("_q", "_p"))
        shown = own.loc[by.sort_values(ascending=ascending, kind="stable").index[:top]]
        columns = dict.fromkeys([*_SHOWN, sort, *([] if same else ["reason"])])
        lines.append(shown[list(columns)].to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    agreement = layer.views
    for (model, concept), own in agreement.groupby(["model", "concept"], sort=False) if len(agreement) else ():
        told = [
            f"{words} in {own[f'{name}_q'].lt(_CALLED).sum()} of {counted(n, 'latent')}"
            if (n := int(own[name].notna().sum()))
            else f"{words} in none (it cannot be told of any)"
            for name, words in (("views", "of the views of a breast"), ("sides", "of the two breasts"))
        ]
        lines.append(f"{model}/{concept}: more agreement than by chance (q below {_CALLED}) {', '.join(told)}")
    lines += _answered(layer.answers)
    lines += name_lines(names_of_layer(layer), ["encoder"])
    lines += [repaired for row in repairs(layer) for repaired in repair_lines(row)]
    groups = layer.groups
    if "worst" in groups:
        worst = groups[groups["worst"].eq(True)]
        lines += [
            f"{row['model']}/{row['concept']} by {row['by']}: lowest AUROC {row['auroc']:.3f} "
            f"[{row['auroc_low']:.3f}, {row['auroc_high']:.3f}] in {row['group']}, n = {row['n_rows']}, "
            f"{row['n_positive']} with the finding"
            for row in worst.to_dict("records")
        ]
    return lines


_OF_PAIRS = ("encoder", "attribute", "n_patients", "n_responding", "n_selective", "best_latent", "response",
             "selectivity", "inside", "concept_score", "concept_score_untrained")  # fmt: skip


def _answered(frame: pd.DataFrame) -> list[str]:
    """What latents answer to, by counterfactual pairs; nothing where the study has none."""
    if not len(frame):
        return []
    shown = [name for name in _OF_PAIRS if name in frame]
    return ["what latents answer to:", frame[shown].to_string(index=False, float_format=lambda value: f"{value:.3g}")]


def _aurocs(layer: LayerStudy) -> list[str]:
    without, with_sae = (
        layer.reconstruction.query("variant == @variant").to_dict("records") for variant in ("without_sae", "with_sae")
    )
    return [
        f"{row['model']}/{row['concept']}: AUROC {row['auroc']:.3f} without the SAE, {other['auroc']:.3f} with it "
        "(test split)"
        for row, other in zip(without, with_sae, strict=True)
    ]
