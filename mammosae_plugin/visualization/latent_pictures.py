"""Pictures of images in which latents fire: of which latents, of which images, and their files.

Pictures of few latents are drawn: those that a study names and those that rank best. Whether any may leave is decided
elsewhere (`hub.pictures`).
"""

__all__ = ["draw_pictures", "keep_picture", "MOST_LATENTS"]

import io
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from mammosae_plugin.analysis.examples import Example, choose_examples, example_maps
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path
from mammosae_plugin.findings.study_folder import Encoder, LayerResults, StudyFolder
from mammosae_plugin.findings.tables import class_1_latents, tellable
from mammosae_plugin.interpretation import Pictures
from mammosae_plugin.privacy.guard import let_out
from mammosae_plugin.privacy.pictures import digest_of_picture
from mammosae_plugin.progress import progress_bar
from mammosae_plugin.schema.findings import SCHEMAS
from mammosae_plugin.schema.pages import PICTURES_FOLDER
from mammosae_plugin.visualization.examples import draw_example

Row = dict[str, Any]

MOST_LATENTS = 60
"""Latents of which pictures are drawn, at most, over all layers and encoders: some 15 MB."""
_SPLIT = "test"
_STRONGEST, _RANGE, _HEALTHY = 6, 4, 3  # examples of a latent
_LONGEST = 640  # pixels of a picture's longest side
_QUALITY = 80


def draw_pictures(
    study: StudyFolder, dataset: StudyDataset, folder: Path, *, min_group: int, most: int = MOST_LATENTS
) -> tuple[pa.Table, Row]:
    """Draw them, without asking whether they may leave; returned as by `hub.pictures.pictures_of`.

    Whole images and squares round the peak are WebP files without any metadata, named by their own bytes. Of latents
    whose activity rests on fewer patients than `min_group` there are none.
    """
    rows: list[Row] = []
    sizes: dict[str, int] = {}
    chosen = list(_chosen(study, min_group))[:most]
    with progress_bar(total=len(chosen), description="pictures", unit="latent", leave=False, delay=2) as bar:
        for layer, encoder, latents in _by_encoder(chosen):
            pictures = Pictures(encoder.table, dataset)
            for latent in latents:
                place = {"layer": layer.name, "encoder": encoder.name, "latent": latent}
                rows += [place | own for own in _of_latent(encoder, latent, pictures, folder, sizes)]
                bar.update()
    n = len({(row["layer"], row["encoder"], row["latent"]) for row in rows})
    told = {"shown": True, "n_latents": n, "n_pictures": len(rows), "bytes": sum(sizes.values()), "most": most}
    return pa.Table.from_pylist(rows, schema=SCHEMAS["pictures"]), told


def _of_latent(encoder: Encoder, latent: int, pictures: Pictures, folder: Path, sizes: dict[str, int]) -> Iterator[Row]:
    """Draw the examples of one latent; their rows."""
    table = encoder.table
    if _SPLIT not in table.splits:
        return
    concepts = [one for one in encoder.concepts if one in table.vocabulary]
    numbers = {"n_strongest": _STRONGEST, "n_range": _RANGE, "n_healthy": _HEALTHY}
    examples = choose_examples(table, latent, split=_SPLIT, concepts=concepts, **numbers)
    maps = example_maps(table, latent, [one.image for one in examples], split=_SPLIT)
    for one in examples:
        gray = pictures.gray(one.image)
        if gray.shape != tuple(table.image_size):
            raise InputError(
                f"the data have images of {gray.shape[0]} x {gray.shape[1]}, the study's latents are of "
                f"{table.image_size[0]} x {table.image_size[1]}; name the YAML file that the study was run with"
            )
        boxes = [box for name in concepts if name in table.concepts for box in table.boxes(one.image, name)]
        heat = maps[one.image][0] if one.image in maps else None
        times = max(1, _LONGEST // max(gray.shape))  # small images are enlarged, so that lines cover little
        height, width = (times * side for side in gray.shape)
        large = Image.fromarray(gray).resize((width, height), Image.Resampling.LANCZOS)
        drawn = draw_example(large, heat, [times * box for box in boxes], longest=_LONGEST)
        yield {
            **_told(one),
            "boxes": [box.tolist() for box in boxes],
            "whole": _written(drawn.whole, folder, sizes),
            "crop": None if drawn.crop is None else _written(drawn.crop, folder, sizes),
        }


def _told(one: Example) -> Row:
    classes = [{"concept": name, "class": number} for name, number in one.classes.items()]
    return {name: getattr(one, name) for name in ("kind", "rank", "activation", "quantile")} | {"classes": classes}


def _chosen(study: StudyFolder, min_group: int) -> Iterator[tuple[LayerResults, Encoder, int]]:
    """Latents that may be shown, the first of every concept before the second of any: the named, then the best."""
    told = tellable(study.layers, min_group)
    lines = []
    for layer in study.layers:
        named = layer.results["named_latents"]
        for encoder in layer.encoders.values():
            hidden = told[layer.name, encoder.name].activity
            for concept in encoder.concepts:
                own = [one["latent"] for one in named.get(f"{encoder.model}/{concept}", [])]
                own += class_1_latents(layer, encoder.model, concept)
                lines.append([(layer, encoder, one) for one in dict.fromkeys(own) if not hidden[one]])
    seen = set()
    for one in (one for places in zip_longest(*lines) for one in places if one is not None):
        key = (one[0].name, one[1].name, one[2])
        if key not in seen:
            seen.add(key)
            yield one


def _by_encoder(
    chosen: list[tuple[LayerResults, Encoder, int]],
) -> list[tuple[LayerResults, Encoder, list[int]]]:
    """Tables are read once each."""
    found: dict[tuple[str, str], tuple[LayerResults, Encoder, list[int]]] = {}
    for layer, encoder, latent in chosen:
        found.setdefault((layer.name, encoder.name), (layer, encoder, []))[2].append(latent)
    return [(layer, encoder, sorted(latents)) for layer, encoder, latents in found.values()]


def _written(picture: Image.Image, folder: Path, sizes: dict[str, int]) -> str:
    """Write a picture under the name of its bytes, which is returned."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=_QUALITY)
    return keep_picture(buffer.getvalue(), folder, sizes)


def keep_picture(data: bytes, folder: Path, sizes: dict[str, int]) -> str:
    """Write a picture under the name of its bytes, which is returned; `sizes` are those of all that were written."""
    name = f"{PICTURES_FOLDER}/{digest_of_picture(data)}.webp"
    if name not in sizes:
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(data)
        let_out(folder / name)
        sizes[name] = len(data)
    return name
