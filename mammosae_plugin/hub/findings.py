"""Findings of a study as a dataset: staged in a folder, published on the Hub, and read back.

A staged folder is the dataset: a card and one parquet file per config (`schema.findings`), which plain
`datasets.load_dataset(folder_or_repo, config)` reads. `docs/findings.md` is the format's page.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import TEMPORARY, atomic_path, local_path, write_text
from mammosae_plugin.findings.about import About
from mammosae_plugin.findings.comparison import Comparison, Match, Saes, compare
from mammosae_plugin.findings.published import LATENT_KEY, Findings
from mammosae_plugin.hub.policies import FINDINGS
from mammosae_plugin.hub.publishing import Publication, prepare, publishing, recorder
from mammosae_plugin.locks import only_run
from mammosae_plugin.own_files import replace_folder
from mammosae_plugin.schema.findings import CONFIGS, parquet_path

if TYPE_CHECKING:
    from mammosae_plugin.findings.study_folder import StudyFolder
    from mammosae_plugin.hub.pictures import Images
    from mammosae_plugin.privacy.context import PrivacyContext

__all__ = [
    "About",
    "Comparison",
    "Findings",
    "compare_findings",
    "findings_facts",
    "load_findings",
    "prepare_findings",
    "publish_findings",
    "stage_findings",
]

KEY_FILE = "publishing.key"
STAGED_FOLDER = "findings"


def stage_findings(
    study_folder: str | Path,
    folder: str | Path,
    *,
    repo_id: str | None = None,
    licence: str | None = None,
    examples: bool = False,
    min_group: int = 5,
    data_licence: str | None = None,
    key_file: str | Path | None = None,
    images: "Images | None" = None,
    about: About | None = None,
    allow: Sequence[str] = (),
) -> Path:
    """Write what a study found as a dataset's folder: the card, aggregate figures and a parquet file per config.

    Nothing is sent, and nothing of single images is written unless `examples` asks for it.

    Args:
        study_folder: The study's output folder.
        folder: Where to write; it may not exist, or be what this function wrote earlier, which is replaced.
        repo_id: owner/name that the card speaks of.
        licence: The licence of the findings, for the card, such as cc-by-4.0.
        examples: Whether to add heatmaps of single images at the size of the feature map, under hashed ids.
        min_group: Statistics of fewer patients than this are null.
        data_licence: The licence, by name, under which rows per image of a restricted dataset may go out.
        key_file: The key that ids are hashed with; made when it does not exist. By default `publishing.key` in the
            study's folder. It is never published.
        images: With `examples`: the study's images, a dataset or its YAML file; pictures of them are drawn where
            their owner allows it.
        about: Authors, description and links for the card, and where the SAEs and classifiers are published; what the
            study's folder knows of that is linked by itself.
        allow: Texts that look private, and that a person has seen and lets out.

    Returns:
        The folder.

    Raises:
        InputError: No finished study, or a folder that holds something else.
        PrivacyError: Examples of a restricted dataset without its licence, pictures of one, or anything else that may
            not get out.
    """
    from mammosae_plugin.privacy.context import PrivacyContext
    from mammosae_plugin.privacy.guard import check_staged

    context = PrivacyContext.of_study(local_path(study_folder), min_group=min_group, licence=data_licence)
    about = (about or About()).with_record(study_folder)
    context = dataclasses.replace(context, allowed=tuple(allow), pictures=examples)
    with _staged(
        study_folder,
        local_path(folder),
        context,
        about,
        repo_id=repo_id,
        licence=licence,
        images=images,
        key_file=key_file,
    ) as staged:
        check_staged(staged, FINDINGS, context, repo_id=repo_id, related=about.names)
    return local_path(folder)


@contextmanager
def _staged(
    study_folder: str | Path,
    target: Path,
    context: "PrivacyContext",
    about: About,
    *,
    repo_id: str | None,
    licence: str | None,
    images: "Images | None",
    key_file: str | Path | None,
) -> Iterator[Path]:
    """A dataset's folder beside `target`, for the guard to look at; it becomes `target` if no error is raised."""
    from mammosae_plugin.findings.study_folder import StudyFolder
    from mammosae_plugin.findings.tables import examples_table, findings_tables, with_told_pictures
    from mammosae_plugin.hub.cards import render_findings_card
    from mammosae_plugin.hub.pictures import pictures_of
    from mammosae_plugin.privacy.guard import hash_ids, load_or_make_key

    study = StudyFolder(study_folder)
    _check_replaceable(target)
    if images is not None and not context.pictures:
        raise InputError("--data says where the images of pictures lie, which go out only with --examples; add it")
    tables = findings_tables(study, min_group=context.min_group, about=about)
    if context.pictures:
        key = load_or_make_key(key_file or study.folder / KEY_FILE)
        tables["examples"] = examples_table(study, lambda ids: hash_ids(ids, key), min_group=context.min_group)
    target.parent.mkdir(parents=True, exist_ok=True)
    with only_run(file=target), tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=target.parent) as temporary:
        staged = Path(temporary) / "findings"
        pictures, told = pictures_of(study, context, images, staged)
        if pictures is not None:
            tables["pictures"] = pictures
        tables["study"] = with_told_pictures(tables["study"], told)
        for config, table in tables.items():
            _write(staged / parquet_path(config), table)
        findings = Findings.of_tables(repo_id or study.results["title"], tables)
        figures = _draw_figures(study, findings, staged)
        facts = findings_facts(
            findings,
            repo_id=repo_id,
            licence=licence,
            datasets=context.datasets,
            restricted=[one.title for one in context.restricted],
            citations=context.citations,
            figures=figures,
            about=about,
        )
        write_text(staged / "README.md", render_findings_card(facts))
        yield staged
        replace_folder(staged, target)


def findings_facts(
    findings: Findings,
    *,
    repo_id: str | None,
    licence: str | None,
    datasets: Sequence[str],
    restricted: Sequence[str] = (),
    citations: Sequence[str] = (),
    figures: Sequence[str] = (),
    about: About | None = None,
) -> dict[str, Any]:
    """What the card of a findings dataset says, as plain values.

    Returns:
        repo_id, licence, datasets, restricted (titles of those whose rows may not be passed on), citations (of those
        that this package does not know itself) and figures as given; about (see `About.facts`); title and study (see
        `Findings`); configs (name, path in the repository and number of rows of each; the first is the default);
        n_latents (rows of the config latents); best (layer, model, concept, latent, role, reason, evidence,
        average_precision and ablation_effect of the latents that the study names); reconstruction (rows); readers,
        n_notes and agreement (a line, None without labels of two readers).
    """
    from mammosae_plugin.findings.notes import agreement
    from mammosae_plugin.provenance import plain

    labelled = agreement(findings.notes)
    study = findings.study
    sizes = {"study": 1, "latents": len(findings.latents)} | {
        name: len(frame) for name in CONFIGS if isinstance(frame := getattr(findings, name), pd.DataFrame)
    }
    return {
        "repo_id": repo_id,
        "licence": licence,
        "datasets": list(datasets),
        "restricted": list(restricted),
        "citations": list(citations),
        "figures": list(figures),
        "about": (about or About()).facts(without="findings"),
        "title": study["title"],
        "study": study,
        "configs": [
            {"name": name, "path": f"{name}/train-*.parquet", "n_rows": sizes[name]}
            for name in CONFIGS
            if name in sizes
        ],
        "n_latents": sizes["latents"],
        "best": plain(list(_best_latents(findings))),
        "reconstruction": plain(findings.reconstruction.astype(object).to_dict("records")),
        "readers": sorted(findings.notes["author"].unique()),
        "n_notes": len(findings.notes.drop_duplicates(["layer", "latent", "author", "text", "label", "created"])),
        "agreement": labelled.as_text() if len(labelled.readers) > 1 else None,
    }


def _best_latents(findings: Findings) -> Iterator[dict[str, Any]]:
    """The latents that the study names, with what else is known of them."""
    from mammosae_plugin.schema.results import role_evidence, stated_role

    latents = [
        one["latent"] for of in findings.study["named_latents"].values() for named in of.values() for one in named
    ]
    rows = findings.concepts[findings.concepts["latent"].isin(latents)].to_dict("records")
    known = {tuple(row[name] for name in (*LATENT_KEY, "concept")): row for row in rows}
    encoder_of = {(row["layer"], f"{row['name']}/{row['concept']}"): row["encoder"] for row in findings.study["models"]}
    for layer, of_layer in findings.study["named_latents"].items():
        for pair, named in of_layer.items():
            model, _, concept = pair.rpartition("/")
            for one in named:
                row = known[layer, encoder_of[layer, pair], one["latent"], concept]
                facts = {name: row[name] for name in ("average_precision", "ablation_effect")}
                said = {"role": stated_role(one), "reason": one.get("reason"), "evidence": role_evidence(one)}
                yield {"layer": layer, "model": model, "concept": concept, "latent": one["latent"], **said, **facts}


def _draw_figures(study: "StudyFolder", findings: Findings, staged: Path) -> list[str]:
    """The figures that show aggregates, of the concepts in which no class or box is of few patients.

    Those of a study's groups are its own, re-encoded. Figure 4 has a mark for every latent and is drawn anew, of those
    whose class means are published.
    """
    from mammosae_plugin.findings.kept import class_means
    from mammosae_plugin.privacy.guard import copy_figure, let_out
    from mammosae_plugin.schema.names import FIGURE_LAYERS, FIGURES_FOLDER, figure_2_name, figure_4_name
    from mammosae_plugin.visualization.output import draw_class_means

    hidden = {
        *findings.concepts.loc[findings.concepts["n_images"].isna(), "concept"],
        *findings.reconstruction.loc[findings.reconstruction["n_positive"].isna(), "concept"],
        *findings.interventions.loc[findings.interventions["auroc"].isna(), "concept"],  # of a sample, which is smaller
    }
    layer = study.layer()
    shown = [concept for concept in study.concepts if concept not in hidden]
    names = [figure_2_name(concept, error_term=error_term) for concept in shown for error_term in (False, True)]
    names += [] if hidden else [FIGURE_LAYERS]
    drawn = []
    for name in names:
        if (layer.folder / FIGURES_FOLDER / name).exists():
            copy_figure(layer.folder / FIGURES_FOLDER / name, staged / FIGURES_FOLDER / name)
            drawn.append(f"{FIGURES_FOLDER}/{name}")
    told = findings.concepts[(findings.concepts["layer"] == layer.name) & findings.concepts["score"].notna()]
    means = class_means(layer)
    for encoder in layer.encoders.values():
        for concept in encoder.concepts:
            own = told[(told["encoder"] == encoder.name) & (told["concept"] == concept)]
            of_pair = (means["model"] == encoder.model) & (means["concept"] == concept)
            rows = means[of_pair & means["latent"].isin(own["latent"])]
            if concept in shown and len(rows):
                name = f"{FIGURES_FOLDER}/{figure_4_name(encoder.model, concept)}"
                draw_class_means(layer.results, rows, encoder.model, concept, staged / name)
                let_out(staged / name)
                drawn.append(name)
    return drawn


def _check_replaceable(folder: Path) -> None:
    """See that a folder may be replaced: only a dataset staged earlier may."""
    if not folder.exists():
        return
    files = [path for path in folder.rglob("*") if not path.is_dir()] if folder.is_dir() else [folder]
    if not all(FINDINGS.allows(path.relative_to(folder).as_posix()) for path in files):
        raise InputError(f"{folder} holds other files than findings staged earlier; name a new folder")


def _write(path: Path, table: pa.Table) -> None:
    """A config's parquet file: the columns, and no metadata beside them."""
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(None), temporary, compression="zstd", store_schema=False)


def prepare_findings(
    study_folder: str | Path,
    repo_id: str,
    *,
    licence: str,
    folder: str | Path | None = None,
    examples: bool = False,
    min_group: int = 5,
    data_licence: str | None = None,
    key_file: str | Path | None = None,
    images: "Images | None" = None,
    allow: Sequence[str] = (),
    private: bool = True,
    tag: str | None = None,
    replace: bool = False,
    force_poor: bool = True,
    about: About | None = None,
    token: str | None = None,
) -> Publication:
    """Stage and check what a study found, as a dataset for the Hub; `.send()` of the result sends it as one commit.

    Args:
        study_folder: The study's output folder.
        repo_id: owner/name of the dataset.
        licence: The licence of the findings, such as cc-by-4.0.
        folder: Where to stage; by default `findings` in the study's folder.
        examples: As for `stage_findings`.
        min_group: As for `stage_findings`.
        data_licence: As for `stage_findings`.
        key_file: As for `stage_findings`.
        images: As for `stage_findings`.
        allow: As for `stage_findings`.
        private: Whether a repository that is made is private.
        tag: A name for the published state, such as v1.
        replace: Overwrite what the repository holds of an earlier publication. Of the card, what people wrote stays.
        force_poor: Only warn where an SAE does poorly (`hub.quality`); with False, as the command has it, refuse.
        about: As for `stage_findings`.
        token: Of the Hub; by default that of `hf auth login` or HF_TOKEN.

    Returns:
        The publication, not sent: its `folder` holds what would go out, `describe()` lists it.

    Raises:
        InputError: As for `stage_findings`, or no licence, or what is in the way in the repository.
        PrivacyError: Something must not get out.
        HubError: The Hub refuses or cannot be reached.
    """
    from mammosae_plugin.hub.quality import flaws_of_study, refuse_poor
    from mammosae_plugin.privacy.context import PrivacyContext

    if not licence.strip():
        raise InputError("findings need a licence; name one, such as cc-by-4.0")
    refuse_poor(flaws_of_study(study_folder), force_poor=force_poor)
    target = local_path(folder or local_path(study_folder) / STAGED_FOLDER)
    context = PrivacyContext.of_study(local_path(study_folder), min_group=min_group, licence=data_licence)
    about = (about or About()).with_record(study_folder)
    context = dataclasses.replace(context, allowed=tuple(allow), pictures=examples)
    with _staged(
        study_folder, target, context, about, repo_id=repo_id, licence=licence, images=images, key_file=key_file
    ) as staged:
        publication = prepare(
            staged,
            repo_id,
            kind="dataset",
            contents="findings",
            context=context,
            tag=tag,
            private=private,
            replace=replace,
            message="Publish findings with mammosae",
            token=token,
            related=about.names,
            on_sent=recorder(study_folder, "findings"),
        )
    return dataclasses.replace(publication, folder=target)  # the same files, by their checksums


publish_findings = publishing(prepare_findings)


def load_findings(place: str | Path, *, revision: str | None = None, min_group: int = 5) -> Findings:
    """Findings from the Hub, a staged or downloaded folder, or a study's folder.

    Args:
        place: A folder, or a dataset on the Hub as owner/name or owner/name@revision (downloaded, checked and cached by
            `pull`).
        revision: Commit, branch or tag, for the Hub, unless `place` names one.
        min_group: From a study's folder, statistics of fewer patients than this are left out.

    Raises:
        InputError: Neither a folder nor the name of a repository, two revisions, or no findings there.
        HubError: The Hub refuses or cannot be reached, and the cache does not have it.
    """
    folder = local_path(place)
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{place} is a folder, which has no revision {revision!r}; leave it out")
        if (folder / parquet_path("study")).exists():
            return Findings.load(folder)
        return Findings.of_study(folder, min_group=min_group)
    from mammosae_plugin.adapters.sources import is_hub_name, parse_hub_name
    from mammosae_plugin.hub.pulling import pull

    if not is_hub_name(str(place)):
        raise InputError(f"{place} is neither a folder nor the name of a dataset on the Hub (owner/name[@revision])")
    repo_id, revision, path = parse_hub_name(str(place), revision=revision)
    if path is not None:
        raise InputError(f"{place} names {path} in a repository; findings are a whole one: owner/name[@revision]")
    origin = repo_id if revision is None else f"{repo_id}@{revision}"
    return Findings.load(pull(repo_id, revision=revision, kind="dataset"), origin=origin, repo_id=repo_id)


def compare_findings(
    a: Findings | str | Path,
    b: Findings | str | Path,
    *,
    top: int = 10,
    match: Match = "index",
    saes: tuple[Saes, Saes] | None = None,
    min_cosine: float = 0.7,
    models: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare the findings of two studies.

    Rows are compared where both studies have the same hook point, model and concept. With `match="index"` latents of
    equal number are compared, which asks for one and the same SAE. With `match="decoder"` those of two SAEs of one
    layer are matched first (`findings.comparison.match_latents`); latents without a partner are left out, and the best
    are the best of the rest. `Comparison` says what is compared: ranks, effect sizes, localization, and of two SAEs the
    share of latents that are paired.

    Args:
        a: Findings, or what `load_findings` reads.
        b: The same of the other study.
        top: How many of the best latents per class to compare.
        match: "index" or "decoder".
        saes: For "decoder" the SAEs of a and of b: an SAE or its place, or a mapping of layer to either.
        min_cosine: For "decoder" the least cosine of a pair.
        models: Names of models in a -> their names in b, where they differ.

    Raises:
        InputError: Nothing in common; different scores; different SAEs with match "index"; SAEs that are missing or not
            those of the findings with match "decoder"; findings that cannot be loaded.
    """
    first, second = (one if isinstance(one, Findings) else load_findings(one) for one in (a, b))
    given = [one.origin if isinstance(one, Findings) else str(one) for one in (a, b)]
    return compare(
        first,
        second,
        top=top,
        match=match,
        saes=saes,
        min_cosine=min_cosine,
        models=models,
        places=(given[0], given[1]),  # two folders of one name: as they were given
    )
