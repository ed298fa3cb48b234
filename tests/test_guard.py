"""The privacy guard: planted secrets of every kind are found, each rule is needed, and what is clean passes.

The staged folders are small and real: tables by the schema of the findings, an SAE that SAELens saved, a drawn figure.
"""

import base64
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import logging
import os
import re
import socket
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_findings import columns_of
from helpers_secrets import ASSIGNED, DATED, HARMLESS, NEAR_MISSES, SUSPECTS
from helpers_study import random_sae
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from safetensors.numpy import load_file, save_file

from mammosae_plugin.config import StudyConfig
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.datasets.about import KNOWN, DatasetAbout
from mammosae_plugin.errors import InputError
from mammosae_plugin.hub import policies
from mammosae_plugin.hub.guard import check_staged
from mammosae_plugin.privacy import guard
from mammosae_plugin.privacy import rules as guard_rules
from mammosae_plugin.privacy.guard import (
    RULES,
    PrivacyContext,
    PrivacyError,
    copy_figure,
    hash_ids,
    let_out,
    load_or_make_key,
)
from mammosae_plugin.privacy.search import Needles
from mammosae_plugin.schema.findings import SCHEMAS, names_of
from mammosae_plugin.training.settings import SAETraining
from mammosae_plugin.visualization import save_figure
from mammosae_plugin.visualization.output import record_figures

PATIENT, IMAGE, STUDY = "b8d273e8601f348d3664778dae0e7e0b", "d8125545210c08e1b1793a5af6458ee2.png", "1.2.840.99.4711"
SHORT, NUMBER = "P_00417", "462822612"
NUMBERS = "".join(f"{number / 7},{number},null,{number}e-05," for number in range(1, 9))  # as columns of a Space have
FIGURE = "figures/figure_4_finetuned_Mass.png"
USER, HOST = "jdoeson", "ws-radiology-17"
TOKEN = "hf_" + "aB3dE6gH9kL2mN5pQ8rS" + "tU"
LIVE = "correct-horse-battery"
KEY = b"0123456789abcdef0123456789abcdef"
CONTEXT = PrivacyContext(frozenset({PATIENT, IMAGE, IMAGE[:-4], STUDY, SHORT, NUMBER}), ("phantom",))


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: USER)
    monkeypatch.setattr(socket, "gethostname", lambda: f"{HOST}.clinic.example")
    monkeypatch.setenv("PACS_PASSWORD", LIVE)
    monkeypatch.setenv("HOME", f"/home/{USER}")


# -- clean folders -----------------------------------------------------------------------------------------------------

CONCEPT_ROW = {
    "concept": "Mass",
    "n_images": [30, 26],
    "class_means": [0.1, 0.4],
    "scores": [-0.3, 0.3],
    "ranks": [4, 1],
    "average_precision": 0.25,
    "ablation_effect": -0.02,
}
NOTE = {
    "author": "reader A",
    "text": "fires at dense masses with a halo",
    "label": "Mass",
    "concept": "Mass",
    "confidence": 4,
    "created": "2026-01-31T10:00:00+00:00",
}
PAIR = {"layer": "layer_10", "model": "finetuned", "concept": "Mass"}
METRICS = dict.fromkeys(names_of("reconstruction", "group"), 0.75)
VOCABULARY = [{"name": "Mass", "classes": ["absent", "present"]}, {"name": "density", "classes": ["A", "B", "C", "D"]}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "latents": [
        {
            "layer": "layer_10",
            "hook_name": "bn2.hook_out",
            "encoder": "finetuned",
            "latent": latent,
            "firing_rate": 0.5,
            "max_activation": 2.5,
            "mean_activation": 0.125,
            "concepts": [CONCEPT_ROW],
            "notes": [NOTE] if latent == 3 else [],
        }
        for latent in range(12)
    ],
    "interventions": [
        {**PAIR, "error_term": False, "mode": "activate", "k": k, "n_latents": k, "n_live": k, **METRICS}
        for k in (0, 10)
    ],
    "reconstruction": [{**PAIR, "variant": "with_sae", "n_rows": 56, "n_positive": 26, "n_patients": 28, **METRICS}],
    "localization": [
        {
            **PAIR,
            "method": "latent",
            "threshold": "percentile 95",
            "iou_threshold": 0.25,
            "rank": 1,
            "latent": 3,
            "n_images": 26,
            "n_boxes": 26,
            "n_predictions": 30,
            "average_precision": 0.25,
        }
    ],
    "names": [
        {"layer": "layer_10", "encoder": "finetuned", "latent": latent, "method": method, "name": name}
        | {"score": 0.95, "low": 0.8, "high": 0.99, "chance": 0.25, "p": 1e-5, "q": 1e-4, "n": 20}
        for latent, method, name in ((3, "labels", "Mass"), (4, "labels", "density=C"), (4, "model", "a bright spot"))
    ],
    "study": [
        {
            "format_version": 1,
            "title": "A study",
            "created": "2026-01-31",
            "data_kind": "phantom",
            "min_group": 5,
            "layers": ["layer_10"],
            "concepts": ["Mass"],
            "config": json.dumps({"data": {"image_size": [128, 96], "unit": "image"}, "ks": [0, 10]}),
            "provenance": json.dumps({"packages": {"torch": "2.15.0"}, "sha256": "9f" * 32}),
            "data": json.dumps({"vocabulary": VOCABULARY}),
            "models": "[]",
            "sae": json.dumps({"d_in": 8, "d_sae": 12}),
            "named_latents": "{}",
        }
    ],
    "examples": [
        {
            "image": hash_ids([IMAGE], KEY)[0],
            "patient": hash_ids([PATIENT], KEY)[0],
            "layer": "layer_10",
            "encoder": "finetuned",
            "latent": 3,
            "concept": "Mass",
            "label": 1,
            "heatmap": [[0.0, 0.5], [1.5, 0.25]],
        }
    ],
}


def parquet(folder: Path, config: str) -> Path:
    return folder / config / "train-00000-of-00001.parquet"


def table_of(config: str, rows: list[dict[str, Any]] | None = None) -> pa.Table:
    return pa.Table.from_pylist(rows or ROWS[config], schema=SCHEMAS[config])


def write_table(folder: Path, config: str, table: pa.Table, **settings: Any) -> None:
    parquet(folder, config).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, parquet(folder, config), **settings)


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    axes.plot(np.linspace(0, 1, 50) ** 2, label="latents")
    axes.scatter(np.linspace(0, 50, 400), np.random.default_rng(0).random(400), s=4)
    axes.legend()
    save_figure(figure, path, dpi=100)
    let_out(path)


FRONT_MATTER = "---\nlicense: cc-by-nc-sa-4.0\ntags:\n- sparse-autoencoder\n---\n"
README = FRONT_MATTER + (
    "# Findings of a study\n\nCite arXiv 2507.15227 (https://arxiv.org/abs/2507.15227). AUROC 0.812 to 0.934 over 56 "
    "images of 1520 x 912.\n\n```python\nfrom datasets import load_dataset\n"
    'load_dataset("someone/findings", "latents")\n```\n'
)


def make_sae(folder: Path) -> None:
    random_sae(8, 12).save_model(folder / "layer_10")
    (folder / "README.md").write_text(README)
    (folder / "layer_10" / "training.json").write_text(json.dumps({"steps": 13, "config": {"lr": 0.001, "k": None}}))
    (folder / "layer_10" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.5}\n')
    (folder / "layer_10" / "evaluation.json").write_text(json.dumps({"concept": "Mass", "n_images": 24, "auroc": 0.8}))
    draw(folder / "layer_10" / "metrics.png")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "mass.yaml").write_text("- value: 0.8\n  notes: test split of the phantoms\n")


def make_findings(folder: Path, *, examples: bool = False) -> None:
    for config in ROWS:
        if config != "examples" or examples:
            write_table(folder, config, table_of(config))
    (folder / "README.md").write_text(README)
    draw(folder / FIGURE)


def make_space(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    pages = Path(guard_rules.__file__).parents[1] / "hub_cards" / "space"
    for page in pages.iterdir():
        if page.suffix in (".html", ".css", ".js"):
            (folder / page.name).write_bytes(page.read_bytes())
    (folder / "README.md").write_text(FRONT_MATTER.replace("tags", "sdk: static\ntags") + "A page\n")
    (folder / "data").mkdir()
    (folder / "data" / "latents.js").write_text(
        'window.MAMMOSAE_LATENTS = {"n_images": [30, 26], "rate": 0.5, "rows": [[3, 0.5, "Mass"]]};\n'
    )


MAKERS: dict[str, Callable[[Path], None]] = {
    "sae": make_sae,
    "findings": make_findings,
    "examples": functools.partial(make_findings, examples=True),
    "space": make_space,
}


def kind_of(base: str) -> str:
    return "findings" if base == "examples" else base


def check(base: str, folder: Path, context: PrivacyContext = CONTEXT) -> None:
    check_staged(folder, kind_of(base), context, repo_id=f"{USER}/findings")


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for base, make in MAKERS.items():
        folders[base] = tmp_path_factory.mktemp(base)
        make(folders[base])
    return folders


def copy_of(folder: Path, target: Path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(folder)).write_bytes(file.read_bytes())
    return target


DECIDED = ("paths", "clinical", "contacts", "parts of ids")
"""The rules that show what they found, for a person to decide."""


# -- canaries ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Canary:
    """A secret planted into a clean folder.

    Attributes:
        name: what it is.
        base: the folder it is planted into.
        plant: plants it.
        rule: a rule that must object.
        secret: what the message must not say.
        context: what is known to the guard.
    """

    name: str
    base: str
    plant: Callable[[Path], None]
    rule: str
    secret: str = ""
    context: PrivacyContext = CONTEXT


def says(text: str) -> Callable[[Path], None]:
    """Add a line to the README."""
    return lambda folder: appends(folder / "README.md", f"\n{text}\n".encode())


def appends(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def noted(text: str, field: str = "text") -> Callable[[Path], None]:
    """A reader's note in the table of latents."""

    def plant(folder: Path) -> None:
        rows = [{**row, "notes": [{**NOTE, field: text}] if row["latent"] == 5 else []} for row in ROWS["latents"]]
        write_table(folder, "latents", table_of("latents", rows))

    return plant


def configured(value: dict[str, Any]) -> Callable[[Path], None]:
    """An entry in the config of the study, which is JSON in a column."""

    def plant(folder: Path) -> None:
        write_table(folder, "study", table_of("study", [{**ROWS["study"][0], "config": json.dumps(value)}]))

    return plant


def shows_an_image(folder: Path) -> None:
    """A picture as the stager writes them, where nobody asked for any."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "gray").save(buffer, "WEBP")
    name = hashlib.sha256(buffer.getvalue()).hexdigest()[:32]
    (folder / "pictures").mkdir()
    (folder / "pictures" / f"{name}.webp").write_bytes(buffer.getvalue())


def row_with(config: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: write_table(folder, config, table_of(config, [{**ROWS[config][0], **values}]))


def with_column(config: str, name: str, values: Any) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        table = table_of(config)
        write_table(folder, config, table.append_column(name, pa.array([values] * len(table))))

    return plant


def with_metadata(metadata: dict[str, str]) -> Callable[[Path], None]:
    return lambda folder: write_table(folder, "latents", table_of("latents").replace_schema_metadata(metadata))


def metadata_of_a_field(folder: Path) -> None:
    table = table_of("study")
    write_table(
        folder, "study", table.cast(table.schema.set(1, table.schema.field(1).with_metadata({"by": "Dr. Who"})))
    )


def pandas_index(folder: Path) -> None:
    frame = pd.DataFrame(ROWS["localization"], index=pd.Index([SHORT], name="case"))
    frame.to_parquet(parquet(folder, "localization"))


def pandas_attributes(folder: Path) -> None:
    frame = pd.DataFrame(ROWS["localization"])
    frame.attrs["reader"] = "Dr. Who"
    frame.to_parquet(parquet(folder, "localization"), index=False)


def unused_category(folder: Path) -> None:
    """A column of categories keeps those that no row has any more: pandas users publish such lists without knowing."""
    table = table_of("reconstruction")
    codes = pa.DictionaryArray.from_arrays(pa.array([0]), pa.array(["finetuned", SHORT]))
    number = table.schema.get_field_index("model")
    write_table(folder, "reconstruction", table.set_column(number, "model", codes), store_schema=False)


def value_under_null(folder: Path) -> None:
    """Lists that are null may keep their old values in memory, but parquet drops them: so a null row is clean."""
    table = table_of("reconstruction")
    dictionary = pa.DictionaryArray.from_arrays(pa.array([None], pa.int8()), pa.array([SHORT]))
    number = table.schema.get_field_index("variant")
    write_table(folder, "reconstruction", table.set_column(number, "variant", dictionary))


def between_columns(folder: Path) -> None:
    """Bytes in front of a parquet file's footer, which no reader of the table sees."""
    path = parquet(folder, "study")
    data = path.read_bytes()
    (footer,) = struct.unpack("<I", data[-8:-4])
    path.write_bytes(data[: -8 - footer] + b"Dr. Who, room 5" + data[-8 - footer :])


def png_with(chunk: bytes, data: bytes, *, at_end: bool = False) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / FIGURE
        before = path.read_bytes()
        added = struct.pack(">I", len(data)) + chunk + data + struct.pack(">I", zlib.crc32(chunk + data))
        path.write_bytes(before + added if at_end else before[:33] + added + before[33:])

    return plant


def exif(folder: Path) -> None:
    path = folder / FIGURE
    image = Image.open(path).convert("RGB")
    facts = Image.Exif()
    facts[0x0110] = "Mammomat 3000"  # the camera's model
    image.save(path, exif=facts)


def xmp(folder: Path) -> None:
    path = folder / FIGURE
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta><dc:creator>Dr. Who</dc:creator></x:xmpmeta>")
    Image.open(path).convert("RGB").save(path, pnginfo=info)


def icc(folder: Path) -> None:
    path = folder / FIGURE
    Image.open(path).convert("RGB").save(path, icc_profile=b"monitor of reading room 5" * 4)


def mammogram(height: int = 200, width: int = 140) -> np.ndarray:
    """Something with the texture of tissue."""
    noise = np.random.default_rng(0).normal(size=(height, width))
    smooth = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3
    return np.clip(110 + 40 * smooth, 0, 255).astype(np.uint8)


def photograph(mode: str = "L", step: int = 1, scale: int = 1, spread: int = 1) -> Callable[[Path], None]:
    """A mammogram in place of a figure, in a form that does not look like one."""

    def plant(folder: Path) -> None:
        pixels = np.kron(mammogram() // step * step, np.ones((scale, scale), np.uint8))
        if spread > 1:
            drawn = np.full(np.array(pixels.shape) * spread, 255, np.uint8)
            drawn[::spread, ::spread] = pixels
            pixels = drawn
        if mode == "LA":
            white = np.full_like(pixels, 255)
            image = Image.merge("LA", (Image.fromarray(white), Image.fromarray(pixels)))
        elif mode == "I;16":
            image = Image.fromarray(pixels.astype(np.uint16))
        else:
            image = Image.fromarray(pixels)
            if mode == "P":
                image = image.convert("P")
                image.putpalette([255] * 768)
        image.save(folder / FIGURE)

    return plant


def thumbnail(folder: Path) -> None:
    """A figure with a mammogram in its corner."""
    path = folder / FIGURE
    pixels = np.array(Image.open(path).convert("RGB"))
    pixels[20:84, 20:84] = mammogram(64, 64)[..., None]
    Image.fromarray(pixels).save(path)


def figure_3(folder: Path) -> None:
    draw(folder / "figures" / "figure_3_finetuned_Mass.png")


def tensor(name: str, array: np.ndarray, metadata: dict[str, str] | None = None) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / "layer_10" / "sae_weights.safetensors"
        tensors = load_file(path)
        tensors[name] = array
        save_file(tensors, path, metadata)

    return plant


def weights_that_spell(text: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / "layer_10" / "sae_weights.safetensors"
        tensors = load_file(path)
        data = text.encode().ljust(tensors["b_enc"].nbytes, b"\0")[: tensors["b_enc"].nbytes]
        save_file({**tensors, "b_enc": np.frombuffer(data, np.float32)}, path)

    return plant


def in_json(name: str, value: dict[str, Any]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / "layer_10" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **value}))

    return plant


def in_yaml(line: str) -> Callable[[Path], None]:
    return lambda folder: appends(folder / ".eval_results" / "mass.yaml", line.encode())


def in_data(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "data" / "latents.js").write_text(text) and None


def another_file(name: str, data: bytes) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return plant


def encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


B64 = base64.b64encode
THUMBNAIL = mammogram(48, 32)
ID = "private values"
CANARIES = [
    # ids, in the open and in disguise
    Canary("patient id in the README", "findings", says(f"seen in {PATIENT} too"), ID, PATIENT),
    Canary("patient id in capitals", "findings", says(PATIENT.upper()), ID, PATIENT.upper()),
    Canary("image id in a note", "findings", noted(f"best seen in {IMAGE}"), ID, IMAGE),
    Canary("short id as part of a name", "findings", noted(f"view_{SHORT}_left"), ID, SHORT),
    Canary("number of an image", "findings", noted(f"case {NUMBER}"), ID, NUMBER),
    Canary(
        "number of an image as a number", "findings", row_with("localization", n_predictions=int(NUMBER)), ID, NUMBER
    ),
    Canary("number of an image as a float", "sae", in_json("evaluation.json", {"x": float(NUMBER)}), ID, NUMBER),
    Canary("id in the config", "findings", configured({"title": SHORT}), ID, SHORT),
    Canary("id as a JSON key", "sae", in_json("training.json", {SHORT: 1}), ID, SHORT),
    Canary("id in escaped JSON", "findings", noted("\\u0050_00417"), ID, SHORT),
    Canary("id in SAELens's metadata", "sae", in_json("cfg.json", {"metadata": {"note": PATIENT}}), ID, PATIENT),
    Canary(
        "id in JSON lines", "sae", lambda f: appends(f / "layer_10/metrics.jsonl", b'{"of": "P_00417"}\n'), ID, SHORT
    ),
    Canary("id in YAML", "sae", in_yaml(f"- notes: {SHORT}\n"), ID, SHORT),
    Canary("id in a comment of YAML", "sae", in_yaml(f"# {SHORT}\n"), ID, SHORT),
    Canary("id as a file's name", "findings", lambda f: draw(f / f"figures/figure_4_{PATIENT}.png"), ID, PATIENT),
    Canary("id as an SAE's name", "sae", lambda f: (f / "layer_10").rename(f / SHORT) and None, ID, SHORT),
    Canary("id in the Space's data", "space", in_data(f'window.X = {{"a": "{SHORT}"}};'), ID, SHORT),
    *(
        Canary(
            f"id among a column's numbers as {what}",
            "space",
            in_data(f'window.X = {{"a": [{NUMBERS}{text}{NUMBERS}1]}};'),
            ID,
            of,
        )
        for what, text, of in (
            ("a number", f"{NUMBER},", NUMBER),
            ("a number with a fraction", f"{NUMBER}.5,", NUMBER),
            ("a text", f'"{SHORT}",', SHORT),
            ("a text of digits", f'"{NUMBER}",', NUMBER),
        )
    ),
    Canary("id in JavaScript's escapes", "space", in_data('window.X = ["\\u0050_0\\u0030417"];'), ID, SHORT),
    Canary("id in base64", "findings", noted(B64(f"see {PATIENT}".encode()).decode()), ID, PATIENT),
    Canary("short id in base64", "findings", noted(B64(f"patient {SHORT}".encode()).decode()), ID, SHORT),
    Canary("id in hexadecimal", "findings", noted(f"view {SHORT}!".encode().hex()), ID, SHORT),
    Canary("id in percent escapes", "findings", says("".join(f"%{b:02x}" for b in SHORT.encode())), ID, SHORT),
    Canary("id in HTML entities", "findings", says("".join(f"&#{b};" for b in SHORT.encode())), ID, SHORT),
    Canary("id with invisible letters", "findings", says("\u200b".join(SHORT)), ID, SHORT),
    Canary("id in full-width letters", "findings", says("".join(chr(0xFEE0 + ord(c)) for c in NUMBER)), ID, NUMBER),
    Canary("id in gzip in base64", "findings", noted(B64(gzip.compress(SHORT.encode())).decode()), ID, SHORT),
    Canary("id in base64 twice", "findings", noted(B64(B64(f"see {SHORT}.".encode())).decode()), ID, SHORT),
    Canary("unkeyed SHA-256 of an id", "findings", noted(hashlib.sha256(PATIENT.encode()).hexdigest()), ID),
    Canary("unkeyed MD5 of an id", "findings", noted(hashlib.md5(SHORT.encode()).hexdigest()), ID),
    Canary("start of an unkeyed SHA-1", "findings", noted(hashlib.sha1(IMAGE[:-4].encode()).hexdigest()[:20]), ID),
    Canary("id in the bytes of a weight", "sae", weights_that_spell(PATIENT), ID, PATIENT),
    Canary("id in UTF-16 in the weights", "sae", weights_that_spell("\0".join(SHORT + "x")), ID, SHORT),
    Canary("id in pixels", "findings", lambda f: spelled_pixels(f, PATIENT), "figures", PATIENT),
    Canary("unused category", "findings", unused_category, ID, SHORT),
    *(
        Canary(f"id with {what}", "findings", noted(f"seen in {text} too"), ID, text)
        for what, text in {
            "a dash": "P-00417",
            "a space": "P 00417",
            "no separator": "P00417",
            "an en dash": "P–00417",
            "a dash between spaces": "P — 00417",
            "an ellipsis": "P…00417",
            "three dots": "P...00417",
            "the dashes of a UUID": "-".join(
                (PATIENT[:8], PATIENT[8:12], PATIENT[12:16], PATIENT[16:20], PATIENT[20:])
            ),
            "a line break": f"{PATIENT[:16]}\n{PATIENT[16:]}",
            "spaces": " ".join(PATIENT[i : i + 4] for i in range(0, 32, 4)),
            "half of its digits": PATIENT[:16],
            "a variation selector": f"{PATIENT[:5]}\ufe0f{PATIENT[5:]}",
            "an override of direction": f"{SHORT[:3]}\u202e{SHORT[3:]}",
            "tag characters inside": f"{SHORT[:3]}\U000e0041{SHORT[3:]}",
            "tag characters alone": "".join(chr(0xE0000 + ord(letter)) for letter in SHORT),
        }.items()
    ),
    *(
        Canary(f"{what} of an id", "findings", noted(f"as in {text}, left"), "parts of ids", text)
        for what, text in {
            "first 8 digits": PATIENT[:8],
            "last 8 digits": PATIENT[-8:],
            "first 10 digits, in capitals,": IMAGE[:10].upper(),
            "last 8 digits, after a word,": f"view_{IMAGE[24:32]}",
            "first 8 digits, with a dash,": f"{PATIENT[:4]}-{PATIENT[4:8]}",
            "first 8 digits, with colons,": ":".join(PATIENT[i : i + 2] for i in range(0, 8, 2)),
            "first half of its digits, with an ellipsis,": f"{PATIENT[:4]}…{PATIENT[4:16]}",
            "first 8 digits, with an ellipsis,": f"{PATIENT[:4]}…{PATIENT[4:8]}",
            "first 9 digits, with dots,": f"{PATIENT[:4]}...{PATIENT[4:9]}",
            "last 9 digits, with spaces,": f"{IMAGE[23:28]} {IMAGE[28:32]}",
        }.items()
    ),
    # DICOM
    Canary("DICOM UID", "findings", noted("1.3.6.1.4.1.5962.99.1.2280943358.716200484"), "clinical", "5962.99"),
    Canary("known study UID", "findings", says(STUDY), ID, STUDY),
    Canary("DICOM tag", "findings", says("(0010,0010) PN"), "clinical"),
    Canary("DICOM attribute", "findings", configured({"x": "ReferringPhysicianName"}), "clinical"),
    Canary("person in DICOM's form", "findings", noted("DOE^JANE"), "clinical", "DOE^JANE"),
    Canary("DICOM file", "findings", noted("see IM0001.dcm"), "clinical"),
    Canary("DICOM JSON", "sae", in_json("training.json", {"00100020": "x"}), "clinical"),
    Canary("labelled id that nobody listed", "findings", noted("Patient ID: 88213"), "clinical", "88213"),
    Canary("date of birth", "findings", noted("DOB 1961-03-04"), "clinical", "1961"),
    *(
        Canary(text, "findings", noted(f"as in {text} here"), "clinical", text)
        for text in (
            *("MRN 00123456", "MRN:00123456", "mrn=1234567", "accession no. 4711", "Patienten-ID: 4711"),
            *("patient 4711", "Pat.-ID 4711", "case id 4711", "PID 4711", "Nguyễn^Thị", "Müller^Eva", "miller^mary"),
            *("born on 4 March 1961", "born March 4, 1961", "born in 1961", "geb. 04.03.1961"),
        )
    ),
    Canary("name in metadata", "sae", in_json("cfg.json", {"metadata": {"model_name": "Nguyễn^Thị"}}), "clinical"),
    # this machine, paths, people
    Canary("path on Unix", "findings", configured({"root": "/mnt/pacs/export"}), "paths", "/mnt/pacs"),
    Canary("unusual path", "findings", configured({"root": "/radiology5/x"}), "paths", "/radiology5"),
    Canary("path under home", "findings", says("made in ~/vindr/png"), "paths", "~/vindr"),
    Canary("path on Windows", "findings", says(r"made in D:\Mammo\export"), "paths", "Mammo"),
    Canary("path on a Windows share", "findings", says(r"made in \\pacs01\export"), "paths", "pacs01"),
    Canary("file://", "findings", says("[data](file:///srv7/x)"), "paths", "srv7"),
    Canary("path in percent escapes", "findings", says(quote("/home/x/data", safe="")), "paths"),
    Canary("path in JavaScript", "space", in_data('window.X = ["\\/home\\/x\\/y"];'), "paths"),
    Canary("bucket", "findings", says("s3://hospital-five/png"), "paths", "hospital-five"),
    *(
        Canary(f"address {text}", "findings", says(f"read from {text} yesterday"), "paths", text)
        for text in ("/scans/a.png", "/pacs2/x", "az://b/x", "minio://b/x")
    ),
    *(
        Canary(f"call {text}", "findings", noted(f"call {text}!"), "contacts", text)
        for text in ("+493012345678", "617-555-0199", "(617) 555-0199", "030 1234567", "+49 (0)30 123456")
    ),
    *(
        Canary(f"token {text[:5]}", "findings", noted(f"use {text}"), "secrets", text)
        for text in ("ASIA" + "Q7" * 8, "ya29." + "a0Af_" * 5, "npm_" + "aB3" * 12, "pwd=hunter22")
    ),
    Canary("user name", "findings", noted(USER, "author"), "this machine", USER),
    Canary("host name", "findings", says(f"computed on {HOST.upper()}"), "this machine", HOST.upper()),
    Canary("user name in base64", "findings", says(B64(f"by {USER} today".encode()).decode()), "this machine", USER),
    Canary("e-mail address", "findings", noted("jane.doe@clinic.example", "author"), "contacts", "jane.doe"),
    Canary("phone number", "findings", noted("call +49 351 458 4711"), "contacts", "458"),
    Canary("local address", "findings", says("from 192.168.17.4"), "contacts", "192.168.17"),
    # secrets
    Canary("Hub token", "findings", says(f"`{TOKEN}`"), "secrets", TOKEN),
    Canary("Hub token in YAML", "sae", in_yaml(f"- notes: {TOKEN}\n"), "secrets", TOKEN),
    Canary("GitHub token", "findings", noted("ghp_" + "0Aa" * 12), "secrets", "0Aa0Aa"),
    Canary("cloud key", "findings", noted("AKIA" + "Q7" * 8), "secrets", "Q7Q7"),
    Canary("private key", "findings", says("-----BEGIN OPENSSH PRIVATE KEY-----"), "secrets"),
    Canary("password in an address", "findings", says("https://reader:hunter22@pacs.example/x"), "secrets", "hunter22"),
    Canary("a password of this process", "findings", noted(f"it says {LIVE}"), "secrets", LIVE),
    Canary("a password in the weights", "sae", weights_that_spell(LIVE), "secrets", LIVE),
    # files
    Canary("a mammogram", "findings", another_file("images/a.dcm", b"\0" * 128 + b"DICM"), "file names"),
    Canary("a hidden file", "sae", another_file(".cache", b"x"), "file names"),
    Canary(
        "another config", "findings", lambda f: parquet(f, "study").parent.rename(f / "people") and None, "file names"
    ),
    Canary(
        "compressed data under the name of text",
        "sae",
        lambda f: appends(f / "README.md", gzip.compress(b"x")),
        "formats",
    ),
    Canary("bytes behind JSON", "sae", lambda f: appends(f / "layer_10/training.json", b"\n{}"), "formats"),
    Canary("a key twice in YAML", "sae", in_yaml("- value: 0.8\n  notes: a\n  notes: b\n"), "formats"),
    Canary("a key twice", "sae", another_file("layer_10/training.json", b'{"a": 1, "a": 2}'), "formats"),
    Canary("bytes behind an image", "findings", lambda f: appends(f / FIGURE, b"Dr. Who"), "figures"),
    Canary("bytes in front of a footer", "findings", between_columns, "formats"),
    Canary(
        "bytes behind the tensors",
        "sae",
        lambda f: appends(f / "layer_10/sae_weights.safetensors", b"Dr. Who"),
        "formats",
    ),
    # images
    Canary("text in a PNG", "findings", png_with(b"tEXt", b"Author\0Dr. Who"), "figures", "Who"),
    Canary(
        "packed text in a PNG",
        "findings",
        png_with(b"zTXt", b"Author\0\0" + zlib.compress(SHORT.encode())),
        "figures",
    ),
    Canary("time in a PNG", "findings", png_with(b"tIME", b"\x07\xea\x01\x02\x03\x04\x05"), "figures"),
    Canary("unknown chunk in a PNG", "findings", png_with(b"prVt", b"anything"), "figures"),
    Canary("EXIF", "findings", exif, "figures", "Mammomat"),
    Canary("XMP", "findings", xmp, "figures", "Who"),
    Canary("colour profile", "findings", icc, "figures"),
    Canary("mammogram as a figure", "findings", lambda f: Image.fromarray(mammogram()).save(f / FIGURE), "figures"),
    Canary("thumbnail in a figure", "findings", thumbnail, "figures"),
    *(
        Canary(f"mammogram {how}", "findings", photograph(**settings), "figures")
        for how, settings in {
            "of 16 bits": {"mode": "I;16"},
            "in the alpha channel": {"mode": "LA"},
            "as indices of a palette": {"mode": "P"},
            "in four greys": {"step": 64},
            "enlarged": {"scale": 8},
            "of one pixel in 64": {"spread": 8},
        }.items()
    ),
    Canary("heatmaps over mammograms", "findings", figure_3, "figures"),
    # tables
    Canary("column of pixels", "findings", with_column("latents", "pixels", [1, 2, 3]), "columns"),
    Canary("column of ids", "findings", with_column("reconstruction", "patient_id", "anyone"), "columns"),
    Canary("column of bytes", "findings", with_column("reconstruction", "thumb", b"\x89PNG"), "columns"),
    Canary(
        "text where numbers belong",
        "findings",
        lambda f: replaced(f, "localization", "n_boxes", pa.array(["Dr. Who"])),
        "columns",
        "Who",
    ),
    Canary(
        "bytes where text belongs",
        "findings",
        lambda f: replaced(f, "localization", "method", pa.array([b"\x89PN"])),
        "columns",
    ),
    Canary("key-value metadata", "findings", with_metadata({"made_by": "Dr. Who"}), "table metadata", "Who"),
    Canary("metadata of a column", "findings", metadata_of_a_field, "table metadata", "Who"),
    Canary("index of pandas", "findings", pandas_index, "table metadata", SHORT),
    Canary("attributes of pandas", "findings", pandas_attributes, "table metadata", "Who"),
    Canary(
        "metadata of tensors",
        "sae",
        lambda f: tensor("b_enc", np.zeros(12, np.float32), {"by": "Dr. Who"})(f),
        "tensors",
        "Who",
    ),
    Canary("another tensor", "sae", tensor("image", np.zeros((8, 12), np.float32)), "tensors"),
    Canary("pixels as a bias", "sae", tensor("b_enc", mammogram(64, 64).astype(np.float32)), "tensors"),
    Canary("bytes as a weight", "sae", tensor("b_mag", mammogram(12, 12)[0]), "tensors"),
    # JSON
    Canary("an entry about a patient", "findings", configured({"quarantine": [{"image_id": "anyone"}]}), "keys"),
    Canary("an entry about a person", "sae", in_json("training.json", {"username": "anyone"}), "keys"),
    Canary("an entry about a person in a page", "space", in_data('window.X = {"username": "anyone"};'), "keys"),
    *(
        Canary(f"{key} in {name}", "sae", in_json(name, {key: value}), "entries")
        for name, key, value in (
            *(("cfg.json", "run_name", "jane-run"), ("training.json", "performed_by", "Jane Miller")),
            *(
                ("training.json", "birth_year", 61),
                ("training.json", "slurm_user", "jm"),
                ("training.json", "zip", "2"),
            ),
            ("evaluation.json", "scores", [{"score": 0.5, "file_no": 1}]),
        )
    ),
    Canary(
        "an entry of SAELens's metadata", "sae", in_json("cfg.json", {"metadata": {"rel": "runs/jane/x"}}), "entries"
    ),
    Canary(
        "an entry in JSON lines",
        "sae",
        lambda f: appends(f / "layer_10/metrics.jsonl", b'{"step": 1, "scan": "x"}\n'),
        "entries",
    ),
    Canary("an entry of provenance", "sae", another_file("layer_10/provenance.json", b'{"run_by": "jm"}'), "entries"),
    Canary("an entry of YAML", "sae", in_yaml("- run_by: jm\n"), "entries"),
    Canary(
        "an entry of front matter",
        "findings",
        lambda f: (f / "README.md").write_text(README.replace("tags:", "reader: jm\ntags:")) and None,
        "entries",
    ),
    Canary("an entry of a study's config", "findings", configured({"data": {"made_by": "jm"}}), "entries"),
    Canary("an entry in a note", "findings", noted('{"scan": "x"}'), "entries"),
    *(
        Canary(
            f"an image as {what}", "sae", in_json("training.json", {"config": {"matryoshka_widths": value}}), "numbers"
        )
        for what, value in {
            "floats": (THUMBNAIL / 255).round(3).ravel().tolist(),
            "large integers": (THUMBNAIL.astype(int) + 1000).ravel().tolist(),
            "rows": [[*map(float, row), None] for row in THUMBNAIL],
            "ragged rows": [row[: 31 + i % 2].tolist() for i, row in enumerate(THUMBNAIL)],
            "a text": " ".join(map(str, THUMBNAIL.ravel())),
            "digits": "".join(map("{:03}".format, THUMBNAIL.ravel())),
        }.items()
    ),
    Canary(
        "an image in short lists", "findings", configured({"ks": {f"k{i}": [i] * 40 for i in range(40)}}), "numbers"
    ),
    Canary("an image in a note", "findings", noted(" ".join(map(str, THUMBNAIL.ravel()[:300]))), "numbers"),
    Canary("an image in JSON", "findings", configured({"x": mammogram(16, 16).tolist()}), "pixels"),
    Canary(
        "a flat image in the Space", "space", in_data(f"window.X = {mammogram(20, 20).ravel().tolist()};"), "pixels"
    ),
    Canary("an image in the README", "findings", says("![x](data:image/png;base64,AAAA)"), "pixels"),
    Canary("a block of base64", "sae", in_json("training.json", {"x": B64(os.urandom(300)).decode()}), "pixels"),
    Canary(
        "a map as fine as an image", "examples", row_with("examples", heatmap=np.zeros((96, 64)).tolist()), "pixels"
    ),
    Canary(
        "a picture as scores",
        "findings",
        row_with("latents", concepts=[{**CONCEPT_ROW, "scores": [0.5] * 400}]),
        "pixels",
    ),
    # rows per image, small groups, code
    *(Canary(f"an image in {base}", base, shows_an_image, "pictures") for base in ("findings", "space")),
    Canary("ids as they are", "examples", row_with("examples", image="anyone", patient="anyone"), "keyed hashes"),
    Canary("VinDr's rows", "examples", lambda f: None, "per-image rows", context=replace(CONTEXT, datasets=("vindr",))),
    Canary(
        "RSNA's rows",
        "examples",
        lambda f: None,
        "per-image rows",
        context=replace(CONTEXT, datasets=("phantom", "rsna")),
    ),
    Canary("nobody's rows", "examples", lambda f: None, "per-image rows", context=replace(CONTEXT, datasets=())),
    Canary(
        "another licence",
        "examples",
        lambda f: None,
        "per-image rows",
        context=replace(CONTEXT, datasets=("vindr",), licence="MIT"),
    ),
    Canary(
        "a class of four images",
        "findings",
        row_with("latents", concepts=[{**CONCEPT_ROW, "n_images": [30, 4]}]),
        "small groups",
    ),
    Canary("four patients", "findings", row_with("reconstruction", n_patients=4), "small groups"),
    Canary(
        "interventions on three positives",
        "findings",
        row_with("reconstruction", n_positive=3, **dict.fromkeys(METRICS)),
        "small groups",
    ),
    Canary("average precision of two images", "findings", row_with("localization", n_images=2), "small groups"),
    Canary(
        "four negatives in an evaluation",
        "sae",
        in_json("evaluation.json", {"n_rows": 30, "n_positive": 26}),
        "small groups",
    ),
    Canary("a name of three images", "findings", row_with("names", n=3), "small groups"),
    Canary("a name of nobody knows how many", "findings", row_with("names", n=None), "small groups"),
    Canary("named after a site", "findings", row_with("names", name="site=Haus Mohn"), "names of metadata"),
    Canary("named after an age", "findings", row_with("names", name="age up to 47"), "names of metadata"),
    Canary("named with an id", "findings", row_with("names", method="model", name=PATIENT), "private values"),
    Canary("named with a number", "findings", row_with("names", method="model", name="patient 88213"), "clinical"),
    Canary("another script", "space", another_file("track.js", b"fetch('https://example.org')"), "own code"),
    Canary("a changed page", "space", lambda f: appends(f / "index.html", b"<img src=//example.org/x>"), "own code"),
]


def replaced(folder: Path, config: str, column: str, values: pa.Array) -> None:
    table = table_of(config)
    write_table(folder, config, table.set_column(table.schema.get_field_index(column), column, values))


def spelled_pixels(folder: Path, text: str) -> None:
    """An image whose pixels are the letters."""
    path = folder / FIGURE
    pixels = np.full((60, 60), 255, np.uint8)
    pixels[0, : len(text)] = np.frombuffer(text.encode(), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def planted(clean: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for canary in CANARIES:
        folders[canary.name] = copy_of(clean[canary.base], tmp_path_factory.mktemp("canary"))
        canary.plant(folders[canary.name])
    return folders


@pytest.mark.parametrize("base", MAKERS)
def test_a_clean_folder_passes_with_size_and_digest_of_every_file(base: str, clean: dict[str, Path]) -> None:
    files = check_staged(clean[base], kind_of(base), CONTEXT, repo_id=f"{USER}/findings")
    assert [file.path for file in files] == sorted(
        p.relative_to(clean[base]).as_posix() for p in clean[base].rglob("*") if p.is_file()
    )
    for file in files:
        data = (clean[base] / file.path).read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_no_planted_secret_gets_through(canary: Canary, planted: dict[str, Path]) -> None:
    folder = planted[canary.name]
    with pytest.raises(PrivacyError) as refused:
        check(canary.base, folder, canary.context)
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith("Nothing was sent")
    assert canary.rule in message
    if f"rule '{canary.rule}'" in message and canary.rule in DECIDED:
        assert "--allow" in message
    else:
        assert not canary.secret or canary.secret.lower() not in message.lower()


def test_names_of_a_column_leave_where_the_study_shares_it(clean: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(clean["findings"], tmp_path)
    row_with("names", name="site=Haus Mohn")(folder)
    with pytest.raises(PrivacyError, match="names of metadata"):
        check("findings", folder)
    for names in ({"share": ["site"]}, {"share": [], "by_labels": {"labels": ["site"]}}):
        configured({"analysis": {"names": names}})(folder)
        check("findings", folder)


def test_the_canaries_are_of_more_than_thirty_kinds_and_every_rule_has_some() -> None:
    assert len({canary.name for canary in CANARIES}) == len(CANARIES) >= 100
    assert {canary.rule for canary in CANARIES} == {rule.name for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_with_a_rule_switched_off_some_secret_gets_through(
    rule: guard.Rule, planted: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "RULES", tuple(other for other in RULES if other is not rule))
    assert any(passes(canary, planted[canary.name]) for canary in CANARIES if canary.rule == rule.name)


def passes(canary: Canary, folder: Path) -> bool:
    try:
        check(canary.base, folder, canary.context)
    except PrivacyError:
        return False
    return True


# -- what else the check says ------------------------------------------------------------------------------------------


def test_the_schema_of_the_findings_is_within_the_allow_list_and_the_list_is_no_wider() -> None:
    allowed = policies.FINDINGS.leaves
    assert set(allowed) == set(SCHEMAS)
    for config, columns in allowed.items():
        inner = {column.partition(".")[0] for column in columns if "." in column}
        assert set(columns) == set(columns_of(config)) - inner
        assert all(column.privacy != "secret" for column in columns.values())


def test_a_link_or_an_empty_folder_is_refused(clean: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="empty"):
        check_staged(tmp_path, "sae", CONTEXT)
    with pytest.raises(PrivacyError, match="no staged folder"):
        check_staged(tmp_path / "absent", "sae", CONTEXT)
    folder = copy_of(clean["sae"], tmp_path / "linked")
    (folder / "README.md").rename(tmp_path / "README.md")
    (folder / "README.md").symlink_to(tmp_path / "README.md")
    with pytest.raises(PrivacyError, match="a link"):
        check_staged(folder, "sae", CONTEXT)


@pytest.mark.parametrize(
    "text",
    [
        "patient-level splits, 400 patients and patients 400; 12 patients, 3 per patient",
        "doi 10.1038/s41597-023-02100-7, arXiv 2507.15227v2, ISBN 978-3-16-148410-0, version 6.54.12",
        "latents 13867, 202 and 9; AUROC 0.812 (0.790 to 0.834); R^d, x^2, W^T and 1e+10; km/h, and/or, w/o",
        "cc-by-nc-sa-4.0, https://example.org/a/b/c?x=1, git+https://example.org/a, hub://owner/name@v1/layer_10",
        "image 1520 x 912, images 56, study of 2026, case of a mass, series A, born out by 3 studies",
        "fires at +1.5 and -0.25, 2026-01-31T10:00:00+00:00, sha256 " + "9f" * 32,
    ],
)
def test_ordinary_sentences_pass(text: str, clean: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(clean["findings"], tmp_path)
    says(text)(folder)
    noted(text)(folder)
    check("findings", folder)


def says_and_allows(text: str, *allowed: str) -> None:
    guard.check_said({"the note": f"as in {text} here"}, replace(CONTEXT, allowed=allowed))


@pytest.mark.parametrize(
    ("rule", "text"),
    [(rule, text) for rule, texts in (*SUSPECTS.items(), ("secrets", ASSIGNED), ("clinical", DATED)) for text in texts],
)
def test_what_looks_private_needs_a_persons_word(rule: str, text: str) -> None:
    with pytest.raises(PrivacyError, match="--allow") as refused:
        says_and_allows(text)
    assert (max(text.split(), key=len) in str(refused.value)) == (rule != "secrets")
    says_and_allows(text, f"as in {text} here")
    with pytest.raises(PrivacyError):
        says_and_allows(text, "another text")


@pytest.mark.parametrize("text", (*HARMLESS, *NEAR_MISSES))
def test_what_is_nearly_always_harmless_is_let_through(text: str, clean: dict[str, Path], tmp_path: Path) -> None:
    says_and_allows(text)
    folder = copy_of(clean["findings"], tmp_path)
    says(text)(folder)
    noted(text)(folder)
    check("findings", folder)


def test_a_known_id_and_a_password_of_this_machine_are_let_out_by_no_word() -> None:
    for secret in (PATIENT, SHORT, LIVE):
        with pytest.raises(PrivacyError) as refused:
            says_and_allows(secret, secret)
        assert secret not in str(refused.value)


def test_all_texts_to_decide_upon_are_shown_at_once_and_of_a_token_the_first_letters(
    clean: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(clean["findings"], tmp_path)
    noted(f"Pt. 88213 and case 4711, with {TOKEN}")(folder)
    with pytest.raises(PrivacyError) as refused:
        check("findings", folder)
    assert "'Pt. 88213', 'case 4711'" in str(refused.value) and "hf_a… (" in str(refused.value)
    check_staged(folder, "findings", replace(CONTEXT, allowed=("Pt. 88213", "CASE  4711", TOKEN)))


def test_every_setting_of_every_architecture_of_saelens_may_go_out() -> None:
    allowed = policies.SAE.entries_of("layer_10/cfg.json", "")
    assert allowed is not None
    for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY):
        for _, config in registry.values():
            fields = {field.name: 1 for field in dataclasses.fields(config)}
            assert not list(allowed.unknown({**fields, "metadata": {"training_architecture_details": fields}}))
    assert list(allowed.unknown({"metadata": {"d_sae": 1, "wandb_id": "x"}})) == ["wandb_id"]


def test_every_setting_of_a_study_may_go_out_and_names_of_layers_and_models_too() -> None:
    config = policies.FINDINGS.entries_of("study/train-00000-of-00001.parquet", "column config")
    named = policies.FINDINGS.entries_of("study/train-00000-of-00001.parquet", "column named_latents")
    assert config is not None and named is not None
    training = dict.fromkeys(SAETraining.model_fields, 1)
    settings = {**dict.fromkeys(StudyConfig.model_fields, 1), "sae": {"train": {"training": training}}}
    assert not list(config.unknown({**settings, "models": [{"classifiers": {"Mass": "mass.pt"}}]}))
    assert list(config.unknown({"models": [{"Mass": 1}]})) == ["Mass"]
    assert not list(named.unknown({"layer 10": {"finetuned/Mass": [{"latent": 1, "role": "concept"}]}}))
    assert list(named.unknown({"layer 10": {"a": [{"score": 1}]}, "../x": {}})) == ["score", "../x"]


def test_a_refused_note_is_named_by_latent_layer_and_author(clean: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(clean["findings"], tmp_path)
    noted("call +493012345678")(folder)
    with pytest.raises(
        PrivacyError, match="the text of a note on latent 5 of layer layer_10 by reader A holds a phone"
    ):
        check("findings", folder)
    noted("jane@clinic.example", "author")(folder)
    with pytest.raises(
        PrivacyError, match="the author of a note on latent 5 of layer layer_10 holds an e-mail address"
    ):
        check("findings", folder)


def test_an_unknown_entry_is_named_unless_its_name_is_private(clean: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(clean["sae"], tmp_path)
    in_json("training.json", {"run_name": 1})(folder)
    with pytest.raises(PrivacyError, match="training.json: privacy rule 'entries': it has an entry 'run_name'"):
        check("sae", folder)
    in_json("training.json", {"run_name": 1, f"of_{USER}": 1})(folder)
    with pytest.raises(PrivacyError) as refused:
        check("sae", folder)
    assert USER not in str(refused.value)


def test_an_unknown_kind_is_refused(clean: dict[str, Path]) -> None:
    with pytest.raises(PrivacyError, match="no kind of upload"):
        check_staged(clean["sae"], "weights", CONTEXT)


@pytest.mark.parametrize("what", ["the commit message", "the tag"])
def test_what_is_said_with_an_upload_passes_the_guard_too(what: str, clean: dict[str, Path]) -> None:
    check_staged(clean["sae"], "sae", CONTEXT, said={what: "Publish with mammosae"})
    with pytest.raises(PrivacyError, match=f"{what}: privacy rule 'private values'"):
        check_staged(clean["sae"], "sae", CONTEXT, said={what: f"without {SHORT}"})


def test_the_name_of_the_repository_may_hold_the_users_name(clean: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(clean["sae"], tmp_path)
    appends(folder / "README.md", f'`SAE.from_pretrained("{USER}/saes", "layer_10")`\n'.encode())
    check_staged(folder, "sae", CONTEXT, repo_id=f"{USER}/saes")
    with pytest.raises(PrivacyError, match="name of this computer's user \\(7 letters\\)"):
        check_staged(folder, "sae", CONTEXT, repo_id="others/saes")


@pytest.mark.parametrize("name", ["ab", "root", "mass", "Latents"])
def test_a_user_whose_name_is_short_or_an_ordinary_word_can_publish(
    name: str, clean: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: name)
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setenv("HOME", f"/home/{name}")
    folder = copy_of(clean["sae"], tmp_path)
    appends(folder / "README.md", b"ab, root, Mass, latents\n")
    with caplog.at_level(logging.WARNING):
        check_staged(folder, "sae", CONTEXT)
    assert ("ordinary word" in caplog.text) == (name in ("mass", "Latents"))


def test_the_name_of_a_concept_is_nobodys_where_the_data_have_it(
    clean: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "effusion")
    folder = copy_of(clean["sae"], tmp_path)
    appends(folder / "README.md", b"fires at Effusion\n")
    with pytest.raises(PrivacyError, match="name of this computer's user"):
        check_staged(folder, "sae", CONTEXT)
    check_staged(folder, "sae", replace(CONTEXT, concepts=frozenset({"Effusion"})))


def test_an_image_whose_name_is_an_ordinary_word_does_not_stop_everything(
    clean: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    check_staged(clean["findings"], "findings", replace(CONTEXT, private_values=frozenset({"Mass", PATIENT})))
    assert "1 ids are ordinary words" in caplog.text
    assert "Mass" not in caplog.text


@pytest.mark.parametrize("name", ["vindr", "rsna"])
def test_rows_per_image_of_a_restricted_dataset_go_out_only_under_its_licence(
    name: str, clean: dict[str, Path]
) -> None:
    context = replace(CONTEXT, datasets=(name,))
    with pytest.raises(PrivacyError) as refused:
        check_staged(clean["examples"], "findings", context)
    for part in (KNOWN[name].title, KNOWN[name].why, KNOWN[name].licence, KNOWN[name].url):
        assert part and part in str(refused.value)
    check_staged(clean["examples"], "findings", replace(context, licence=(KNOWN[name].licence or "").upper()))


def test_the_guard_takes_no_words_of_a_stager_for_it(clean: dict[str, Path], tmp_path: Path) -> None:
    """A small group that is null passes; the same group with a number, however it was meant, does not."""
    folder = copy_of(clean["findings"], tmp_path)
    small = {**CONCEPT_ROW, "n_images": [30, 4], "class_means": [0.1, None], "scores": [-0.3, None], "ranks": [4, None]}
    row_with("latents", concepts=[small])(folder)
    check_staged(folder, "findings", CONTEXT)
    row_with("reconstruction", n_positive=None)(folder)  # a group of unknown size may be small
    with pytest.raises(PrivacyError, match="small groups"):
        check_staged(folder, "findings", CONTEXT)
    row_with("reconstruction")(folder)
    row_with("latents", concepts=[{**small, "ranks": [4, 1]}])(folder)
    with pytest.raises(PrivacyError, match="small groups"):
        check_staged(folder, "findings", CONTEXT)
    check_staged(folder, "findings", replace(CONTEXT, min_group=4))


def test_interventions_without_the_counts_of_reconstruction_are_refused(clean: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(clean["findings"], tmp_path)
    parquet(folder, "reconstruction").unlink()
    with pytest.raises(PrivacyError, match="small groups.*reconstruction"):
        check_staged(folder, "findings", CONTEXT)


# -- what stagers use --------------------------------------------------------------------------------------------------


def test_a_hash_depends_on_the_key_and_is_the_same_every_time() -> None:
    one, other = hash_ids([PATIENT, IMAGE], KEY)
    assert hash_ids([IMAGE, PATIENT], KEY) == [other, one]
    assert re.fullmatch("[0-9a-f]{32}", one)
    assert one != other
    assert hash_ids([PATIENT], KEY[::-1]) != [one]
    assert one not in hashlib.sha256(PATIENT.encode()).hexdigest()
    with pytest.raises(InputError, match="16 are the fewest"):
        hash_ids([PATIENT], b"short")


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key = load_or_make_key(tmp_path / "keys" / "key")
    assert len(key) == 32
    assert load_or_make_key(tmp_path / "keys" / "key") == key
    assert load_or_make_key(tmp_path / "other") != key
    assert (tmp_path / "keys" / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "other").write_text("no key")
    with pytest.raises(InputError, match="holds no key"):
        load_or_make_key(tmp_path / "other")


def test_a_key_in_the_staged_folder_is_refused(clean: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(clean["examples"], tmp_path)
    load_or_make_key(folder / "key")
    with pytest.raises(PrivacyError, match="file names"):
        check_staged(folder, "findings", CONTEXT)


def test_a_copied_figure_has_the_same_pixels_and_nothing_else(clean: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(clean["findings"], tmp_path / "staged")
    exif(folder)
    drawn = tmp_path / "results" / "figures" / "figure_2.png"
    drawn.parent.mkdir(parents=True)
    drawn.write_bytes((folder / FIGURE).read_bytes())
    with pytest.raises(InputError, match="not a figure as a study drew it"):
        copy_figure(drawn, folder / FIGURE)
    record_figures([drawn], tmp_path / "results")
    copy_figure(drawn, folder / FIGURE)
    before = np.array(Image.open(drawn).convert("RGB"))
    with Image.open(folder / FIGURE) as image:
        assert np.array_equal(np.array(image), before) and image.mode == "RGB" and image.info == {}
    check_staged(folder, "findings", CONTEXT)
    appends(drawn, b"Dr. Who")
    with pytest.raises(InputError, match="not a figure as a study drew it"):
        copy_figure(drawn, folder / FIGURE)


def test_the_context_of_a_dataset_has_every_id_and_knows_that_phantoms_are_drawn(phantoms: VinDrMammo) -> None:
    context = PrivacyContext.of_dataset(phantoms)
    assert context.datasets == ("phantom",) and "Mass" in context.concepts
    assert context.private_values >= set(phantoms.images["patient_id"]) | set(phantoms.images["image_id"])
    assert context.private_values >= {Path(name).stem for name in phantoms.images["image_id"]}
    assert str(phantoms.images["patient_id"][0]) not in repr(context)

    other = phantoms.select()
    other.images = other.images.assign(patient_id=["phantom_0", *(["p" * 32] * (len(other.images) - 1))])
    assert PrivacyContext.of_dataset(other).datasets == ("vindr",)
    with pytest.raises(InputError, match="min_group is 0"):
        PrivacyContext.of_dataset(phantoms, min_group=0)


def test_the_context_of_a_study_of_an_earlier_version_comes_from_its_tables_and_fails_without_them(
    tmp_path: Path,
) -> None:
    with pytest.raises(PrivacyError, match="the ids that must not get out are unknown"):
        PrivacyContext.of_study(tmp_path)
    for split, ids in {"training": [PATIENT, SHORT], "test": ["other-patient"]}.items():
        folder = tmp_path / "work" / "latents" / "finetuned-0a" / split
        folder.mkdir(parents=True)
        pd.DataFrame({"image_id": [f"image-{one}.png" for one in ids], "patient_id": ids}).to_parquet(
            folder / "images.parquet"
        )
    (tmp_path / "work" / "quarantine-1.csv").write_text("image_id,reason\nbad-image.png,constant\n")
    context = PrivacyContext.of_study(tmp_path, licence="x")
    assert context.private_values >= {PATIENT, "other-patient", f"image-{SHORT}", "bad-image.png", "bad-image"}
    assert (context.datasets, context.licence) == ((), "x")  # whose data they are nobody has said


def test_a_study_keeps_the_ids_and_the_terms_of_its_dataset_and_rows_of_images_stay_unless_it_allows_them(
    tmp_path: Path, clean: dict[str, Path]
) -> None:
    words = ("consent", "2026")
    about = DatasetAbout(
        "clinic-7", "Clinic 7", restricted=True, why="its patients were not asked", licence_words=words
    )
    PrivacyContext(frozenset({PATIENT}), (about.name,), about=(about,)).keep(tmp_path)
    assert (tmp_path / "private.json").stat().st_mode & 0o777 == 0o600
    context = PrivacyContext.of_study(tmp_path, min_group=3)
    assert (context.private_values, context.datasets, context.about) == ({PATIENT}, ("clinic-7",), (about,))
    with pytest.raises(PrivacyError, match="a row per image of Clinic 7: its patients were not asked"):
        check_staged(clean["examples"], "findings", context)
    check_staged(clean["examples"], "findings", replace(context, licence="Consent form of 2026"))
    free = dataclasses.replace(about, restricted=False)
    check_staged(clean["examples"], "findings", replace(context, about=(free,)))
    (tmp_path / "private.json").write_text('{"values": []}')
    with pytest.raises(PrivacyError, match="private.json is damaged"):
        PrivacyContext.of_study(tmp_path)


# -- the search --------------------------------------------------------------------------------------------------------


def naive(values: Iterable[str], data: bytes) -> bool:
    """The slow obvious search."""
    return any(value.lower().encode() in data.lower() for value in values)


def test_the_search_in_bytes_agrees_with_the_slow_one_at_every_place_and_across_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mammosae_plugin.privacy.search._CHUNK", 64)
    generator = np.random.default_rng(0)
    values = ["abcdefgh", "abcdefghij", "zyxwvuts", PATIENT]
    needles = Needles(values)
    for length in (0, 5, 60, 200):
        noise = bytes(generator.integers(0, 256, length, dtype=np.uint8))
        assert (needles.in_bytes(noise) is not None) == naive(values, noise)
        for place in range(length + 1):
            for value in values:
                assert needles.in_bytes(noise[:place] + value.upper().encode() + noise[place:]) == place


@pytest.mark.parametrize(
    ("value", "text", "found"),
    [
        ("10006", "10006", True),
        ("10006", "10006 images", False),  # a short number is a count
        ("1000612", "case 1000612.", True),
        ("1000612", "0.1000612", False),
        ("1000612", "10006123", False),
        ("100061234", "0.1000612345", False),
        ("100061234", "n=100061234;", True),
        ("P_07", "MAP_07", False),
        ("P_07", "p_07.png", True),
        ("abc", "abc", False),
        ("Mammo-ABCDE", "a mammo-abcdef", True),
        ("Mammo-ABCDE", "a mammoabcde.", True),
        ("Mammo-ABCDE", "a mammo abcdef", False),
        ("phantom_00012", "phantom 000123", False),
        ("phantom_00012", "phantom, 00012", False),
        ("phantom_00012", "phantom/00012", True),
        ("1234-56789", "1234 56789", True),
        ("1234-56789", "1234.56789", False),
        ("462822612", "462-822-612", True),
        ("462822612", "seen in 462 822 612.", True),
        ("462822612", "1462 822 612", False),
        ("462822612", "0.462 822 612", False),
        ("462822612", "462,822,612", False),
        ("A_12", "about a 12", False),
    ],
)
def test_short_ids_and_numbers_are_found_as_words_and_not_inside_other_words(
    value: str, text: str, found: bool
) -> None:
    assert Needles([value]).in_text(text) is found
