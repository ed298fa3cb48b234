"""A static Space: a findings dataset to browse, as plain HTML, CSS and JavaScript that need no server.

The pages lie in `hub_cards/space`. What they show is written beside them as `data/*.js`, one assignment of a JSON value
per file, because a page that is opened from a folder may read scripts but no other files. docs/space.md is the format's
page.
"""

__all__ = [
    "build_space", "DATA_FOLDER", "FORMAT_VERSION", "INDEX", "PAGES", "prepare_space", "publish_space", "read_findings",
    "read_for_pages", "Row",
]  # fmt: skip

import dataclasses
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from huggingface_hub import HfApi

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import TEMPORARY, local_path, write_text
from mammosae_plugin.findings.about import About
from mammosae_plugin.findings.published import Findings
from mammosae_plugin.findings.study_folder import is_study_folder, sae_tensors
from mammosae_plugin.hub.findings import load_findings
from mammosae_plugin.hub.publishing import (
    Publication,
    file_of_repo,
    files_of_repo,
    kept_until_staged,
    look_at_head,
    prepare,
    publishing,
    recorder,
)
from mammosae_plugin.hub.scratch import Scratch
from mammosae_plugin.hub.space_details import Row, details_of, maps_of, pictures_in, rows_of, values_of
from mammosae_plugin.locks import only_run
from mammosae_plugin.own_files import replace_folder
from mammosae_plugin.progress import progress
from mammosae_plugin.schema.findings import COLUMNS, CONCEPT, CONFIGS, NOTE, SCHEMAS, parquet_path
from mammosae_plugin.schema.libraries import libraries_used
from mammosae_plugin.schema.results import role_evidence, stated_role

if TYPE_CHECKING:
    from mammosae_plugin.hub.pictures import Images
    from mammosae_plugin.privacy.context import PrivacyContext

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
PAGES = (
    *("index.html", "style.css", "core.js", "charts.js", "download.js", "columns.js", "table.js"),
    *("pictures.js", "notes.js", "around.js", "latent.js", "map.js", "compare.js", "study.js", "app.js"),
)
DATA_FOLDER = "data"
INDEX = "index"
HUB = "https://huggingface.co"

_LATENT = ("latent", *(column.name for column in COLUMNS["latents"] if column.privacy == "group"))
_NOTE = ("layer", "encoder", "latent", *(field.name for field in NOTE))
_NAME = (
    *("layer", "encoder", "latent", "method", "name", "score", "low", "high", "chance", "q", "n"),
    *("check_auroc", "check_low", "check_high", "model", "prompt_version"),
    *("judge", "detection", "detection_low", "detection_high"),
)
_EVIDENCE = (
    *("verdict", "reason", "statistic", "auroc", "auroc_low", "auroc_high", "auroc_q"),
    *("reliance", "reliance_low", "reliance_high", "place", "place_low", "place_high", "place_reason"),
    *("covariate", "covariate_kind", "covariate_r", "covariate_q", "n_tests"),
)
_LOCALIZATION = SCHEMAS["localization"].names
# Of these two tables the page draws a part.
_INTERVENTION = (
    *("layer", "model", "concept", "error_term", "mode", "k", "n_latents", "auroc", "auroc_low", "auroc_high"),
    *("random_auroc_mean", "random_auroc_low", "random_auroc_high"),
)
_RECONSTRUCTION = ("layer", "model", "concept", "variant", "n_rows", "auroc", "auroc_low", "auroc_high")


def build_space(
    findings: Findings,
    folder: str | Path,
    *,
    compare: Findings | None = None,
    title: str | None = None,
    about: About | None = None,
    citations: Sequence[str] = (),
    examples: bool = False,
) -> Path:
    """Write a Space that shows findings.

    `index.html` in the folder can be opened as it is. Every number is the findings' own; nothing is rounded, and what
    they lack, because it was suppressed or not measured, stays missing. The heatmaps of the config `examples` are not
    written.

    Args:
        findings: What to show.
        folder: Where; absent, empty, or holding a Space that was built before, whose data go.
        compare: Another study's findings, to show beside them.
        title: What the page is called; the study's title when None.
        about: Authors, description, links, and repositories of the same study.
        citations: How to cite the data, where this package does not know it itself.
        examples: Whether to show the pictures of single images that the findings hold.

    Returns:
        The folder.

    Raises:
        InputError: The folder holds something else, or the findings hold no latent, or not the pictures to be shown.
    """
    target = local_path(folder)
    _check_replaceable(target)
    studies = [findings] if compare is None else [findings, compare]
    studies = [_told(one, examples=examples and (one is findings or one.pictures is not None)) for one in studies]
    about = _of_findings(about or About(), findings)
    target.parent.mkdir(parents=True, exist_ok=True)
    with only_run(file=target), tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=target.parent) as temporary:
        _write_space(studies, Path(temporary), title or findings.study["title"], about, citations)
        replace_folder(Path(temporary), target)
    return target


def _write_space(studies: list[Findings], folder: Path, title: str, about: About, citations: Sequence[str]) -> None:
    said = about.facts(without="space")
    index: Row = {
        "format_version": FORMAT_VERSION,
        "title": title,
        "about": {**said, "links": [{name: row[name] for name in ("name", "text", "url")} for row in said["links"]]},
        "studies": [],
    }
    # The name of a folder on this machine is nobody else's business.
    names = [study.origin if study.repo_id is not None else str(study.study["title"]) for study in studies]
    if len(set(names)) < len(names):
        names = [f"{name} ({side})" for name, side in zip(names, "AB", strict=True)]
    for number, (study, name) in enumerate(zip(studies, names, strict=True)):
        entry, tables = _study(study, number, name)
        index["studies"].append(entry)
        n_files = len(entry["maps"]) + sum(1 + len(one["concepts"]) + len(one["details"]) for one in entry["tables"])
        shown = {"total": n_files, "description": "write the Space", "unit": "file", "to": folder}
        for file, table in progress(tables, delay=2, leave=False, **shown):
            _write_data(folder, file, table)
        if study.pictures is not None:
            from mammosae_plugin.hub.pictures import copy_pictures

            copy_pictures(study, folder)
    _write_data(folder, INDEX, index)
    pages = resources.files("mammosae_plugin.hub_cards") / "space"
    for name in PAGES:
        write_text(folder / name, (pages / name).read_text(encoding="utf-8"))
    write_text(folder / "README.md", _readme(index, studies, about, citations))


def _told(findings: Findings, *, examples: bool) -> Findings:
    if not examples and findings.pictures is None:
        return findings
    from mammosae_plugin.hub.pictures import told_pictures

    return told_pictures(findings, examples=examples)


def _of_findings(about: About, findings: Findings) -> About:
    """With the repositories that the findings name, where none are given."""
    rows = {"sae": findings.study["sae"].values(), "model": findings.study["models"]}
    found: dict[str, Any] = {
        part: next((f"{row['published']['repo']}" for row in rows[part] if row.get("published")), None) for part in rows
    }
    found["findings"] = findings.repo_id
    return dataclasses.replace(about, **{part: getattr(about, part) or place for part, place in found.items()})


def _check_replaceable(folder: Path) -> None:
    """See that a folder is empty, or holds only a Space that was built there before."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DATA_FOLDER / f"{INDEX}.js").is_file():
        raise InputError(f"{folder} holds something that is no Space; name another folder")


def _write_data(folder: Path, name: str, value: Any) -> None:
    # A "<" could only matter to a reader of HTML; in a script file it does not, and escaped it cannot anywhere.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    write_text(folder / DATA_FOLDER / f"{name}.js", f'mammosae.data["{name}"] = {text};\n')


def _study(findings: Findings, number: int, origin: str) -> tuple[Row, Iterator[tuple[str, Row]]]:
    """A study's entry in the index, and its tables by name; the number of the study begins their names."""
    study = findings.study
    if findings.latents.empty:
        raise InputError(f"{findings.origin} holds no latent, so that there is nothing to show")
    models = {(row["layer"], row["encoder"]): row for row in study["models"]}
    tables: list[Row] = []
    frames: dict[str, pd.DataFrame] = {}
    classes = dict(iter(findings.concepts.groupby(["layer", "encoder", "concept"], sort=False)))
    known = {} if findings.evidence is None else dict(iter(findings.evidence.groupby(["layer", "model", "concept"])))
    evidence: dict[str, pd.DataFrame] = {}
    pages: dict[str, list[tuple[int, Row]]] = {}
    pictures: dict[str, list[tuple[int, Row]]] = {}
    for place, latents in findings.latents.groupby(["layer", "encoder"], sort=False):
        layer, encoder = (str(part) for part in place)
        name = f"{'ab'[number]}{len(tables)}"
        frames[name] = latents.sort_values("latent", kind="stable")
        concepts: list[Row] = []
        for key, rows in classes.items():
            if key[:2] == place:
                part = f"{name}-{len(concepts)}"
                frames[part] = rows
                concepts.append({"concept": key[2], "n_images": _per_class(rows), "file": part})
                if (own := known.get((layer, models[layer, encoder]["name"], key[2]))) is not None:
                    evidence[part] = own
                    concepts[-1]["evidence"] = True
        model = models[layer, encoder]
        pages[name] = list(details_of(findings, layer, encoder))
        pictures[name] = list(pictures_in(findings, layer, encoder))
        tables.append(
            {
                "study": number,
                "layer": layer,
                "encoder": encoder,
                "model": model["name"],
                "hook_name": model["hook_name"],
                "readout": model.get("readout"),
                "sae": sae_tensors(study["sae"][layer]),
                "file": name,
                "concepts": concepts,
                "details": [chunk for chunk, _ in pages[name]],
                "pictures": None if findings.pictures is None else [chunk for chunk, _ in pictures[name]],
            }
        )
    entry = {
        "origin": origin,
        "link": None if findings.repo_id is None else f"{HUB}/datasets/{findings.repo_id}",
        "parquet": _parquet(findings),
        **{name: study[name] for name in ("title", "created", "data_kind", "min_group")},
        "layers": [layer for layer in study["layers"] if any(table["layer"] == layer for table in tables)],
        "tables": tables,
        "notes": rows_of(findings.notes, _NOTE),
        "names": [] if findings.names is None else rows_of(findings.names, _NAME),
        "interventions": rows_of(findings.interventions, _INTERVENTION),
        "reconstruction": rows_of(findings.reconstruction, _RECONSTRUCTION),
        "localization": rows_of(findings.localization[findings.localization["method"] == "latent"], _LOCALIZATION),
        "roles": list(_roles(study)),
        **{name: study[name] for name in ("config", "provenance", "data", "models", "sae")},
    }
    entry["primary"] = entry["layers"][-1]
    maps = maps_of(findings)
    entry["maps"] = {}
    for layer, (about, _) in maps.items():
        entry["maps"][layer] = {"file": f"{'ab'[number]}m{len(entry['maps'])}", **about}
    places = ((entry["maps"][layer]["file"], table) for layer, (_, table) in maps.items())
    details = (
        (f"{kind}{name}-{chunk}", table)
        for kind, found in (("d", pages), ("p", pictures))
        for name, chunks in found.items()
        for chunk, table in chunks
    )
    return entry, chain(_tables(frames, evidence), places, details)


def _parquet(findings: Findings) -> dict[str, str] | None:
    """Where the files of findings of the Hub are, by config; None for findings of this machine."""
    if findings.repo_id is None:
        return None
    revision = findings.origin.partition("@")[2] or "main"
    own = ("latents", *(name for name in CONFIGS if isinstance(getattr(findings, name, None), pd.DataFrame)))
    return {
        name: f"{HUB}/datasets/{findings.repo_id}/resolve/{revision}/{parquet_path(name)}"
        for name in dict.fromkeys(own)
    }


def _tables(frames: dict[str, pd.DataFrame], evidence: dict[str, pd.DataFrame]) -> Iterator[tuple[str, Row]]:
    order: np.ndarray[Any, Any] = np.empty(0)
    for name, frame in frames.items():
        if "-" not in name:
            order = frame["latent"].to_numpy()
            yield name, {column: values_of(frame[column]) for column in _LATENT}
        else:
            own = {"evidence": _evidence(evidence[name], order)} if name in evidence else {}
            yield name, _concept(frame, order) | own


def _concept(rows: pd.DataFrame, latents: np.ndarray[Any, Any]) -> Row:
    """What the latents of a table are for one concept, in the table's order: lists per class, and single values."""
    per_class = [own.set_index("latent").loc[latents] for _, own in rows.groupby("class")]
    return {
        one.name: [values_of(own[one.each]) for own in per_class] if one.each else values_of(per_class[0][one.name])
        for one in CONCEPT
        if one.privacy == "group"
    }


def _evidence(rows: pd.DataFrame, latents: np.ndarray[Any, Any]) -> Row:
    """What is known of the latents for one concept, in the table's order; nothing of those that have no row."""
    whole = rows.set_index("latent").reindex(latents)
    return {name: values_of(whole[name]) for name in _EVIDENCE}


def _per_class(rows: pd.DataFrame) -> list[int | None]:
    """How many training images each class has; None where that is suppressed."""
    counts = [values_of(own["n_images"].drop_duplicates()) for _, own in rows.groupby("class")]
    if any(len(count) != 1 for count in counts):
        raise InputError("the latents of one table have class means of different images; stage the findings again")
    return [count[0] for count in counts]


def _roles(study: Row) -> Iterator[Row]:
    """One row per latent that the study named: layer, model, concept, latent, role, evidence (a line of numbers)."""
    for row in study["models"]:
        own = study["named_latents"].get(row["layer"], {}).get(f"{row['name']}/{row['concept']}", [])
        for named in own:
            yield {
                "layer": row["layer"],
                "model": row["name"],
                "concept": row["concept"],
                "latent": named["latent"],
                "role": stated_role(named),
                "evidence": role_evidence(named),
            }


def _readme(index: Row, studies: list[Findings], about: About, citations: Sequence[str]) -> str:
    """The page that the Hub shows of the Space itself; its front matter says that it is static."""
    from mammosae_plugin.hub.cards import render_space_readme

    shown = [study.repo_id for study in studies[1:]]
    facts = {
        "title": index["title"],
        "datasets": _distinct([about.repositories().get("findings", (None,))[0], *shown]),
        "models": _distinct(about.repositories().get(part, (None,))[0] for part in ("sae", "model")),
        "kinds": _distinct(study.study["data_kind"] for study in studies),
        "libraries": _distinct(
            name for study in studies for name in libraries_used(study.study["models"], study.study["config"])
        ),
        "citations": list(citations),
        "about": about.facts(without="space"),
        "pictures": any(study.pictures is not None for study in studies),
    }
    return render_space_readme(facts)


def _distinct(values: Iterable[str | None]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value is not None]


def prepare_space(
    source: Findings | str | Path,
    repo_id: str,
    *,
    compare: Findings | str | Path | None = None,
    folder: str | Path | None = None,
    title: str | None = None,
    min_group: int = 5,
    examples: bool = False,
    images: "Images | None" = None,
    private: bool = True,
    tag: str | None = None,
    replace: bool = False,
    force_poor: bool = True,
    allow: Sequence[str] = (),
    about: About | None = None,
    token: str | None = None,
) -> Publication:
    """Build and check a static Space that shows findings; `.send()` of the result sends it as one commit.

    Args:
        source: Findings, or what `load_findings` reads: a dataset on the Hub (owner/name, or owner/name@revision), a
            folder of findings, a study's folder.
        repo_id: owner/name of the Space.
        compare: Another study's, to show beside it.
        folder: Where to build; by default a folder that is removed afterwards.
        title: What the page is called; when None as it was called when it is replaced, else the study's title.
        min_group: Statistics of fewer patients than this must be missing; in a study's folder they are made so.
        examples: Whether to show pictures of single images: those that the findings hold, or of a study's folder those
            that are drawn of `images`.
        images: The images of the study's folder: a dataset, or the study's YAML file, which says where they lie.
        private: Whether a Space that is made is private.
        tag: A name for the published state, such as v1.
        replace: Overwrite what the Space holds otherwise. Of its README, what people wrote stays.
        force_poor: Only warn where an SAE does poorly (`hub.quality`); with False, as the command has it, refuse.
        allow: Texts that look private, and that a person has seen and lets out.
        about: Authors, description and links. The repositories of the same study are linked by themselves.
        token: Of the Hub; by default that of `hf auth login` or HF_TOKEN.

    Returns:
        The publication, not sent: its `folder` holds what would go out, `describe()` lists it.

    Raises:
        InputError: As for `build_space` and `load_findings`, or what is in the way in the repository.
        PrivacyError: Something must not get out.
        HubError: The Hub refuses or cannot be reached.
    """
    from mammosae_plugin.hub.quality import flaws_of, refuse_poor

    with read_for_pages(source, min_group=min_group, examples=examples, images=images) as main:
        read = [main] if compare is None else [main, _read(compare, min_group)]
        refuse_poor((flaw for one, _ in read for flaw in flaws_of(one.study["sae"])), force_poor=force_poor)
        study = None if isinstance(source, Findings) or not is_study_folder(source) else source
        about = about or About()
        if study is not None:
            about = about.with_record(study)
        about = _of_findings(about, read[0][0])
        scratch = Scratch("space") if folder is None else None
        with kept_until_staged(scratch) as hand_over:
            building = scratch.folder / "space" if scratch is not None else local_path(folder)  # type: ignore[arg-type]
            if title is None and replace:
                title = _title_there(repo_id, token)
            context = _joined([context for _, context in read], min_group)
            other = read[1][0] if compare is not None else None
            build_space(
                read[0][0],
                building,
                compare=other,
                title=title,
                about=about,
                citations=context.citations,
                examples=examples,
            )
            publication = prepare(
                building,
                repo_id,
                kind="space",
                contents="space",
                context=dataclasses.replace(context, allowed=tuple(allow), pictures=examples),
                tag=tag,
                private=private,
                replace=replace,
                message="Publish a Space with mammosae",
                space_sdk="static",
                token=token,
                related=_distinct([*about.names, *(one.repo_id for one, _ in read)]),
                on_sent=recorder(study, "space") if study is not None else None,
            )
            return hand_over(publication)


publish_space = publishing(prepare_space)


def _title_there(repo_id: str, token: str | None) -> str | None:
    """The title that was given to the Space that is there; None where it has its study's, or there is none."""
    api = HfApi(token=token)
    commit, name = look_at_head(api, repo_id, "space"), f"{DATA_FOLDER}/{INDEX}.js"
    if commit is None or name not in files_of_repo(api, repo_id, "space", commit):
        return None
    file = file_of_repo(repo_id, name, "space", commit, token)
    try:
        index = json.loads(file.read_text(encoding="utf-8").partition(" = ")[2].rstrip().removesuffix(";"))
        title, of_study = str(index["title"]), str(index["studies"][0]["title"])
    except (ValueError, KeyError, IndexError, TypeError):  # not as we write it
        return None
    return title if title != of_study else None


def read_findings(source: Findings | str | Path, *, min_group: int = 5) -> Findings:
    """Findings as given or read; from a study's folder, without statistics of fewer than `min_group` patients.

    Raises:
        InputError: As `load_findings`.
    """
    if isinstance(source, Findings):
        return source
    return load_findings(source, min_group=min_group)


@contextmanager
def read_for_pages(
    source: Findings | str | Path, *, min_group: int = 5, examples: bool = False, images: "Images | None" = None
) -> "Iterator[tuple[Findings, PrivacyContext]]":
    """Findings, and what must not get out with them; pictures that are drawn are there for as long as the block lasts.

    Args:
        source: As for `prepare_space`.
        min_group: Likewise.
        examples: Likewise.
        images: Likewise.

    Raises:
        InputError: As `load_findings`; images of what is no study's folder, or that are not asked for; none given.
        PrivacyError: Pictures may not leave.
    """
    if images is not None and not examples:
        raise InputError("--data says where the images of pictures lie, which are shown only with --examples; add it")
    if images is not None and (isinstance(source, Findings) or not is_study_folder(source)):
        raise InputError("--data is for a study's folder; findings that were staged or published hold their pictures")
    findings, context = _read(source, min_group)
    context = dataclasses.replace(context, pictures=examples)
    if examples and (why_not := context.why_no_pictures) is not None:
        from mammosae_plugin.privacy.context import PrivacyError

        raise PrivacyError(f"no pictures of {findings.origin} can go out: {why_not}. Nothing was written or sent")
    if isinstance(source, Findings) or not is_study_folder(source):
        yield findings, context
        return
    from mammosae_plugin.findings.study_folder import StudyFolder
    from mammosae_plugin.hub.pictures import pictures_of

    scratch = Scratch("pictures")
    try:
        table, told = pictures_of(StudyFolder(source), context, images, scratch.folder)
        yield findings.with_pictures(table, told, scratch.folder if table is not None else None), context
    finally:
        scratch.remove()


def _read(source: Findings | str | Path, min_group: int) -> "tuple[Findings, PrivacyContext]":
    """Findings, and what must not get out with them: of a study's folder the ids of its patients and images too."""
    from mammosae_plugin.datasets.about import KNOWN, DatasetAbout
    from mammosae_plugin.privacy.context import PrivacyContext
    from mammosae_plugin.privacy.pictures import is_permitted

    findings = read_findings(source, min_group=min_group)
    if not isinstance(source, Findings) and is_study_folder(source):
        return findings, PrivacyContext.of_study(local_path(source), min_group=min_group)
    logger.warning(
        "the ids of patients and images behind %s are not known here: its texts are looked through for what looks like "
        "an id, a name or a date alone. Read the notes before you publish them",
        findings.repo_id or "these findings",
    )
    concepts, name = frozenset(findings.study["concepts"]), str(findings.study["data_kind"])
    about: tuple[DatasetAbout, ...] = ()
    if name.lower() not in KNOWN and is_permitted(findings.study["data"]):  # as was decided where its terms are known
        about = (DatasetAbout(name, name, restricted=False),)
    return findings, PrivacyContext(datasets=(name,), min_group=min_group, about=about, concepts=concepts)


def _joined(contexts: "Sequence[PrivacyContext]", min_group: int) -> "PrivacyContext":
    from mammosae_plugin.privacy.context import PrivacyContext

    return PrivacyContext(
        frozenset().union(*(context.private_values for context in contexts)),
        tuple(dict.fromkeys(name for context in contexts for name in context.datasets)),
        min_group,
        about=tuple(dict.fromkeys(one for context in contexts for one in context.about)),
        concepts=frozenset().union(*(context.concepts for context in contexts)),
    )
