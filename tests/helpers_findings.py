"""A small study whose findings are published: two layers, two concepts, names of latents, no real figures."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from helpers_study import layered_settings, write_study
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mammosae_plugin.config import load_config
from mammosae_plugin.interpretation import LatentNames
from mammosae_plugin.interpretation.names import COLUMNS
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.schema.findings import SCHEMAS
from mammosae_plugin.study import Study, layer_report
from mammosae_plugin.visualization.output import record_figures

FIGURES = ("figure_2_Mass.png", "figure_3_pretrained_Mass.png", "figure_4_pretrained_Mass.png", "layers.png")


def small_study(folder: Path, phantom_root: Path) -> Study:
    """A study of an inner layer and the final map, run here; its figures, which take most of the time, are blank."""
    settings = layered_settings(folder, phantom_root)
    settings["analysis"] |= {"inner_controls": 1}
    study = Study(load_config(write_study(folder, settings)))
    study.run("encode")
    table = next(iter(study.primary.tables.values()))
    write_names(table, folder / "named")
    settings["analysis"]["names"] = {"files": [str(folder / "named")]}
    study = Study(load_config(write_study(folder, settings)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_report, "write_figures", _draw_quickly)
        patch.setattr(layer_report, "write_tables", lambda *_: [])
        patch.setattr(layer_report, "write_report", lambda _, folder: folder)
        study.run()
    return study


LABEL, PLACE, WRITTEN = "Mass", "site=Haus Sonnenschein", "a bright round spot"
"""What latents are called in `small_study`: by a label, by a column that tells where images are from, by a model."""


def write_names(table: LatentTable, folder: Path) -> Path:
    """Names of a table's latents that nobody found, as `mammosae name -o` writes them: every latent has one of each."""
    latents = table.live_latents("training")
    numbers = {"score": 0.9, "low": 0.6, "high": 0.98, "chance": 0.25, "p": 1e-5, "q": 1e-3, "n": 12}
    of_label = {"n_with": 11, "n_groups": 12, "n_fewest": 6, "check_auroc": 0.8, "check_low": 0.6, "check_high": 0.9}
    rows = [
        {"method": "labels", "name": LABEL, "column": "", **of_label, "check_fewest": 6},
        {"method": "labels", "name": PLACE, "column": "site", **of_label, "check_fewest": 6},
        {"method": "model", "name": WRITTEN, "model": "toy-vlm", "prompt_version": "1", "judge": "toy-judge"}
        | {"detection": 0.9, "detection_low": 0.7, "detection_high": 0.97, "n_failed": 1},
    ]
    frame = pd.DataFrame(
        [{"latent": one, **numbers, "abstained": False, "reason": "", **row} for row in rows for one in latents]
    )
    none = pd.DataFrame(columns=["latent", "rank", "name", "score", "chance", "p", "q"])
    folder.mkdir(parents=True, exist_ok=True)
    frame = frame[[*COLUMNS, *frame.columns.difference(COLUMNS)]]
    LatentNames("labels", frame, none, {"table": table.folder.name}).write(folder)
    return folder


def whole_study(study: Study, folder: Path) -> Path:
    """A copy of a study as if it had trained its SAEs and classifiers itself."""
    shutil.copytree(study.output, folder)
    for number, place in enumerate((study.config.sae.paths or {"": study.config.sae.path}).values()):
        shutil.copytree(place, folder / "work" / "sae" / str(number))
    (folder / "work" / "classifiers").mkdir(exist_ok=True)
    for model in study.config.models:
        for file in (model.classifiers or {}).values():
            shutil.copy(file, folder / "work" / "classifiers")
    return folder


def _draw_quickly(_results: Any, _class_means: Any, _panels: Any, folder: Path, **_: Any) -> list[Path]:
    """Names of figures as they are, with a text inside that must not travel."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    texts = PngInfo()
    texts.add_text("Author", "somebody")
    for name in FIGURES:
        Image.new("RGB", (60, 40), "white").save(folder / "figures" / name, pnginfo=texts)
    written = [folder / "figures" / name for name in FIGURES]
    record_figures([path for path in written if not path.name.startswith("figure_3")], folder)
    return written


def columns_of(config: str) -> list[str]:
    """The columns of a config, nested fields dotted: "concepts", "concepts.rank", ..."""
    found = []
    for field in SCHEMAS[config]:
        found.append(field.name)
        inner = field.type
        while pa.types.is_list(inner):
            inner = inner.value_type
        if pa.types.is_struct(inner):
            found += [f"{field.name}.{part.name}" for part in inner]
    return found
