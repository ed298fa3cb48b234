"""`mammosae search`: images for a text by the names of latents, and how well that finds what it should."""

__all__ = ["judge_search", "MatchedBy", "search_table", "study_table", "Wanted"]

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mammosae_plugin.adapters.language_models import LanguageModel, openai_model
from mammosae_plugin.adapters.mammo_clip_text import BIO_CLINICAL_BERT, load_mammo_clip_text
from mammosae_plugin.analysis.retrieval import ALL
from mammosae_plugin.analysis.table_arrays import which_table
from mammosae_plugin.config import load_config
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, write_json, write_text
from mammosae_plugin.findings.embeddings import is_embedding_study
from mammosae_plugin.findings.study_folder import RESULTS_FOLDER, TABLES_FOLDER, StudyFolder, is_study_folder
from mammosae_plugin.interpretation.name_matching import ByModel, ByText, ByWords, Matcher
from mammosae_plugin.interpretation.named_files import check_names, read_names
from mammosae_plugin.interpretation.names import LatentNames, plain
from mammosae_plugin.interpretation.queries import Queries, load_queries
from mammosae_plugin.interpretation.search_quality import SEARCH_COLUMNS, WHOLE, search_scores
from mammosae_plugin.interpretation.text_search import TextSearch, search_images
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.measures.statistics import MIN_PATIENTS
from mammosae_plugin.schema.names_of_latents import BY_LABELS, told_name
from mammosae_plugin.study.retrieval import columns_of, drawn_images, labels_of, open_table, written_files
from mammosae_plugin.visualization import plot_hits, save_figure

FOUND, SCORES, FIGURE = "found", "search_scores", "found.png"
_ELSEWHERE = ("journal", "endpoint", "key_from")  # of this machine, and no setting of the search
_LONGEST = 24  # characters of a name beside a bar


@dataclass(frozen=True)
class MatchedBy:
    """How names are matched to a query.

    Attributes:
        way: "text" (the small embedding), "clip" (the text encoder of `text`), "words" (BM25) or "model".
        alpha: of "text" and "clip", p above which a name does not match.
        text: Mammo-CLIP's pretraining checkpoint.
        tokenizer: its tokenizer.
        model: the language model's name, at its server or on the Hub.
        endpoint: the server's address; None: a local pipeline of transformers.
        key_from: the environment variable with its key.
        journal: a file that keeps the model's answers.
        share: columns of metadata by whose values names may go to a model on another machine; those by others stay.
        seed: of random texts, and of the model.
    """

    way: str = "text"
    alpha: float = 0.02
    text: str | None = None
    tokenizer: str | None = None
    model: str | None = None
    endpoint: str | None = None
    key_from: str | None = None
    journal: Path | None = None
    share: Sequence[str] = ()
    seed: int = 0

    def tower(self) -> Any:
        """The text encoder of the checkpoint; None without one."""
        if self.text is None:
            return None
        return load_mammo_clip_text(self.text, tokenizer=self.tokenizer or BIO_CLINICAL_BERT)

    def matcher(self, tower: Any) -> Matcher:
        """What matches names.

        Raises:
            InputError: a way that needs something that is not named.
        """
        if self.way == "words":
            return ByWords()
        if self.way == "text":
            return ByText(alpha=self.alpha, seed=self.seed)
        if self.way == "clip":
            if tower is None:
                raise InputError("--by clip needs a text encoder: name Mammo-CLIP's pretraining checkpoint with --text")
            return ByText(tower, alpha=self.alpha, seed=self.seed)
        model = str(self.model)
        if self.endpoint is None:
            from mammosae_plugin.adapters.local_language_model import local_model

            asked: LanguageModel = local_model(model)
        else:
            asked = openai_model(model, self.endpoint, key_from=self.key_from)
        return ByModel(asked, journal=self.journal, seed=self.seed)


@dataclass(frozen=True)
class Wanted:
    """What is asked of a table, as for `search_images`.

    Attributes:
        names: folders that `mammosae name` wrote; empty: the names that the table's study keeps.
        meanings: a YAML file with `meanings` of names, perhaps one with queries.
        by: how names are matched.
        n: images.
        n_names: names of a query at the most.
        per_name: latents of a name at the most.
        split: whose images are searched.
        statistic: of a latent over positions.
        likeness: "strength" or "cosine".
        group: the column of what belongs together.
        rows: the vectors that `by.text` projects, of a table of embeddings.
        seed: of the order of images that are equally good, and of draws.
    """

    names: Sequence[Path] = ()
    meanings: Path | None = None
    by: MatchedBy = MatchedBy()
    n: int = 10
    n_names: int = 4
    per_name: int = 3
    split: str = ALL
    statistic: str = "max"
    likeness: str = "strength"
    group: str = "patient_id"
    rows: Path | None = None
    seed: int = 0

    def told(self) -> dict[str, Any]:
        """The settings as plain JSON, without folders of this machine."""
        by = {name: value for name, value in asdict(self.by).items() if value is not None and name not in _ELSEWHERE}
        by |= {name: Path(by[name]).name for name in ("text", "tokenizer") if name in by}
        settings = {
            name: value for name, value in vars(self).items() if name not in ("by", "names", "meanings", "rows")
        }
        return {**settings, "names": [place.name for place in self.names], "by": by}

    @property
    def asked(self) -> dict[str, Any]:
        """What searching and judging take alike."""
        names = ("n", "n_names", "per_name", "split", "statistic", "likeness", "group", "seed")
        return {name: getattr(self, name) for name in names}


def search_table(
    folder: Path,
    query: str,
    wanted: Wanted,
    *,
    output: Path | None = None,
    figure: bool = False,
    config: Path | None = None,
    settings: Sequence[str] = (),
) -> str:
    """The images of a table that a text asks for, as text for the terminal.

    Args:
        folder: the latents table, or a folder with one in it.
        query: the text.
        wanted: how they are found.
        output: write found.csv and found.json to this folder, and with `figure` found.png.
        figure: draw what each latent contributes.
        config: a study's YAML file, whose images are drawn too.
        settings: as for `load_config`; they alone can name the data as well.

    Raises:
        InputError: as `search_images`, no names, or names of another table.
    """
    if not query.strip():
        raise InputError('the query is empty; say what is looked for, such as "a mass in a dense breast"')
    if figure and output is None:
        raise InputError("the figure goes into a folder: name it with -o")
    if (config is not None or settings) and not figure:
        raise InputError("--config and --set name the images that --figure draws; add --figure")
    table = open_table(folder)
    meanings = {} if wanted.meanings is None else load_queries(wanted.meanings, need_queries=False).meanings
    by = wanted.by.matcher(wanted.by.tower() if wanted.by.way == "clip" else None)
    names, kept_back = _that_may_go(_names(table, wanted), by, wanted.by.share)
    found = search_images(table, query, names, by, meanings=meanings, **wanted.asked)
    picture = _figure(table, found, config, settings) if figure and len(found.hits) else None
    if output is not None:
        with written_files(output, FOUND) as staged:
            write_text(staged / f"{FOUND}.csv", _as_csv(found))
            write_json(staged / f"{FOUND}.json", _as_json(table, found, wanted))
            if picture is not None:
                save_figure(picture, staged / FIGURE, dpi=160)
    written = [] if output is None else [f"written to {output}"]
    return "\n".join([*_as_text(table, found), *kept_back, *written])


def judge_search(folder: Path, queries: Path, wanted: Wanted, *, n_draws: int = 200, output: Path | None = None) -> str:
    """How well queries find images with their labels, as text for the terminal.

    Args:
        folder: the latents table, or a folder with one in it.
        queries: the YAML file of queries.
        wanted: how they are found.
        n_draws: draws of random latents, shuffled names and random images.
        output: write search_scores.csv and .json to this folder.

    Raises:
        InputError: as `search_scores`.
    """
    table = open_table(folder)
    asked = load_queries(queries)
    if wanted.meanings is not None:
        own = load_queries(wanted.meanings, need_queries=False).meanings
        asked = Queries(asked.queries, {**asked.meanings, **own})
    tower = wanted.by.tower()
    by = wanted.by.matcher(tower)
    names, kept_back = _that_may_go(_names(table, wanted), by, wanted.by.share)
    if tower is not None and wanted.rows is None and table.is_of_rows:
        raise InputError(
            f"{table.folder} keeps no vectors for the text encoder's image side; name the store or file that it was "
            "made of with --rows, or leave out --text"
        )
    scores = search_scores(
        table, asked, names, by, tower=tower, embeddings=wanted.rows, n_draws=n_draws, progress=True, **wanted.asked
    )
    if output is not None:
        with written_files(output, SCORES) as staged:
            write_text(staged / f"{SCORES}.csv", scores.to_csv(index=False))
            told = {
                "table": table.folder.name,
                "matched_by": by.name,
                "settings": {**wanted.told(), "n_draws": n_draws},
            }
            write_json(staged / f"{SCORES}.json", {**told, "columns": dict(SEARCH_COLUMNS), "scores": plain(scores)})
    written = [] if output is None else [f"written to {output}"]
    return "\n".join([*_scores_as_text(scores, by.name, wanted), *kept_back, *written])


def study_table(study: Path) -> Path:
    """The latents table of a study whose latents have names, or its output folder where there is none, or several.

    Args:
        study: its output folder, or its YAML file.

    Raises:
        InputError: a file that is no configuration of a study.
    """
    place = local_path(study)
    output = local_path(load_config(place).output) if place.is_file() else place
    named = {folder for folder, rows in _named_tables(output) if any(row["name"] for row in rows)}
    return named.pop() if len(named) == 1 else output


def _named_tables(output: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Of a finished study of maps each table and the names that the study keeps of its latents."""
    if not is_study_folder(output) or is_embedding_study(output / RESULTS_FOLDER):
        return
    for layer in StudyFolder(output).layers:
        names = layer.results.get("names", ())
        for encoder in layer.encoders.values():
            yield encoder.table_folder, [dict(row) for row in names if row["encoder"] == encoder.name]


def _names(table: LatentTable, wanted: Wanted) -> list[LatentNames]:
    if not wanted.names:
        return [_names_of_study(table)]
    found = []
    for place in wanted.names:
        names = read_names(place)
        check_names(names, table, place)
        found.append(names)
    return found


def _that_may_go(
    names: list[LatentNames], by: Matcher, share: Sequence[str]
) -> tuple[list[LatentNames], tuple[str, ...]]:
    """The names without those after metadata, such as a site, where they would go to another machine; and a line that
    says so.

    Raises:
        InputError: no name is left.
    """
    host = getattr(by, "host", None)
    if host is None:
        return names, ()
    kept, n_back, n_left = [], 0, 0
    for one in names:
        rows = one.latents
        columns = rows["column"] if "column" in rows else pd.Series(None, rows.index, dtype=object)
        stays = (rows["method"] == BY_LABELS) & columns.ne("") & ~columns.isin(list(share)) & ~rows["abstained"]
        kept.append(replace(one, latents=rows.assign(abstained=rows["abstained"] | stays)))
        n_back, n_left = n_back + int(stays.sum()), n_left + kept[-1].n_named
    if not n_left:
        raise InputError(
            f"all {n_back} names are after metadata, which do not go to {host}; let those of a column go with "
            "--share COLUMN, or ask a model on this machine"
        )
    told = f"{n_back} names after metadata did not go to {host}; --share COLUMN lets those of a column go"
    return kept, (told,) if n_back else ()


def _names_of_study(table: LatentTable) -> LatentNames:
    """The names that a finished study found, or was given, for a table of its own."""
    place = table.folder.resolve()
    rows = [
        row
        for folder, names in _named_tables(place.parents[len(TABLES_FOLDER.parts)])
        if folder.resolve() == place
        for row in names
    ]
    if not rows:
        raise InputError(
            f"there are no names of the latents of {table.folder}: write some with `mammosae name {table.folder} -o "
            "FOLDER` and name that FOLDER with --names"
        )
    return LatentNames("study", pd.DataFrame(rows), pd.DataFrame(), which_table(table))


def _matched(found: TextSearch) -> Iterator[str]:
    shown = found.latents
    is_near = shown["nearness"].notna().any()
    columns: dict[str, Any] = {"latent": shown["latent"]}
    columns["name (method and score, chance)"] = [told_name(row) for row in _records(shown)]
    columns["q"] = [_number(q, ".2g") for q in shown["q"]]
    meant = [
        text if text.lower() != str(name).lower() else ""
        for text, name in zip(shown["text"], shown["name"], strict=True)
    ]
    if any(meant):
        columns["read as"] = [text or "-" for text in meant]
    if is_near:
        columns["near the query"] = [_number(value, ".2f") for value in shown["nearness"]]
    if shown["p"].notna().any():
        columns["p"] = [_number(value, ".2g") for value in shown["p"]]
    yield columns_of(pd.DataFrame(columns))


def _as_text(table: LatentTable, found: TextSearch) -> list[str]:
    where = "" if found.about["split"] == ALL else f" among {found.about['split']} images"
    head = f"{found.query!r}{where}, names matched by {found.by}"
    notes = [f"note: {one}" for one in found.about["notes"]]
    if not len(found.latents):
        return [
            f"no named latent matches {found.query!r} (by {found.by}): {found.about['n_named']} latents have a name, "
            "and none says any of it; ask for what they say, or tell with --meanings what names mean",
            *notes,
        ]
    lines = [head, *notes, "", *_matched(found), ""]
    if not len(found.hits):
        return [*lines, "in no image is one of these latents above 0"]
    latents = found.latents["latent"].tolist()
    shown = pd.DataFrame(
        {
            "rank": range(1, len(found.hits) + 1),
            "image_id": found.hits["image_id"],
            "patient_id": found.hits["patient_id"],
            "split": found.hits["split"],
            "score": [f"{value:.3f}" for value in found.hits["score"]],
            "latents (what they add)": [
                ", ".join(f"{latent} ({value:.2f})" for latent, value in zip(latents, own, strict=True) if value > 0)
                for own in found.hits["contributions"]
            ],
            "labels": [", ".join(labels_of(table, int(row))) or "-" for row in found.hits["row"]],
        }
    )
    return [*lines, columns_of(shown)]


def _figure(table: LatentTable, found: TextSearch, config: Path | None, settings: Sequence[str]) -> Figure:
    rows = found.hits["row"].tolist()
    latents = found.latents["latent"].tolist()
    bars = pd.DataFrame(
        [
            {"place": place, "image_id": hit["image_id"], "latent": latent, "activation": value}
            for place, (_, hit) in enumerate(found.hits.iterrows(), start=1)
            for latent, value in zip(latents, hit["contributions"], strict=True)
        ]
    )
    called = {
        int(row["latent"]): f"{row['latent']}: {told_name({**row, 'name': _shortened(str(row['name']))})}"
        for row in _records(found.latents)
    }
    captions = [
        "\n".join([f"score {score:.3f}", *labels_of(table, row, 4)])
        for score, row in zip(found.hits["score"], rows, strict=True)
    ]
    return plot_hits(
        bars,
        title=f"Images for {found.query!r}",
        captions=captions,
        images=drawn_images(table, rows, config, settings) if config is not None or settings else [],
        axis_label="what a latent adds to the score",
        names=called,
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]


def _shortened(said: str) -> str:
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 1]}…"


def _as_csv(found: TextSearch) -> str:
    latents = found.latents["latent"].tolist()
    added = {
        f"latent_{latent}": [own[place] for own in found.hits["contributions"]] for place, latent in enumerate(latents)
    }
    frame = found.hits.drop(columns=["activations", "contributions"])
    frame.insert(0, "rank", range(1, len(frame) + 1))
    return pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1).to_csv(index=False)


def _as_json(table: LatentTable, found: TextSearch, wanted: Wanted) -> dict[str, Any]:
    return {
        "table": table.folder.name,
        "settings": wanted.told(),
        **dict(found.about),
        "latents": plain(found.latents),
        "hits": plain(found.hits),
    }


def _number(value: float, form: str) -> str:
    return "-" if pd.isna(value) else f"{value:{form}}"


def _ends(row: "pd.Series[Any]", name: str) -> str:
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _scores_as_text(scores: pd.DataFrame, by: str, wanted: Wanted) -> Iterator[str]:
    where = "all images" if wanted.split == ALL else f"{wanted.split} images"
    yield (
        f"Precision of the first {wanted.n} images, one of each {wanted.group}, among {where}; names matched by {by}. "
        "p: how often as many random latents are as precise. In brackets 95 % intervals; of what is random, the range "
        "of 95 % of the draws."
    )
    known = scores[scores["n_queries"] > 0]
    for query, rows in known[known["query"] != ""].groupby("query", sort=False):
        own = rows[rows["source"] == "names"].iloc[0]
        yield f"\n{query!r}: " + (f"latents {own['latents']}" if own["latents"] else str(own["reason"]))
        yield _beside(rows, rows["label"])
    means = known[known["query"] == ""]
    if len(means):
        n_queries = int(means["n_queries"].max())
        n_answered = int(means["n_answered"].max())
        unanswered = "" if n_answered == n_queries else "; the others count as random images do"
        yield f"\nMeans over queries: {n_queries} judged, {n_answered} match a named latent{unanswered}"
        yield _beside(means, means["label"], mean=True)
        if (means["reason"] != "").any():
            yield f"(an interval needs {MIN_PATIENTS} queries)"
    lost = scores[(scores["n_queries"] == 0) & (scores["query"] != "")]
    for query, rows in lost.groupby("query", sort=False):
        told = [
            reason if label == WHOLE else f"{label} ({reason})"
            for label, reason in zip(rows["label"], rows["reason"], strict=True)
            if label != WHOLE or len(rows) == 1
        ]
        whole = ["the whole query"] if len(rows) > 1 and WHOLE in set(rows["label"]) else []
        yield f"not judged: {query!r}: {', '.join([*whole, *told])}"
    if not len(known):
        yield "no query can be judged by this table"


def _beside(rows: pd.DataFrame, labels: "pd.Series[str]", *, mean: bool = False) -> str:
    """A line for each label, with what every source gives beside it."""
    sources = list(dict.fromkeys(rows["source"]))
    found = []
    for label in dict.fromkeys(labels):
        own = rows[rows["label"] == label].set_index("source")
        line: dict[str, Any] = {"label": label}
        if not mean:
            line["right"] = f"{int(own['n_right'].iloc[0])} of {int(own['n_groups'].iloc[0])}"
        for source in sources:
            line[source] = _ends(own.loc[source], "precision") if source in own.index else "-"
        line["p"] = _number(float(own["p_random"]["names"]), ".2g")
        line["mAP" if mean else "AP"] = _number(float(own["average_precision"]["names"]), ".2f")
        line["of random latents"] = _number(float(own["average_precision"].get("random latents", math.nan)), ".2f")
        found.append(line)
    return columns_of(pd.DataFrame(found))
