"""Publishing SAEs so that `SAE.from_pretrained(repo, sae_id)` loads them with nothing of ours installed.

What is staged is SAELens's layout, `<sae_id>/cfg.json` and `<sae_id>/sae_weights.safetensors`, with what is known of
the SAE beside it: training.json, metrics, evaluation.json, score_card.json, provenance.json; and one card for the
repository. Before it may go out, a process of its own that imports sae_lens and nothing of ours loads it and computes
the same latents.
"""

__all__ = [
    "CARD", "CONFOUNDER", "datasets_of", "EVALUATION", "FIGURE", "METRICS", "Origin", "origin_of", "origins_of",
    "prepare_sae", "PROVENANCE", "publish_sae", "SAID", "SPARSITY", "stage_saes", "TRAINING",
]  # fmt: skip

import copy
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import SAE_CLASS_REGISTRY
from safetensors.torch import load_file, save_file

from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.adapters.input_scaling import NOT_IN_THE_WEIGHTS
from mammosae_plugin.adapters.sae_formats import load_sae
from mammosae_plugin.adapters.sae_formats.saelens import DIGESTS
from mammosae_plugin.adapters.sources import is_on_hub
from mammosae_plugin.datasets.about import KNOWN
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import (
    atomic_path,
    local_path,
    read_json,
    write_json,
    write_safetensors,
    write_text,
)
from mammosae_plugin.findings.about import About
from mammosae_plugin.findings.study_folder import LayerResults, StudyFolder, is_study_folder
from mammosae_plugin.findings.tables import shared_named_latents, shared_quality
from mammosae_plugin.hub.plain_sae_lens import check_with_sae_lens
from mammosae_plugin.hub.portable import portable, provenance_of, with_fingerprint
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
from mammosae_plugin.hub.quality import refuse_poor
from mammosae_plugin.hub.score_cards import score_cards_of, stage_score_card
from mammosae_plugin.hub.scratch import Scratch
from mammosae_plugin.privacy.context import PrivacyContext
from mammosae_plugin.privacy.guard import copy_figure, let_out
from mammosae_plugin.provenance import plain, tensors_fingerprint
from mammosae_plugin.schema.results import poor_sae, role_evidence
from mammosae_plugin.schema.score_card import SCORE_CARD, ScoreCard, study_audit
from mammosae_plugin.training.metrics import draw_metrics, read_metrics, trained_l0
from mammosae_plugin.training.saving import CFG, WEIGHTS, save_sae

CONFOUNDER = "confounder"
"""The label by which a reader says that a latent follows something that goes with the finding, and not the finding."""
SPARSITY = "sparsity.safetensors"
TRAINING, METRICS, FIGURE = "training.json", "metrics.jsonl", "metrics.png"
EVALUATION, PROVENANCE, CARD = "evaluation.json", "provenance.json", "README.md"
SAID = ("licence", "base_model", "datasets", "citations", "images", "confounders")
"""What is said of an SAE in its provenance.json, from which later cards of the same repository take it."""
_SAE_ID = re.compile(r"[A-Za-z0-9][\w.-]*")
_TAKEN = {"readme.md": "file", "figures": "folder"}
"""What lies beside the SAEs in a repository, in lower case, since some file systems do not tell it apart."""
_MEASURES = ("explained_variance", "mse", "l0", "dead_share", "slope", "auroc_cost", "rows")


@dataclass(frozen=True)
class Origin:
    """One SAE as it was given: its object, or the folder or file that it was loaded from.

    Attributes:
        sae: the SAE that is to be published, as SAELens uses it.
        folder: the folder in SAELens's format whose tensors go out bit by bit, None if it has to be saved anew.
        beside: the folder with training.json and so on, None if there is none.
        evaluation: what is known of its quality.
        score_card: of its audit; None without one.
    """

    sae: SAE[Any]
    folder: Path | None = None
    beside: Path | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    score_card: ScoreCard | None = None


def prepare_sae(
    saes: SAE[Any] | str | os.PathLike[str] | Mapping[str, SAE[Any] | str | os.PathLike[str]],
    repo_id: str,
    *,
    sae_id: str | None = None,
    licence: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    evaluation: Mapping[str, Any] | None = None,
    score_card: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None = None,
    figures: Sequence[str | os.PathLike[str]] = (),
    context: PrivacyContext | None = None,
    min_group: int = 5,
    tag: str | None = None,
    private: bool = True,
    replace: bool = False,
    force_poor: bool = True,
    allow: Sequence[str] = (),
    message: str | None = None,
    staging: str | os.PathLike[str] | None = None,
    about: About | None = None,
    token: str | None = None,
) -> Publication:
    """Stage and check SAEs for a repository on the Hub; `.send()` of the result makes one commit, and a tag.

    Args:
        saes: an SAE (a SAELens `SAE` or `TrainingSAE`); a folder that `train_sae` or SAELens wrote; a Mammo-SAE file; a
            study's output folder, whose trained SAEs are published under the names of their layers; or several by id.
        repo_id: owner/name. It is made if need be; SAEs of other ids in it stay, and stand in the card too.
        sae_id: the id of a single SAE, the second argument of `SAE.from_pretrained`. By default its layer's name.
        licence: of the weights, as the Hub names it ("mit", "cc-by-4.0", ...); nothing is published without one. SAEs
            on Mammo-CLIP's features are cc-by-nc-sa-4.0, as Mammo-CLIP is, unless their author decides otherwise.
        base_model: the Hub's name of the model whose activations the SAE reads.
        datasets: names of the datasets that it was trained on, as they call themselves; by default the study's or the
            context's, or else what each SAE's metadata says for certain.
        evaluation: measures for `evaluation.json` and the card (explained_variance, l0, dead_share, ...); by id where
            there are several SAEs. By default the last line of its training's metrics, or the study's results.
        score_card: what `mammosae audit` wrote, the folder or its score_card.json, for the card; by id where there are
            several SAEs. By default the one that lies in the SAE's folder or in `audit` there, or the study's.
        figures: figures of aggregates for the card, from a study's `results/figures`.
        context: what must not get out; by default the names of the datasets, for a study also its ids.
        min_group: where no context says it: measures of fewer patients than this are left out.
        tag: a name for the published state, such as "v1".
        private: make a new repository private.
        replace: overwrite what is there otherwise; without it that is refused. Of the card, what people wrote stays.
        force_poor: only warn where an SAE does poorly (`hub.quality`); with False, as the command has it, refuse.
        allow: texts that look private, and that a person has seen and lets out.
        message: of the commit.
        staging: where to stage; by default a folder that is removed afterwards.
        about: authors, description and links for the card. Of a study the repositories in which its findings and the
            rest were published are linked by themselves.
        token: of the Hub; by default that of `hf auth login` or HF_TOKEN.

    Returns:
        The publication, not sent: its `folder` holds what would go out, `describe()` lists it.

    Raises:
        InputError: no licence, or not that of the other SAEs of the repository; no SAE that plain SAELens can load and
            compute the same with; or as `prepare`.
        PrivacyError: something of it must not get out.
        HubError: the Hub refuses, or cannot be reached.
    """
    if licence is None or not licence.strip():
        raise InputError(
            "an SAE is published under a licence; name it with --licence (licence=), such as mit or, for Mammo-CLIP's "
            "features, cc-by-nc-sa-4.0"
        )
    licence = licence.strip()
    study = StudyFolder(saes) if is_study_folder(saes) else None  # type: ignore[arg-type]
    if context is None and study is not None:
        context = PrivacyContext.of_study(study.folder, min_group=min_group)
    min_group = context.min_group if context is not None else min_group
    origins = origins_of(saes, sae_id, evaluation, min_group=min_group)
    cards = score_cards_of(
        {name: tensors_fingerprint(one.sae.state_dict()) for name, one in origins.items()},
        score_card,
        {name: one.beside if study is None else study_audit(study.folder, name) for name, one in origins.items()},
        min_group=min_group,
    )
    origins = {name: dataclasses.replace(one, score_card=cards.get(name)) for name, one in origins.items()}
    refuse_poor(
        (
            f"{name}: {flaw}"
            for name, one in origins.items()
            if (flaw := poor_sae(dict(one.evaluation), trained_l0(one.sae)))
        ),
        force_poor=force_poor,
    )
    about = about or About()
    if study is not None:
        about = about.with_record(study.folder)
    scratch = Scratch("publish") if staging is None else None
    with kept_until_staged(scratch) as hand_over:
        folder = scratch.folder if scratch is not None else local_path(staging)  # type: ignore[arg-type]
        facts = stage_saes(
            origins,
            folder,
            figures=figures,
            licence=licence,
            base_model=base_model,
            datasets=tuple(datasets) or (context.datasets if context is not None else ()),
            citations=context.citations if context is not None else (),
            confounders=_confounders(study.folder, context.min_group)
            if context is not None and study is not None
            else (),
            study=study,
        )
        there = _what_is_there(repo_id, facts, token)
        there.require_licence(licence)
        staged_figures = {path.relative_to(folder).as_posix() for path in (folder / "figures").glob("*.png")}
        card = {
            "repo_id": repo_id,
            "saes": {**there.saes, **facts},
            "licence": licence,
            "tag": tag,
            "figures": sorted(staged_figures | set(there.figures)),
            "about": about.facts(without="sae"),
        }
        write_text(folder / CARD, _card(card))
        context = context or PrivacyContext(
            datasets=_distinct(one["datasets"] for one in facts.values()), min_group=min_group
        )
        publication = prepare(
            folder,
            repo_id,
            kind="model",
            contents="sae",
            context=dataclasses.replace(context, allowed=(*context.allowed, *allow)),
            tag=tag,
            private=private,
            replace=replace,
            message=message or f"SAE {', '.join(facts)}",
            token=token,
            related=about.names,
            on_sent=recorder(study.folder, "sae", _ids(origins)) if study is not None else None,
        )
        if publication.parent != there.commit:
            raise InputError(f"{repo_id} was changed while its card was written; run again to see what is there now")
        check_with_sae_lens({name: folder / name for name in facts}, {name: origins[name].sae for name in facts})
        return hand_over(publication)


publish_sae = publishing(prepare_sae)


# -- what is given -------------------------------------------------------------------------------------------------


def origins_of(
    saes: Any, sae_id: str | None = None, evaluation: Mapping[str, Any] | None = None, *, min_group: int = 5
) -> dict[str, Origin]:
    """What `publish_sae` is given, by id; of a study without measures of fewer patients than `min_group`.

    Raises:
        InputError: it is no SAE, or an id cannot be one.
    """
    if isinstance(saes, Mapping):
        if sae_id is not None:
            raise InputError("several SAEs have their ids in the mapping; leave sae_id out")
        found = {str(name): origin_of(source) for name, source in saes.items()}
        unknown = sorted(set(evaluation or {}) - set(found))
        if unknown:
            raise InputError(f"evaluation is of {', '.join(unknown)}, but the SAEs are {', '.join(found) or 'none'}")
        by_id = dict(evaluation or {})
    elif is_study_folder(saes):
        if evaluation:
            raise InputError(
                f"{saes} is a study, whose own measures go onto the card; leave out --evaluation (evaluation=), or "
                "publish the SAE's folder by itself"
            )
        found = _of_study(local_path(saes), min_group)
        if sae_id is not None and sae_id not in found:
            raise InputError(f"{saes} trained no SAE at {sae_id!r}; it has {', '.join(found)}")
        found = found if sae_id is None else {sae_id: found[sae_id]}
        by_id = {}
    else:
        origin = origin_of(saes)
        name = sae_id if sae_id is not None else _default_id(origin)
        found, by_id = {name: origin}, {name: evaluation} if evaluation else {}
    if not found:
        raise InputError("there is no SAE to publish")
    for name in found:
        if name.lower() in _TAKEN:
            raise InputError(
                f"{name!r} cannot be an SAE's id: the repository has its own {_TAKEN[name.lower()]} of that name; "
                "choose another (sae_id, --id)"
            )
        if not _SAE_ID.fullmatch(name):
            raise InputError(f"{name!r} cannot be an SAE's id; use letters, digits, dots and dashes (sae_id, --id)")
    return {
        name: Origin(origin.sae, origin.folder, origin.beside, plain(by_id.get(name) or origin.evaluation))
        for name, origin in found.items()
    }


def origin_of(source: Any) -> Origin:
    """One SAE: an object, a folder that SAELens or `train_sae` wrote, or a Mammo-SAE file.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(source, (SAE, TrainingSAE)):
        return Origin(copy.deepcopy(source).to("cpu"))
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"{type(source).__name__} is no SAELens SAE; give an SAE, its folder or a checkpoint")
    path = local_path(source)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a folder with an SAE, a checkpoint, or a study's output folder")
    if not path.is_dir() or not (path / CFG).exists():
        return Origin(load_sae(path))
    config = read_json(path / CFG)
    architecture = config.get("architecture") if isinstance(config, dict) else None
    sae = load_sae(path)
    was_folded = config.get("normalize_activations") in NOT_IN_THE_WEIGHTS and sae.cfg.normalize_activations == "none"
    if was_folded or architecture not in SAE_CLASS_REGISTRY:
        return Origin(sae, beside=path)  # a checkpoint of a training: what was loaded is not what lies there
    return Origin(sae, folder=path, beside=path, evaluation=_final_metrics(path))


def _final_metrics(folder: Path) -> dict[str, Any]:
    """The measures of the finished SAE, from the last line of what `train_sae` wrote."""
    if not (folder / METRICS).exists():
        return {}
    final = [row for row in read_metrics(folder / METRICS) if row.get("final")]
    if not final:
        return {}
    measured = {name: final[-1][name] for name in _MEASURES if final[-1].get(name) is not None}
    return {**measured, "measured_on": "held-out patients" if final[-1]["of"] == "validation" else "training images"}


def _of_study(folder: Path, min_group: int) -> dict[str, Origin]:
    """The SAEs that a study trained, by the name of their layer, with what the study measured."""
    study = StudyFolder(folder)
    by_weights = {}
    for path in sorted((folder / "work" / "sae").glob(f"*/{CFG}")):
        origin = origin_of(path.parent)
        by_weights[tensors_fingerprint(origin.sae.state_dict())] = origin
    found = {}
    for layer in study.layers:
        if layer.sae_tensors not in by_weights:
            raise InputError(f"{folder} cannot publish the SAE of its layer {layer.name}: {_came_from(layer)}")
        origin = by_weights[layer.sae_tensors]
        found[layer.name] = Origin(origin.sae, origin.folder, origin.beside, _study_measures(layer, origin, min_group))
    return found


def _came_from(layer: Any) -> str:
    """Where an SAE is from that is not among those that a study trained, and what to do."""
    given = layer.results["config"]["sae"]
    path = (given.get("paths") or {}).get(layer.name) or given.get("path")
    if path is None:
        return "the study trained it, but it is no longer in work/sae; run the study again"
    if is_on_hub(path):
        return f"the study did not train it, it came from {path}, where it is published already"
    return f"the study did not train it, it came from {path}; publish that file or folder itself"


def _confounders(folder: Path, min_group: int) -> list[dict[str, Any]]:
    """The latents that readers of a study labelled as confounders, with the study's numbers, for the SAE's card."""
    follows = "something that goes with the finding and is not the finding, in"
    return [
        {"sae_id": layer, "latent": one["latent"], "follows": f"{follows} {pair} ({role_evidence(one)})"}
        for layer, pairs in shared_named_latents(StudyFolder(folder), min_group=min_group).items()
        for pair, named in pairs.items()
        for one in named
        if one["role"].casefold() == CONFOUNDER
    ]


def _study_measures(layer: LayerResults, origin: Origin, min_group: int) -> dict[str, Any]:
    """The quality on the test images, averaged over the models that share the SAE, else that of its training."""
    rows = [row for row in shared_quality(layer, min_group=min_group) if row["split"] == "test"]
    if not rows:
        return dict(origin.evaluation)
    trained_on = layer.results["sae"].get("trained_on")
    own = [row for row in rows if f"{row['model']}/{row['concept']}" == trained_on] or rows[:1]
    names = (*_MEASURES, "n_images", "n_positions")
    return {**{name: own[0][name] for name in names if name in own[0]}, "measured_on": "test images of the study"}


def _ids(origins: Mapping[str, Origin]) -> dict[str, str]:
    """The ids of SAEs by the fingerprint of their tensors."""
    return {tensors_fingerprint(origin.sae.state_dict()): name for name, origin in origins.items()}


def _default_id(origin: Origin) -> str:
    hook_name = origin.sae.cfg.metadata.hook_name
    if hook_name:
        return module_path(str(hook_name))
    raise InputError("the SAE's metadata names no layer; say how it is to be called (sae_id, --id)")


# -- staging -------------------------------------------------------------------------------------------------------


def stage_saes(
    origins: Mapping[str, Origin],
    folder: Path,
    *,
    figures: Sequence[str | os.PathLike[str]] = (),
    licence: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    citations: Sequence[str] = (),
    confounders: Sequence[Mapping[str, Any]] = (),
    study: StudyFolder | None = None,
) -> dict[str, dict[str, Any]]:
    """Lay SAEs out as they are to be published, without the card.

    Args:
        origins: by id, what is staged.
        folder: an empty or new folder.
        figures: as in `publish_sae`.
        licence: of the weights.
        base_model: as in `publish_sae`.
        datasets: what all of them were trained on; by default what each one's metadata says for certain.
        citations: how to cite the data, where this package does not know it itself.
        confounders: rows of sae_id, latent and what it follows.
        study: the study that trained them; its fingerprint of the dataset is then that of every file.

    Returns:
        Id -> `cfg`, `evaluation`, `training` and what is said of it (`SAID`), as the card wants them.

    Raises:
        InputError: the folder is not empty; a figure or an SAE's file cannot be read.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; stage in an empty folder")
    facts = {}
    for name, origin in origins.items():
        target = folder / name
        target.mkdir(parents=True)
        _stage_weights(origin, target, study)
        cfg = read_json(target / CFG)
        training = None
        if origin.beside is not None:
            training = _stage_beside(origin.beside, target)
        if origin.evaluation:
            write_json(target / EVALUATION, portable(origin.evaluation))
        audited = origin.score_card and stage_score_card(origin.score_card, target)
        said = {
            "licence": licence,
            "base_model": base_model,
            "datasets": list(datasets or datasets_of(cfg)),
            "citations": list(citations),
            "images": None if study is None else study.training_images,
            "confounders": [
                {"latent": row["latent"], "follows": row["follows"]} for row in confounders if row["sae_id"] == name
            ],
        }
        of_study = {} if study is None else {"dataset_fingerprint": study.dataset_fingerprint}
        write_json(target / PROVENANCE, {**provenance_of(target, cfg), **of_study, **said})
        facts[name] = {"cfg": cfg, "evaluation": dict(origin.evaluation), "training": training, "score_card": audited}
        facts[name] |= said
    for figure in figures:
        copy_figure(local_path(figure), folder / "figures" / local_path(figure).name)
    return facts


def _stage_weights(origin: Origin, target: Path, study: StudyFolder | None) -> None:
    """Write tensors and configuration anew: what else a file holds, in its header or between its values, stays here."""
    source = origin.folder or target
    if origin.folder is None:
        save_sae(origin.sae, target)
    elif origin.sae.cfg.normalize_activations in NOT_IN_THE_WEIGHTS:
        raise InputError(
            f"{origin.folder} still normalizes activations by a scale that is not in its weights; fold it first"
        )
    with atomic_path(target / WEIGHTS) as temporary:  # as SAELens writes them: the same tensors, the same bytes
        save_file(load_file(source / WEIGHTS), temporary)
    config = read_json(source / CFG)
    shared = {**portable(config), "device": "cpu"}
    if study is not None:
        before = config.get("metadata", {}).get("dataset_fingerprint")
        shared = with_fingerprint(shared, before, study.dataset_fingerprint)
    write_text(target / CFG, json.dumps(shared))


def _stage_beside(source: Path, target: Path) -> dict[str, Any] | None:
    """Copy what the training left beside the SAE; gives the content of training.json."""
    if (source / SPARSITY).exists():
        write_safetensors(target / SPARSITY, load_file(source / SPARSITY))
    if (source / METRICS).exists():
        rows = read_metrics(source / METRICS)
        write_text(target / METRICS, "".join(json.dumps(portable(row)) + "\n" for row in rows))
        if rows and rows[-1].get("final"):
            draw_metrics(rows, target / FIGURE)
            let_out(target / FIGURE)
    if not (source / TRAINING).exists():
        return None
    training: dict[str, Any] = portable(read_json(source / TRAINING))
    training.pop(DIGESTS, None)  # of what lies there; provenance.json says it of what is published
    write_json(target / TRAINING, training)
    return training


# -- the card ------------------------------------------------------------------------------------------------------


def _card(facts: Mapping[str, Any]) -> str:
    from mammosae_plugin.hub.cards import render_sae_card

    return str(render_sae_card(facts))


def datasets_of(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """The datasets that an SAE was trained on, as far as its cfg.json says so for certain.

    `trained_on` is of a training that looked at what it read. `dataset_path` alone may be the name of a reader, and
    VinDr-Mammo's reads phantoms too.
    """
    metadata = cfg.get("metadata") or {}
    if metadata.get("trained_on"):
        return tuple(str(name) for name in metadata["trained_on"])
    named = metadata.get("dataset_path")
    return (
        (str(named),)
        if named and not set(str(named).split(" + ")) & {name for name, one in KNOWN.items() if one.restricted}
        else ()
    )


def _distinct(names: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for some in names for name in some))


@dataclass(frozen=True)
class _There:
    """What a repository holds beside what is staged.

    Attributes:
        repo_id: its name.
        commit: of its main branch; None if there is no such repository.
        saes: by id, the facts of the other SAEs, as the card wants them.
        licences: what their licences are stated to be; None for one without.
        figures: paths of its figures.
    """

    repo_id: str
    commit: str | None = None
    saes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    licences: tuple[str | None, ...] = ()
    figures: tuple[str, ...] = ()

    def require_licence(self, licence: str) -> None:
        """A card names one licence for all the weights of its repository.

        Raises:
            InputError: other SAEs of the repository are under another one.
        """
        for other in self.licences:
            if other != licence:
                raise InputError(
                    f"{self.repo_id} holds SAEs under {other or 'no stated licence'}, and {licence} would be stated "
                    "for them too; publish under their licence, or into another repository"
                )


def _what_is_there(repo_id: str, staged: Iterable[str], token: str | None) -> _There:
    """The other SAEs of a repository, as they were described when they were published."""
    api = HfApi(token=token)
    commit = look_at_head(api, repo_id, "model")
    if commit is None:
        return _There(repo_id)
    files = files_of_repo(api, repo_id, "model", commit)
    ids = [path.removesuffix(f"/{CFG}") for path in files if path.endswith(f"/{CFG}") and path.count("/") == 1]

    def read(path: str) -> Any:
        if path not in files:
            return None
        file = file_of_repo(repo_id, path, "model", commit, token)
        return read_json(file) if file.suffix == ".json" else file.read_text(encoding="utf-8")

    saes = {}
    for name in sorted(set(ids) - set(staged)):
        said = read(f"{name}/{PROVENANCE}") or {}
        saes[name] = {
            "cfg": read(f"{name}/{CFG}"),
            "evaluation": read(f"{name}/{EVALUATION}") or {},
            "training": read(f"{name}/{TRAINING}"),
            "score_card": read(f"{name}/{SCORE_CARD}"),
            **{key: said[key] for key in SAID if said.get(key)},
        }
    # What stands on the page counts; an SAE's own word where the page says nothing.
    page = read(CARD) if saes else None
    on_page = ModelCard(page, ignore_metadata_errors=True).data.get("license") if page else None
    licences = [on_page or one.get("licence") for one in saes.values()]
    figures = tuple(path for path in files if path.startswith("figures/") and path.endswith(".png"))
    return _There(repo_id, commit, saes, tuple(dict.fromkeys(licences)), figures)
