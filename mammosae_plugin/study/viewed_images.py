"""The images of a finished study, and files that somebody opens, as the viewer asks for them: taken apart by latents.

What the latents tables hold is read from them; the network is read when an image outside of them, or a place where the
table kept no map, is asked for. Files that are opened are held in memory, and only the last few.
"""

__all__ = ["ViewedImages"]

import io
import os
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.study_folder import Encoder, LayerResults, StudyFolder
from mammosae_plugin.study.serving import NotThere

if TYPE_CHECKING:
    from PIL import Image

    from mammosae_plugin.analysis.explaining import LogitParts
    from mammosae_plugin.config import StudyConfig
    from mammosae_plugin.datasets import StudyDataset
    from mammosae_plugin.latents import LatentTable, OneImage
    from mammosae_plugin.study.layer import LayerStudy
    from mammosae_plugin.study.shown_image import Shown
    from mammosae_plugin.study.study import Study

Row = dict[str, Any]

LONGEST_SIDE = 1600
"""Pixels of a picture's longest side as it is sent to the page."""
_FILES, _ENCODED, _DRAWN = 4, 4, 64  # kept in memory: files that were opened, images under the network, examples drawn
_OWN = "file-"
_TEST = "test"
_ORDERS = ("number", "highest", "lowest")


class ViewedImages:
    """What can be asked of a study's images; any thread may ask.

    Args:
        found: gives the finished study.
        config: gives its settings, which say where the images lie; None where the study was named by its folder.
        file: what the study is called in messages.
    """

    def __init__(self, found: Callable[[], StudyFolder], config: "Callable[[], StudyConfig] | None", file: str) -> None:
        self._found, self._config, self._file = found, config, file
        self._tables, self._network = threading.RLock(), threading.RLock()
        self._files: OrderedDict[str, Shown] = OrderedDict()
        self._encoded: OrderedDict[tuple[str, ...], OneImage] = OrderedDict()
        self._drawn: OrderedDict[tuple[Any, ...], dict[str, bytes]] = OrderedDict()
        self._layers: dict[str, LayerStudy] = {}
        self._usual: dict[Path, NDArray[np.float64]] = {}

    # The study

    @cached_property
    def _study(self) -> "Study":
        from mammosae_plugin.study.study import Study

        if self._config is None:
            raise InputError(
                f"{self._file} is a study's folder, which does not say where its images lie; open its YAML file, "
                "mammosae view study.yaml, to see them"
            )
        return Study(self._config())

    @cached_property
    def _images(self) -> "StudyDataset":
        return self._study.all_images

    @cached_property
    def _number_of(self) -> dict[str, int]:
        """Of each image its row in the data."""
        return {str(name): row for row, name in enumerate(self._images.images["image_id"])}

    def _at(self, layer: str, encoder: str) -> "tuple[LayerResults, Encoder, LatentTable]":
        found = self._found().layer(layer)
        own = found.encoders.get(encoder)
        if own is None:
            raise NotThere(f"layer {layer} has no encoder {encoder!r}; it has {', '.join(found.encoders)}")
        return found, own, own.table

    def about(self) -> Row:
        """What can be looked at: classifiers (layer, encoder, concepts with their classes), and why not, where not."""
        with self._tables:
            classifiers = [self._classifier(layer, one) for layer in self._found().layers for one in layer.encoders]
        with self._network:
            try:
                missing = None if self._number_of else "the study's data hold no image"
            except InputError as error:
                missing = str(error)
        return {"classifiers": classifiers, "no_pictures": missing, "can_open": missing is None}

    def _classifier(self, layer: LayerResults, name: str) -> Row:
        encoder = layer.encoders[name]
        row = {"layer": layer.name, "encoder": name, "primary": layer.name == self._found().primary_name}
        try:
            table = encoder.table
        except InputError as error:
            return {**row, "concepts": [], "missing": str(error)}
        classes = {one: list(table.vocabulary[one].classes) for one in encoder.concepts if one in table.heads}
        concepts = [{"concept": one, "classes": names} for one, names in classes.items()]
        splits = list(dict.fromkeys(str(one) for one in table.splits))
        return {
            **row,
            "concepts": concepts,
            "linear": table.readout_kind == "linear",
            "splits": splits,
            "missing": None,
        }

    # Which images there are

    def rows(
        self,
        layer: str,
        encoder: str,
        concept: str,
        *,
        split: str = "",
        label: str = "",
        text: str = "",
        order: str = "number",
    ) -> Row:
        """The rows of a table's images that a reader asks for.

        Args:
            layer: the layer.
            encoder: the encoder.
            concept: whose labels and logits count.
            split: only of this split.
            label: only of this class.
            text: only those whose id holds it.
            order: "number", or by the logit of the last output, "highest" or "lowest" first.

        Returns:
            rows, their ids, and the total.
        """
        with self._tables:
            _, _, table = self._at(layer, encoder)
            images = table.images
            chosen = np.ones(len(images), dtype=np.bool_)
            if split:
                chosen &= (images["split"] == split).to_numpy()
            if label != "" and concept in images.columns:
                chosen &= images[concept].to_numpy(dtype=np.float64, na_value=np.nan) == _whole(label, "label")
            ids = images["image_id"].astype(str)
            if text:
                chosen &= ids.str.contains(text, case=False, regex=False).to_numpy()
            rows = np.flatnonzero(chosen)
            if order not in _ORDERS:
                raise InputError(f"order is {order!r}; give one of {', '.join(_ORDERS)}")
            if order != "number":
                logits = table.logits(concept)[rows, -1]
                rows = rows[np.argsort(-logits if order == "highest" else logits, kind="stable")]
            return {"rows": rows.tolist(), "ids": ids.to_numpy()[rows].tolist(), "total": len(images)}

    # One image

    def image(self, key: str, layer: str, encoder: str, concept: str, *, encode: bool = False) -> Row:
        """One image: its logits as sums over latents, and where latents can be shown.

        Args:
            key: the row of the table, or what `open` gave.
            layer: the layer.
            encoder: the encoder.
            concept: the classifier's.
            encode: pass it through the network, so that every latent is known at every place.

        Raises:
            InputError: no such image or classifier; a file at an inner layer.
        """
        own, place = key.startswith(_OWN), (key, layer, encoder, concept)
        if own or encode:
            self._encode(place)
        with self._tables:
            found, _, table = self._at(layer, encoder)
            one = self._encoded.get(place)
            row = None if own else _row(key, table)
            facts = self._of_file(key) if row is None else self._of_row(table, row, concept)
            known = one.grid if one is not None else table.grid
            return {
                "key": key,
                **facts,
                "grid": list(known),
                "classes": list(table.vocabulary[concept].classes),
                **self._parts(table, concept, one if row is None else row),
                "whole": one is not None,
                "mapped": [] if row is None else table.map_latents(row).tolist(),
                "layer": found.name,
            }

    def _of_row(self, table: "LatentTable", row: int, concept: str) -> Row:
        about = table.images.iloc[row]
        labels = {name: _class(about[name]) for name in table.vocabulary if name in about}
        boxed = concept in table.concepts
        return {
            "name": str(about["image_id"]),
            "row": row,
            "split": str(about["split"]),
            "labels": {name: [label, list(table.vocabulary[name].classes)] for name, label in labels.items()},
            "size": list(table.image_size),
            "boxes": table.boxes(row, concept).tolist() if boxed else [],
            "prepared": None,
        }

    def _of_file(self, key: str) -> Row:
        shown = self._file_of(key)
        return {
            "name": shown.name,
            "row": None,
            "split": None,
            "labels": {},
            "size": list(shown.gray.shape),
            "boxes": [],
            "prepared": shown.prepared and shown.prepared.replace(" --preparation chooses another way.", ""),
        }

    def _parts(self, table: "LatentTable", concept: str, image: "int | OneImage | None") -> Row:
        from mammosae_plugin.analysis.explaining import take_apart, usual_means

        if image is None:
            raise NotThere("that image is no longer in memory; open the file again")
        if table.readout_kind != "linear":
            assert isinstance(image, int)
            maxima = table.max_latents[[image]].toarray().ravel()
            means = table.mean_latents[[image]].toarray().ravel()
            fires = np.flatnonzero((means != 0) | (maxima != 0))
            return {
                "linear": False,
                "logits": table.logits(concept)[image].tolist(),
                "latents": fires.tolist(),
                "mean": means[fires].tolist(),
                "maximum": maxima[fires].tolist(),
            }
        parts: LogitParts = take_apart(table, image, head=concept)
        if table.folder not in self._usual:
            self._usual[table.folder] = usual_means(table)
        usual = self._usual[table.folder][parts.latents]
        return {
            "linear": True,
            **{name: getattr(parts, name).tolist() for name in ("logits", "bias", "error", "latents")},
            **{name: getattr(parts, name).tolist() for name in ("mean", "maximum", "weight", "gap")},
            "usual": [None if np.isnan(value) else value for value in usual.tolist()],
        }

    def at_place(self, key: str, layer: str, encoder: str, concept: str, cell: int) -> Row:
        """Which latents fire at a place of an image: cell (row by row over the grid), latents and activations.

        Returns:
            complete is False where only the maps that the table kept are looked at; then there may be more.
        """
        with self._tables:
            _, _, table = self._at(layer, encoder)
            one = self._encoded.get((key, layer, encoder, concept))
            grid = one.grid if one is not None else table.grid
            if not 0 <= cell < grid[0] * grid[1]:
                raise NotThere(f"the image has the places 0 to {grid[0] * grid[1] - 1}, not {cell}")
            if one is not None:
                here = one.codes[[cell]]
                latents, values = here.indices, here.data
            else:
                row = _row(key, table)
                latents = table.map_latents(row)
                values = table.maps(latents, row).reshape(len(latents), -1)[:, cell]
            fires = np.flatnonzero(values)
            order = fires[np.argsort(-np.abs(values[fires]), kind="stable")]
            return {
                "cell": cell,
                "latents": latents[order].tolist(),
                "activations": values[order].astype(np.float64).tolist(),
                "complete": one is not None,
            }

    def map_of(self, key: str, layer: str, encoder: str, concept: str, latent: int) -> Row:
        """A latent's activations over the places of an image: map (h rows of w), and whether it is whole."""
        from mammosae_plugin.analysis.examples import example_maps

        with self._tables:
            _, _, table = self._at(layer, encoder)
            if not 0 <= latent < table.d_sae:
                raise NotThere(f"there are latents 0 to {table.d_sae - 1}, not {latent}")
            one = self._encoded.get((key, layer, encoder, concept))
            if one is not None:
                return {"latent": latent, "map": one.maps([latent])[0].tolist(), "whole": True}
            row = _row(key, table)
            split = str(table.images["split"].iloc[row])
            known = example_maps(table, latent, [row], split=split).get(row)
            if known is None:
                return {"latent": latent, "map": None, "whole": False}
            return {"latent": latent, "map": known[0].tolist(), "whole": known[1]}

    # Pixels

    def open(self, data: bytes, name: str, preparation: str = "") -> str:
        """Read a PNG or DICOM file that somebody sends; it is held in memory under the key that is returned.

        Raises:
            InputError: it is neither, or cannot be read; no settings say how images are prepared.
        """
        from mammosae_plugin.adapters.preprocessing import BadImageError
        from mammosae_plugin.study.shown_image import shown_file

        if preparation not in ("", "mammo-clip", "letterbox"):
            raise InputError(f"preparation is {preparation!r}; give mammo-clip or letterbox")
        with self._network:
            images = self._images
        told = Path(name).name[:120] or "file"
        try:
            with _in_memory(data) as path:
                shown = shown_file(path, images, preparation or None, name=told)
        except BadImageError as error:
            raise InputError(f"{told}: {error.reason}; give a PNG or DICOM file of one mammogram") from error
        key = f"{_OWN}{secrets.token_hex(8)}"
        with self._tables:
            _keep(self._files, key, shown, _FILES)
        return key

    def _file_of(self, key: str) -> "Shown":
        if key not in self._files:
            raise NotThere("that image is no longer in memory; open the file again")
        return self._files[key]

    def _gray(self, image_id: str) -> NDArray[np.uint8]:
        from mammosae_plugin.adapters.preprocessing import BadImageError

        with self._network:
            images, row = self._images, self._number_of.get(image_id)
        if row is None:
            raise NotThere(f"the data at {self._study.config.data.root} no longer hold the image {image_id}")
        try:
            found: NDArray[np.uint8] = images.gray(row)
        except (BadImageError, OSError) as error:
            said = error.reason if isinstance(error, BadImageError) else "cannot be read"
            raise NotThere(f"the picture of {image_id} cannot be shown: {said}") from error
        return found

    def picture(self, key: str, layer: str, encoder: str) -> bytes:
        """The image as the network sees it, in gray, as a PNG."""
        from PIL import Image

        if key.startswith(_OWN):
            pixels = self._file_of(key).gray
        else:
            with self._tables:
                table = self._at(layer, encoder)[2]
                image_id = str(table.images["image_id"].iloc[_row(key, table)])
            pixels = self._gray(image_id)
        image = Image.fromarray(pixels)
        if max(image.size) > LONGEST_SIDE:
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        return _bytes_of(image, "PNG")

    # Examples of a latent

    def examples(self, layer: str, encoder: str, latent: int) -> list[Row]:
        """Images that show what a latent stands for, as `analysis.examples.choose_examples` chooses them."""
        from mammosae_plugin.analysis.examples import choose_examples

        with self._tables:
            _, own, table = self._at(layer, encoder)
            if _TEST not in table.splits:
                return []
            concepts = [name for name in own.concepts if name in table.vocabulary]
            return [
                {
                    "kind": one.kind,
                    "rank": one.rank,
                    "activation": one.activation,
                    "quantile": one.quantile,
                    "classes": dict(one.classes),
                    "names": {name: list(table.vocabulary[name].classes) for name in one.classes},
                    "boxes": self._boxes(table, own, one.image),
                    "row": one.image,
                }
                for one in choose_examples(table, latent, split=_TEST, concepts=concepts)
            ]

    @staticmethod
    def _boxes(table: "LatentTable", encoder: Encoder, row: int) -> list[list[float]]:
        named = [one for one in encoder.concepts if one in table.concepts]
        return [box for one in named for box in table.boxes(row, one).tolist()]

    def drawn(self, layer: str, encoder: str, latent: int, row: int, part: str) -> bytes:
        """An example drawn: "whole" or "crop", as a WebP."""
        from mammosae_plugin.analysis.examples import example_maps
        from mammosae_plugin.visualization.examples import draw_example

        place = (layer, encoder, latent, row)
        if part not in ("whole", "crop"):
            raise NotThere(f"an example has the parts whole and crop, not {part!r}")
        if place not in self._drawn:
            with self._tables:
                _, own, table = self._at(layer, encoder)
                about = table.images.iloc[_row(str(row), table)]
                known = example_maps(table, latent, [row], split=str(about["split"])).get(row)
                boxes = self._boxes(table, own, row)
            pixels = self._gray(str(about["image_id"]))
            drawn = draw_example(pixels, None if known is None else known[0], boxes)
            crop = drawn.crop if drawn.crop is not None else drawn.whole
            made = {"whole": _bytes_of(drawn.whole, "WEBP"), "crop": _bytes_of(crop, "WEBP")}
            with self._tables:
                _keep(self._drawn, place, made, _DRAWN)
                return made[part]
        return self._drawn[place][part]

    # The network

    def network(self, key: str, layer: str, encoder: str, concept: str, off: Sequence[int]) -> Row:
        """What the network gives when some latents are removed at the layer, and all else stays: logits."""
        from mammosae_plugin.latents.one_image import logits_without

        with self._network:
            chosen, image, head, hooked = self._ready((key, layer, encoder, concept))
            hook, device = self._found().layer(layer).hook_name, self._study.config.device
            found = logits_without(hooked, chosen.sae, image, head, off, hook_name=hook, device=device)
        return {"logits": found.tolist()}

    def _ready(self, place: tuple[str, ...]) -> tuple["LayerStudy", Any, Any, Any]:
        """The layer, the image as input, the head and the network."""
        from mammosae_plugin.adapters.preprocessing import BadImageError
        from mammosae_plugin.study.finished import layer_of
        from mammosae_plugin.study.inputs import ModelPair
        from mammosae_plugin.study.shown_image import shown_row

        key, layer, encoder, concept = place
        found, own, table = self._at(layer, encoder)
        if concept not in own.concepts:
            raise NotThere(f"encoder {encoder} has no classifier of {concept}; it has {', '.join(own.concepts)}")
        study = self._study
        if layer not in self._layers:
            self._layers[layer] = layer_of(study, found, self._file)
        pair = ModelPair(own.model, concept)
        facts = study.facts(pair)
        assert facts.head is not None  # it has outputs
        hooked = study.hooked(pair)
        if key.startswith(_OWN):
            shown = self._file_of(key)
        else:
            image_id = str(table.images["image_id"].iloc[_row(key, table)])
            if (row := self._number_of.get(image_id)) is None:
                raise NotThere(f"the data at {study.config.data.root} no longer hold the image {image_id}")
            try:
                shown = shown_row(self._images, row)
            except BadImageError as error:
                raise NotThere(f"{image_id} cannot be read: {error.reason}") from error
        return self._layers[layer], facts.preprocessing(shown.pixels, shown.name), facts.head, hooked

    def _encode(self, place: tuple[str, ...]) -> None:
        from mammosae_plugin.latents.one_image import encode_image

        if place in self._encoded:
            return
        with self._network:
            found, _, table = self._at(place[1], place[2])
            if table.readout_kind != "linear":
                raise InputError(
                    f"layer {place[1]} is not the final map, where alone a logit is a sum over latents; of images of "
                    "the study what its table kept can be seen here"
                )
            chosen, image, head, hooked = self._ready(place)
            one = encode_image(
                hooked, chosen.sae, image, head, hook_name=found.hook_name, device=self._study.config.device
            )
        with self._tables:
            _keep(self._encoded, place, one, _ENCODED)


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)


@contextmanager
def _in_memory(data: bytes) -> Iterator[Path]:
    """The bytes as a file: one that only this process has in memory, or where the system has none such, a temporary."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        number = os.memfd_create("image")
        try:
            with os.fdopen(os.dup(number), "wb") as file:
                file.write(data)
            yield Path(f"/proc/self/fd/{number}")
        finally:
            os.close(number)
    else:
        with tempfile.TemporaryDirectory(prefix="mammosae-") as folder:
            path = Path(folder) / "image"
            path.write_bytes(data)
            yield path


def _bytes_of(image: "Image.Image", kind: str) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **({"quality": 90, "method": 2} if kind == "WEBP" else {"compress_level": 3}))
    return written.getvalue()


def _row(key: str, table: "LatentTable") -> int:
    row = _whole(key, "the image")
    if row >= len(table.images):
        raise NotThere(f"the table has the images 0 to {len(table.images) - 1}, not {row}")
    return row


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InputError(f"{name} is {text[:40]!r}; give a whole number")
    return int(text)


def _class(value: Any) -> int | None:
    return int(value) if value is not None and value == value and value >= 0 else None  # noqa: PLR0124 - NaN
