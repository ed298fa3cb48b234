"""`mammosae retrieve`: the images of a latents table that are like one, and how well such a search finds labels."""

__all__ = [
    "Asked", "columns_of", "drawn_images", "find_images", "judge_retrieval", "Judging", "labels_of", "open_table",
    "written_files",
]  # fmt: skip

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mammosae_plugin.analysis import fingerprints, retrieval_scores, retrieve
from mammosae_plugin.analysis.retrieval import ALL, row_of_image
from mammosae_plugin.analysis.retrieval_quality import KS
from mammosae_plugin.config import load_data
from mammosae_plugin.datasets import open_dataset
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, write_json, write_text
from mammosae_plugin.findings.study_folder import TABLES_FOLDER
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.latents.table import TABLE
from mammosae_plugin.locks import only_run
from mammosae_plugin.own_files import empty_staging, replace_files
from mammosae_plugin.schema.names import readable
from mammosae_plugin.study.images import TEST
from mammosae_plugin.visualization import plot_hits, plot_k_sweep, save_figure

HITS, SCORES, FIGURE, SWEEP = "hits", "retrieval_scores", "hits.png", "k_sweep.png"
_MOST_LABELS = 6  # of one image in a line
_STATISTICS = {"max": "maximum", "mean": "mean"}


@dataclass(frozen=True)
class Asked:
    """What is asked of a table.

    Attributes:
        method: fingerprint, cosine, bm25 or dense.
        k: latents in a fingerprint, and listed of the image asked for.
        n: how many images to give.
        split: the split that is searched, or "all".
        statistic: "max" or "mean" of a latent over positions.
        rows: of dense, the vectors of the table's images: a store or files of embeddings. A table of maps has its own.
    """

    method: str = "fingerprint"
    k: int = 5
    n: int = 5
    split: str = ALL
    statistic: str = "max"
    rows: Path | None = None


@dataclass(frozen=True)
class Judging:
    """How retrieval is judged; fields as for `retrieval_scores`.

    Attributes:
        labels: concepts or other columns; empty means all concepts.
        group: the column of what belongs together.
        ks: latents in a fingerprint.
        n: how many images are looked at.
        split: the split that is asked and searched; None means "test", or all where there is no such split.
        statistic: "max" or "mean" of a latent over positions.
        n_queries: queries of each label at the most.
        seed: of everything that is drawn.
        rows: the vectors of the table's images, for the dense rows.
        untrained: the table of an untrained SAE.
    """

    labels: Sequence[str] = ()
    group: str = "patient_id"
    ks: Sequence[int] = field(default=KS)
    n: int = 10
    split: str | None = None
    statistic: str = "max"
    n_queries: int = 200
    seed: int = 0
    rows: Path | None = None
    untrained: Path | None = None


def find_images(
    folder: Path,
    image_id: str,
    asked: Asked,
    *,
    output: Path | None = None,
    figure: bool = False,
    config: Path | None = None,
    settings: Sequence[str] = (),
) -> str:
    """The images of a table that are like one, as text for the terminal.

    Args:
        folder: the latents table.
        image_id: the image, as for `row_of_image`.
        asked: how they are found.
        output: write hits.csv and hits.json to this folder, and with `figure` hits.png.
        figure: draw the latents of the image and of the hits.
        config: a study's YAML file, whose images are drawn too.
        settings: as for `load_config`; they alone can name the data as well.

    Raises:
        InputError: as `retrieve`, or images that the dataset lacks.
    """
    if figure and output is None:
        raise InputError("the figure goes into a folder: name it with -o")
    if (config is not None or settings) and not figure:
        raise InputError("--config and --set name the images that --figure draws; add --figure")
    table = open_table(folder)
    if asked.method == "dense" and asked.rows is None and table.is_of_rows:
        raise InputError(
            f"{table.folder} keeps no dense vectors; name the store or file that it was made of with --rows"
        )
    query = row_of_image(table, image_id)
    hits = retrieve(
        table,
        query,
        method=asked.method,
        k=asked.k,
        n=asked.n,
        statistic=asked.statistic,
        split=asked.split,
        embeddings=asked.rows,
    )
    own = _own_latents(table, query, asked)
    picture = _figure(table, query, hits, asked, config, settings) if figure else None
    if output is not None:
        with written_files(output, HITS) as staged:
            write_text(staged / f"{HITS}.csv", _as_csv(table, hits))
            write_json(staged / f"{HITS}.json", _as_json(table, query, own, hits, asked))
            if picture is not None:
                save_figure(picture, staged / FIGURE, dpi=160)
    written = [] if output is None else [f"written to {output}"]
    return "\n".join([_heading(table, query, own, asked), "", _as_text(table, hits), *written])


def _figure(
    table: LatentTable, query: int, hits: pd.DataFrame, asked: Asked, config: Path | None, settings: Sequence[str]
) -> Figure:
    rows = [query, *hits["row"].tolist()]
    over = "" if table.is_of_rows else f", {_STATISTICS[asked.statistic]}\nover positions"
    return plot_hits(
        fingerprints(table, query, rows[1:], k=asked.k, statistic=asked.statistic),
        title=f"Images like {table.images['image_id'][query]}, by {_way(asked)}",
        captions=_captions(table, query, hits),
        images=drawn_images(table, rows, config, settings) if config is not None or settings else [],
        axis_label=f"activation{over}",
    )


def judge_retrieval(folder: Path, judging: Judging, *, output: Path | None = None) -> str:
    """How well images of the same label are found, as text for the terminal.

    Args:
        folder: the latents table.
        judging: by what labels, with how many latents.
        output: write retrieval_scores.csv and .json to this folder, and the K sweep as k_sweep.png.

    Raises:
        InputError: as `retrieval_scores`.
    """
    table = open_table(folder)
    split = judging.split or (TEST if TEST in table.splits else ALL)
    has_vectors = judging.rows is not None or not table.is_of_rows
    scores = retrieval_scores(
        table,
        list(judging.labels) or None,
        group=judging.group,
        split=split,
        ks=judging.ks,
        n=judging.n,
        statistic=judging.statistic,
        embeddings=judging.rows,
        untrained=None if judging.untrained is None else open_table(judging.untrained),
        n_queries=judging.n_queries,
        seed=judging.seed,
        progress=True,
    )
    where = "all images" if split == ALL else f"{split} images"
    if output is not None:
        with written_files(output, SCORES) as staged:
            write_text(staged / f"{SCORES}.csv", scores.to_csv(index=False))
            given = {**asdict(judging), "split": split}
            given |= {name: None if given[name] is None else Path(given[name]).name for name in ("rows", "untrained")}
            rows = scores.astype(object).where(scores.notna(), None).to_dict("records")
            write_json(staged / f"{SCORES}.json", {"settings": given, "scores": rows})
            save_figure(plot_k_sweep(scores, title=f"Retrieval judged by labels, {where}"), staged / SWEEP, dpi=160)
    heading = (
        f"Precision: of the first {judging.n} images found, the share with the query's label; among {where}, the own "
        f"{judging.group} left out. p: how often labels that are dealt out anew to groups are found as well."
    )
    lines = [heading, "", *_scores_as_text(scores)]
    if not has_vectors:
        lines.append(
            "Without the dense vectors beside it: name the store or file that the table was made of with --rows."
        )
    if output is not None:
        lines.append(f"written to {output}")
    return "\n".join(lines)


def open_table(folder: Path) -> LatentTable:
    """A latents table, or the only one in a folder, such as a study's output.

    Raises:
        InputError: no table, or several, which are named.
    """
    folder = local_path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; name a latents table, a folder that `mammosae encode` wrote")
    if not (folder / TABLE).exists():
        place = folder / TABLES_FOLDER if (folder / TABLES_FOLDER).is_dir() else folder  # not a study's own of pairs
        inside = sorted(path.parent for depth in range(1, 6) for path in place.glob("*/" * depth + TABLE))
        if len(inside) > 1:
            some = ", ".join(map(str, inside[:4])) + (", ..." if len(inside) > 4 else "")
            raise InputError(f"{folder} holds {len(inside)} latents tables; name one: {some}")
        folder = inside[0] if inside else folder
    return LatentTable(folder)


def drawn_images(
    table: LatentTable, rows: Sequence[int], config: Path | None, settings: Sequence[str]
) -> list[NDArray[np.uint8]]:
    """Images of a table as the data have them, uint8 (H, W) each.

    Raises:
        InputError: the data lack one of them, or cannot be opened.
    """
    dataset = open_dataset(load_data(config, settings))
    number_of = {image_id: number for number, image_id in enumerate(dataset.images["image_id"].astype(str))}
    ids = [str(table.images["image_id"][row]) for row in rows]
    if missing := [one for one in ids if one not in number_of]:
        raise InputError(
            f"the data lack {len(missing)} of the {len(ids)} images ({missing[0]}); name those of the table"
        )
    return [dataset.gray(number_of[one]) for one in ids]


def _own_latents(table: LatentTable, query: int, asked: Asked) -> dict[int, float]:
    """The query's strongest latents; none where all of its latents are above 0 in every image."""
    try:
        own = fingerprints(table, query, [], k=asked.k, statistic=asked.statistic)
    except InputError:
        return {}
    return dict(zip(own["latent"].tolist(), own["activation"].tolist(), strict=True))


def _way(asked: Asked) -> str:
    ways = {
        "fingerprint": f"its {asked.k} strongest latents" if asked.k > 1 else "its strongest latent",
        "cosine": "cosine of all latents",
        "bm25": "BM25 over latents",
        "dense": "cosine of the dense vectors",
    }
    return ways[asked.method]


def labels_of(table: LatentTable, row: int, most: int = _MOST_LABELS) -> list[str]:
    """What an image is labelled with: findings that it has, and the class of what has more than two."""
    said = []
    for name, concept in table.vocabulary.items():
        number = int(table.images[name][row])
        if concept.is_binary and number == 1:
            said.append(readable(name))
        elif not concept.is_binary and number >= 0:
            said.append(f"{readable(name)} {concept.classes[number]}")
    return said if len(said) <= most else [*said[: most - 1], f"+{len(said) - most + 1}"]


def _captions(table: LatentTable, query: int, hits: pd.DataFrame) -> list[str]:
    """Lines under each image: its likeness, and a label a line."""
    rows = [query, *hits["row"].tolist()]
    likeness = ["asked for", *(f"likeness {value:.3f}" for value in hits["likeness"])]
    return ["\n".join([said, *labels_of(table, row, 4)]) for said, row in zip(likeness, rows, strict=True)]


def _heading(table: LatentTable, query: int, own: Mapping[int, float], asked: Asked) -> str:
    image = table.images.loc[query]
    listed = _pairs(own.keys(), own.values()) or "none of its own"
    labels = ", ".join(labels_of(table, query))
    searched = "" if asked.split == ALL else f", among {asked.split} images"
    return "\n".join(
        [
            f"Like {image['image_id']} (row {query}, {image['split']}), by {_way(asked)}{searched}; the own patient_id "
            f"({image['patient_id']}) left out",
            f"its strongest latents: {listed}",
            *([f"its labels: {labels}"] if labels else []),
        ]
    )


def _pairs(latents: Any, activations: Any) -> str:
    return ", ".join(f"{latent} ({value:.3g})" for latent, value in zip(latents, activations, strict=True))


def _as_text(table: LatentTable, hits: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "rank": range(1, len(hits) + 1),
            "image_id": hits["image_id"],
            "patient_id": hits["patient_id"],
            "split": hits["split"],
            "likeness": [f"{value:.4f}" for value in hits["likeness"]],
            "shared latents (activation)": [
                _pairs(*one) or "-" for one in zip(hits["shared"], hits["activations"], strict=True)
            ],
            "labels": [", ".join(labels_of(table, int(row))) or "-" for row in hits["row"]],
        }
    )
    return columns_of(shown)


def columns_of(frame: pd.DataFrame) -> str:
    """A frame as text: columns as wide as they need be, and left-aligned."""
    cells = [list(map(str, frame.columns)), *(list(map(str, row)) for row in frame.itertuples(index=False))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _as_csv(table: LatentTable, hits: pd.DataFrame) -> str:
    frame = hits.assign(
        rank=range(1, len(hits) + 1),
        shared=[" ".join(map(str, one)) for one in hits["shared"]],
        activations=[" ".join(f"{value:.6g}" for value in one) for one in hits["activations"]],
    )
    names = ["rank", "image_id", "row", "patient_id", "split", "likeness", "shared", "activations"]
    return frame[[*names, *table.vocabulary]].to_csv(index=False)


def _as_json(
    table: LatentTable, query: int, own: Mapping[int, float], hits: pd.DataFrame, asked: Asked
) -> dict[str, Any]:
    def about(row: int) -> dict[str, Any]:
        image = table.images.iloc[row]
        known = {name: str(image[name]) for name in ("image_id", "patient_id", "split")}
        return {**known, "row": row, "labels": {name: int(table.images[name][row]) for name in table.vocabulary}}

    def latents(pairs: Any) -> list[dict[str, Any]]:
        return [{"latent": int(latent), "activation": float(value)} for latent, value in pairs]

    return {
        "table": table.folder.name,
        "settings": {**asdict(asked), "rows": asked.rows and asked.rows.name},
        "query": {**about(query), "latents": latents(own.items())},
        "hits": [
            {
                "rank": rank,
                **about(int(hit["row"])),
                "likeness": float(hit["likeness"]),
                "shared": latents(zip(hit["shared"], hit["activations"], strict=True)),
            }
            for rank, (_, hit) in enumerate(hits.iterrows(), start=1)
        ],
    }


_NAMES = {
    ("latents", "fingerprint"): "fingerprint",
    ("latents", "cosine"): "cosine of all latents",
    ("latents", "bm25"): "BM25 over latents",
    ("untrained", "fingerprint"): "untrained SAE: fingerprint",
    ("untrained", "cosine"): "untrained SAE: cosine",
    ("untrained", "bm25"): "untrained SAE: BM25",
    ("dense", "dense"): "dense vectors",
    ("dense", "dense_fingerprint"): "largest dense values",
    ("random", "random"): "random images",
}


def _scores_as_text(scores: pd.DataFrame) -> Iterator[str]:
    for label, rows in scores.groupby("label", sort=False):
        known = rows[rows["precision"].notna()]
        if not len(known):
            yield f"{label}: {rows['reason'].iloc[0]}\n"
            continue
        reasons = {str(reason) for reason in known["reason"]} - {""}
        note = f" ({'; '.join(sorted(reasons))})" if reasons else ""
        yield f"{label}: {int(known['n_queries'].max())} queries of {int(known['n_query_groups'].max())} groups{note}"
        shown = pd.DataFrame(
            {
                "by": [
                    _NAMES[source, method] + (f", K = {k}" if k else "")
                    for source, method, k in zip(rows["source"], rows["method"], rows["k"], strict=True)
                ],
                "precision": [_interval(row, "precision") for _, row in rows.iterrows()],
                "over random": [_interval(row, "over_random", signed=True) for _, row in rows.iterrows()],
                "p": [_number(value) for value in rows["p"]],
                "recall": [_number(value) for value in rows["recall"]],
                "mAP": [_number(value) for value in rows["average_precision"]],
                "nDCG": [_number(value) for value in rows["ndcg"]],
            }
        )
        if "over_untrained" in rows:
            beside = [_interval(row, "over_untrained", signed=True) for _, row in rows.iterrows()]
            shown.insert(3, "over untrained", beside)
        yield columns_of(shown) + "\n"


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.3f}"


def _interval(row: "pd.Series[Any]", name: str, *, signed: bool = False) -> str:
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if np.isnan(value):
        return "-"
    form = "+.3f" if signed else ".3f"
    return f"{value:{form}}" + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")


@contextmanager
def written_files(output: Path, name: str) -> Iterator[Path]:
    """A folder to write into, whose files then go to `output`; those of an earlier run of the same kind go."""
    output = local_path(output)
    with only_run(output):
        staged = empty_staging(output)
        try:
            yield staged
            replace_files(staged, output, record=output / f".mammosae-{name}.json")
        finally:
            shutil.rmtree(staged)
