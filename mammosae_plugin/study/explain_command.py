"""`mammosae explain`: why a study's classifier gives one image its logit, as a page."""

__all__ = ["explain_image"]

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.analysis.explaining import Explanation, explain
from mammosae_plugin.analysis.localization import heatmap
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, write_json, write_text
from mammosae_plugin.findings.notes import results_with_readers
from mammosae_plugin.findings.told_latents import notes_on
from mammosae_plugin.latents.one_image import OneImage, encode_image
from mammosae_plugin.locks import only_run
from mammosae_plugin.own_files import empty_staging, replace_files
from mammosae_plugin.report.explanation import Told, explanation_page, explanation_text
from mammosae_plugin.schema.explained import RULES
from mammosae_plugin.schema.names import readable, signed
from mammosae_plugin.schema.names_of_latents import names_of_encoder
from mammosae_plugin.schema.results import stated_role
from mammosae_plugin.study.explained import choose_images
from mammosae_plugin.study.finished import Finished, finished_layer
from mammosae_plugin.study.shown_image import Shown, shown_image
from mammosae_plugin.visualization import save_figure
from mammosae_plugin.visualization.explanation import LatentPanel, plot_explanation, plot_on_original

PAGE, FIGURE, ORIGINAL, NUMBERS = "explanation.html", "explanation.png", "original.png", "explanation.json"
_LARGEST = 1600  # rows of an original as it is drawn


def explain_image(
    image: str,
    file: Path | None,
    *,
    settings: Sequence[str] = (),
    model: str | None = None,
    concept: str | None = None,
    layer: str | None = None,
    output: Path | None = None,
    preparation: str | None = None,
    top: int = 4,
    n: int = 5,
    target: int | None = None,
) -> str:
    """Explain one image by a finished study, as text for the terminal; with `output` as a page too.

    Args:
        image: a PNG or DICOM file, the id of an image of the study, or the rule by which a study's report names one,
            with_finding:1 or without_finding:1.
        file: as for `finished_layer`.
        settings: as for `finished_layer`.
        model: as for `finished_layer`.
        concept: as for `finished_layer`.
        layer: as for `finished_layer`.
        output: the folder of the page, its figures and numbers.
        preparation: "mammo-clip" or "letterbox", for an image that is not prepared yet; by default that of the study's
            data, or mammo-clip.
        top: latents for and against that are shown.
        n: training images like it.
        target: of a classifier with several outputs the class that is explained; by default the likeliest.

    Raises:
        InputError: as `finished_layer`; an image that cannot be read; a layer other than the final map.
    """
    chosen = finished_layer(file, settings, model=model, concept=concept, layer=layer)
    if chosen.table.readout_kind != "linear":
        raise InputError(
            f"layer {chosen.found.name} is not the final map, where alone a logit is a sum over latents; choose that "
            "layer (--layer), or see what each does by mammosae repair"
        )
    images = chosen.study.all_images
    try:
        shown = shown_image(_by_rule(image, chosen), images, preparation)
    except BadImageError as error:
        raise InputError(f"{Path(image).name}: {error.reason}; give a PNG or DICOM file of one mammogram") from error
    encoded = _encoded(chosen, shown)
    output_number = _target(chosen, encoded, target)
    found = explain(chosen.table, encoded, head=chosen.pair.concept, output=output_number, n=n, patient=shown.patient)
    told = _told(chosen, found, top)
    about = {
        "image": shown.name,
        "model": chosen.pair.model,
        "concept": chosen.pair.concept,
        "layer": chosen.found.name,
        "hook_name": chosen.found.hook_name,
        "class": chosen.table.vocabulary[chosen.pair.concept].classes[output_number if len(encoded.logits) > 1 else 1],
        "n_outputs": len(encoded.logits),
        "in_study": shown.row is not None,
        "prepared": shown.prepared,
    }
    text = explanation_text(about, found, told)
    if output is None:
        return text
    folder = local_path(output)
    with only_run(folder):
        staged = empty_staging(folder)
        try:
            _write(staged, about, shown, encoded, found, told, chosen)
            replace_files(staged, folder, record=folder / ".mammosae-explanation.json")
        finally:
            shutil.rmtree(staged)
    return f"{text}\nwritten: {folder / PAGE}"


# -- the image ---------------------------------------------------------------------------------------------------------


def _by_rule(image: str, chosen: Finished) -> str:
    """The id of the image that a study explains by a rule, such as with_finding:1; any other name as it is.

    Raises:
        InputError: the rule chooses no such image, or none of this classifier.
    """
    rule, _, place = image.partition(":")
    if rule not in RULES or not place.isdecimal() or local_path(image).exists():
        return image
    if chosen.pair.concept not in chosen.study.findings:
        raise InputError(f"{image} is an image by a rule for findings, which {chosen.pair.concept} is not; give an id")
    found = choose_images(chosen.table, chosen.pair.concept, 2 * int(place) + 2)
    row = next((one["row"] for one in found if (one["rule"], one["place"]) == (rule, int(place))), None)
    if row is None:
        raise InputError(f"{image}: the test images are of fewer patients; give {rule}:1, the one of the highest logit")
    return str(chosen.table.images["image_id"].iloc[row])


def _encoded(chosen: Finished, shown: Shown) -> OneImage:
    study, pair = chosen.study, chosen.pair
    facts = study.facts(pair)
    assert facts.head is not None  # it has outputs
    hooked = study.hooked(pair)
    image: torch.Tensor = facts.preprocessing(shown.pixels, shown.name)
    device = study.config.device
    return encode_image(hooked, chosen.layer.sae, image, facts.head, hook_name=chosen.found.hook_name, device=device)


def _target(chosen: Finished, encoded: OneImage, target: int | None) -> int:
    n_outputs = len(encoded.logits)
    if n_outputs == 1:
        if target not in (None, 1):
            raise InputError(f"{chosen.pair.concept} is there or not; leave --class out")
        return 0
    if target is not None and not 0 <= target < n_outputs:
        classes = chosen.table.vocabulary[chosen.pair.concept].classes
        there = ", ".join(f"{number} ({name})" for number, name in enumerate(classes))
        raise InputError(f"--class is {target}; {chosen.pair.concept} has {there}")
    return int(encoded.logits.argmax()) if target is None else target


# -- what is known of its latents --------------------------------------------------------------------------------------


def _told(chosen: Finished, found: Explanation, top: int) -> Told:
    rows = pd.concat([found.strongest(top, sign=1), found.strongest(top, sign=-1)])
    shown = {int(latent) for latent in rows["latent"]}
    results = results_with_readers(chosen.found)
    named = results["named_latents"].get(chosen.pair.key, [])
    roles = {int(row["latent"]): stated_role(row) for row in named if int(row["latent"]) in shown}
    evidence: Any = results.get("evidence", [])
    verdicts = {
        int(row["latent"]): (str(row["verdict"]), str(row.get("reason") or ""))
        for row in evidence
        if (row["model"], row["concept"]) == (chosen.pair.model, chosen.pair.concept)
        and int(row["latent"]) in shown
        and row.get("verdict")
    }
    notes = notes_on(chosen.found, chosen.pair.model, chosen.pair.concept, shown)
    pair = chosen.pair
    known = names_of_encoder(results.get("names", []), pair.model, pair.concept)
    return Told(top, roles, verdicts, notes, {one: known[one] for one in sorted(shown & known.keys())})


# -- the page ----------------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    about: dict[str, Any],
    shown: Shown,
    encoded: OneImage,
    found: Explanation,
    told: Told,
    chosen: Finished,
) -> None:
    size = (shown.pixels.shape[0], shown.pixels.shape[1])
    weight = chosen.table.readout(found.head).weight[:, found.output]
    whole = LatentPanel(heatmap_of(encoded.weighted_map(weight), size), "all latents together", signed=True)
    rows = []
    for sign, words in ((1, "for"), (-1, "against")):
        strongest = found.strongest(told.top, sign=sign)
        maps = encoded.maps(strongest["latent"].to_numpy())
        panels = [
            LatentPanel(np.abs(heatmap_of(one, size)), told.caption(int(latent), float(value)))
            for one, latent, value in zip(maps, strongest["latent"], strongest["contribution"], strict=True)
        ]
        rows.append((f"strongest {words}", panels))
    title = f"{readable(about['concept'])} ({about['class']}): logit {signed(found.logit)}"
    save_figure(plot_explanation(shown.gray, rows, title=title, beside=whole), folder / FIGURE, dpi=150)
    if shown.original is not None:
        picture, transform = shown.original
        step = max(1, round(picture.shape[0] / _LARGEST))
        panels = [whole, *rows[0][1][:1], *rows[1][1][:1]]
        back = [
            LatentPanel(transform.heatmap_back(panel.map)[::step, ::step], panel.caption, panel.signed)
            for panel in panels
        ]
        figure = plot_on_original(picture[::step, ::step], back, title="On the original's own pixels")
        save_figure(figure, folder / ORIGINAL, dpi=150)
    sums = found.to_frame()
    numbers = {
        **about,
        "output": found.output,
        "logit": found.logit,
        "bias": found.bias,
        "error": found.error,
        "gap": found.gap,
        "sum": sums.to_dict("records"),
        "latents": found.latents.astype(object).where(found.latents.notna(), None).to_dict("records"),
        "told": [
            told.of(int(row["latent"]))
            for sign in (1, -1)
            for _, row in found.strongest(told.top, sign=sign).iterrows()
        ],
        "neighbours": found.neighbours.to_dict("records"),
        "usual_likeness": None if np.isnan(found.usual_likeness) else found.usual_likeness,
        "transform": shown.original[1].to_json() if shown.original is not None else None,
    }
    write_json(folder / NUMBERS, numbers)
    figures = (folder / FIGURE, folder / ORIGINAL)
    write_text(folder / PAGE, explanation_page(about, found, told, figures))


def heatmap_of(values: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map over positions at the size of the image."""
    return heatmap(values, size)
