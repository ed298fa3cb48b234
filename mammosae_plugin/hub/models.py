"""Publishing classifiers, so that a stranger can run the SAEs that read them.

What is staged is `<id>/config.json` and `<id>/model.safetensors`, which `load_classifier("hub://owner/name/<id>")`
reads, with evaluation.json and provenance.json beside them, and one card for the repository.
"""

__all__ = [
    "CARD", "CONFIG", "EVALUATION", "model_facts", "Origin", "prepare_model", "PROVENANCE", "publish_model", "WEIGHTS",
]  # fmt: skip

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi

from mammosae_plugin.adapters import Classifier, load_classifier
from mammosae_plugin.adapters.classifier import library_of
from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.adapters.saved_classifiers import save_classifier_folder
from mammosae_plugin.adapters.sources import CLASSIFIER_FILES
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file, write_json, write_text
from mammosae_plugin.findings.about import About, places
from mammosae_plugin.findings.study_folder import StudyFolder, is_study_folder
from mammosae_plugin.findings.tables import separation_rows
from mammosae_plugin.hub.portable import portable, with_fingerprint
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
from mammosae_plugin.privacy.context import PrivacyContext
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint, torch_generator
from mammosae_plugin.version import __version__

CONFIG, WEIGHTS = CLASSIFIER_FILES
EVALUATION, PROVENANCE, CARD = "evaluation.json", "provenance.json", "README.md"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*")
_SMALL_IMAGE = (64, 64)


@dataclass(frozen=True)
class Origin:
    """One classifier as it was given.

    Attributes:
        model: the classifier.
        key: "model/concept" in its study; None for a file.
        weights: what tells its weights from others in its study's folder.
        evaluation: AUROC on the test images with its interval and counts, where it is known.
    """

    model: Classifier
    key: str | None = None
    weights: str | None = None
    evaluation: Mapping[str, Any] | None = None


def prepare_model(
    source: str | os.PathLike[str],
    repo_id: str,
    *,
    model_id: str | None = None,
    licence: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    functions: Collection[str] = (),
    context: PrivacyContext | None = None,
    min_group: int = 5,
    tag: str | None = None,
    private: bool = True,
    replace: bool = False,
    allow: Sequence[str] = (),
    about: About | None = None,
    token: str | None = None,
) -> Publication:
    """Stage and check classifiers for a repository on the Hub; `.send()` of the result makes one commit, and a tag.

    Args:
        source: a study's output folder, whose trained classifiers go out as `<model>-<concept>`; or a classifier's file
            or folder, as `load_classifier` reads it.
        repo_id: owner/name. It is made if need be; classifiers of other ids in it stay, and stand in the card too.
        model_id: of a study, the only classifier to publish; of a file, what to call it.
        licence: of the weights, as the Hub names it; nothing is published without one.
        base_model: the Hub's name of the encoder that it started from.
        datasets: names of the datasets that it was trained on; by default those of the study or of the context.
        functions: "package.module:function" of those that may be imported and called to make the networks of
            classifiers that say so.
        context: what must not get out; for a study its ids.
        min_group: statistics of fewer patients than this are left out.
        tag: a name for the published state, such as "v1".
        private: make a new repository private.
        replace: overwrite what is there otherwise. Of the card, what people wrote stays.
        allow: texts that look private, and that a person has seen and lets out.
        about: authors, description and links for the card; the study's other repositories are linked by themselves.
        token: of the Hub; by default that of `hf auth login` or HF_TOKEN.

    Returns:
        The publication, not sent: its `folder` holds what would go out, `describe()` lists it.

    Raises:
        InputError: no licence, no such classifier, or as `prepare`.
        PrivacyError: something of it must not get out.
        HubError: the Hub refuses, or cannot be reached.
    """
    if licence is None or not licence.strip():
        raise InputError(
            "a classifier is published under a licence; name it with --licence (licence=), such as mit or, where it "
            "starts from Mammo-CLIP, cc-by-nc-sa-4.0"
        )
    study = StudyFolder(Path(source)) if is_study_folder(source) else None
    origins = (
        _of_study(study, model_id, min_group, functions)
        if study is not None
        else _of_file(Path(source), model_id, functions)
    )
    if context is None:
        context = PrivacyContext(datasets=tuple(datasets), min_group=min_group)
        if study is not None:
            context = PrivacyContext.of_study(study.folder, min_group=min_group)
    about = about or About()
    if study is not None:
        about = about.with_record(study.folder)
    said = {
        "licence": licence.strip(),
        "base_model": base_model,
        "datasets": list(datasets or context.datasets),
        "citations": context.citations,
    }
    scratch = Scratch("publish")
    with kept_until_staged(scratch) as hand_over:
        facts = {
            name: _stage(origin, scratch.folder / name, study, said, min_group) for name, origin in origins.items()
        }
        commit, others = _what_is_there(repo_id, set(facts), licence.strip(), token)
        for name, origin in origins.items():
            facts[name]["sae"] = _sae_of(study, origin, about) if study is not None else None
        card = {"repo_id": repo_id, "models": {**others, **facts}, "licence": licence.strip(), "tag": tag}
        write_text(scratch.folder / CARD, _card({**card, "about": about.facts(without="model")}))
        publication = prepare(
            scratch.folder,
            repo_id,
            kind="model",
            contents="model",
            context=dataclasses.replace(context, allowed=(*context.allowed, *allow)),
            tag=tag,
            private=private,
            replace=replace,
            message=f"Classifier {', '.join(facts)}",
            token=token,
            related=about.names,
            functions=functions,
            on_sent=None
            if study is None
            else recorder(study.folder, "model", {origin.weights or "": name for name, origin in origins.items()}),
        )
        if publication.parent != commit:
            raise InputError(f"{repo_id} was changed while its card was written; run again to see what is there now")
        for name, origin in origins.items():
            _check(scratch.folder / name, origin.model, functions)
        return hand_over(publication)


publish_model = publishing(prepare_model)


# -- what is given -----------------------------------------------------------------------------------------------------


def _of_study(
    study: StudyFolder, model_id: str | None, min_group: int, functions: Collection[str]
) -> dict[str, Origin]:
    """The classifiers that a study trained, by id."""
    known = {name: (key, weights) for key, (name, weights) in study.classifiers.items()}
    if model_id is not None:
        if model_id not in known:
            raise InputError(f"{study.folder} has no classifier {model_id!r}; it has {', '.join(known)}")
        known = {model_id: known[model_id]}
    rows = {f"{row['model']}/{row['concept']}": row for row in separation_rows(study, min_group=min_group)}
    files = {
        sha256_of_file(file): file for file in sorted((study.folder / "work" / "classifiers").glob("*.safetensors"))
    }
    found = {}
    for name, (key, weights) in known.items():
        if weights not in files:
            raise InputError(
                f"{study.folder} cannot publish the classifier {key}: the study did not train it, or it is no longer "
                f"in work/classifiers; publish its own file, or leave it out by naming another (--id {'|'.join(known)})"
            )
        found[name] = Origin(load_classifier(files[weights], functions=functions), key, weights, rows.get(key))
    return found


def _of_file(path: Path, model_id: str | None, functions: Collection[str]) -> dict[str, Origin]:
    model = load_classifier(path, functions=functions)
    if model.n_class == 0:
        raise InputError(f"{path} holds an encoder without a classifier; give a classifier's file, or a study's folder")
    if model_id is None:
        raise InputError("say what the classifier is to be called in the repository (model_id, --id)")
    if not _ID.fullmatch(model_id) or model_id.lower() in ("readme.md", "figures"):
        raise InputError(f"{model_id!r} cannot be a classifier's id; use letters, digits, dots and dashes (--id)")
    return {model_id: Origin(model)}


def _sae_of(study: StudyFolder, origin: Origin, about: About) -> dict[str, Any] | None:
    """Where the SAE that reads the classifier lies, and the module that it reads; None where that is not known."""
    published = places(study.folder, about, "sae", study.saes)
    layer = study.layer()
    place = layer.results["sae"].get("published") or published.get(layer.name)
    return None if place is None or origin.key is None else {**place, "module": module_path(layer.hook_name)}


# -- staging -----------------------------------------------------------------------------------------------------------


def _stage(
    origin: Origin, folder: Path, study: StudyFolder | None, said: Mapping[str, Any], min_group: int
) -> dict[str, Any]:
    """Write one classifier's files; gives what the card says of it."""
    folder.mkdir(parents=True)
    model = origin.model
    metadata = dict(model.source.get("metadata") or {})
    before = metadata.get("dataset")
    source = _shared(model.source.get("trained_from") or {} if metadata else model.source)
    shared = _shared(metadata)
    if study is not None:
        source, shared = (with_fingerprint(value, before, study.dataset_fingerprint) for value in (source, shared))
        images, size = study.training_images, study.results["data"]["image_size"]
    else:
        images, size = None, None
    outcome = shared.get("outcome") or {}
    if (outcome.get("n_patients") or {}).get("validation", min_group) < min_group:
        outcome.pop("validation_auroc", None)
    save_classifier_folder(model, folder, source=source, metadata=shared)
    if origin.evaluation is not None:
        write_json(folder / EVALUATION, {**origin.evaluation, "measured_on": "test images of the study"})
    provenance = {
        **said,
        "images": images,
        "image_size": size,
        "weights_sha256": sha256_of_file(folder / WEIGHTS),
        "tensors": tensors_fingerprint(model.network.state_dict()),
        "dataset_fingerprint": study.dataset_fingerprint if study is not None else shared.get("dataset"),
        "published_with": {"mammosae_plugin": __version__, "packages": package_versions(), **environment()},
    }
    write_json(folder / PROVENANCE, plain(provenance))
    return model_facts(read_json(folder / CONFIG), provenance, origin.evaluation)


def _shared(value: Any) -> Any:
    """What is known of a classifier without names of files and without what stands for a list of images."""
    if isinstance(value, Mapping):
        return {key: _shared(item) for key, item in value.items() if key not in ("files", "images")}
    return [_shared(item) for item in value] if isinstance(value, list) else portable(value)


def model_facts(
    config: Mapping[str, Any], provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a card says of a classifier, from the files that lie beside its weights.

    Returns:
        architecture, library, n_class, concepts, kind (of the training), preprocessing, channels, image_size, images
        (n_images and n_patients of the training split), datasets, citations (of data unknown to this package),
        base_model, licence, auroc (the value and its interval), sae (not known from them).
    """
    metadata = config.get("metadata") or {}
    preprocessing = metadata.get("preprocessing") or config.get("preprocessing")
    known = evaluation or {}
    return {
        "architecture": config["architecture"],
        "library": library_of(config, config.get("source") or {}),
        "n_class": config["n_class"],
        "concepts": metadata.get("concepts") or [],
        "kind": (metadata.get("config") or {}).get("kind"),
        "preprocessing": preprocessing,
        "channels": 1 if (preprocessing or {}).get("read_as") == "8-bit gray" else 3,
        "image_size": (preprocessing or {}).get("resize") or config.get("image_size") or provenance.get("image_size"),
        "images": provenance.get("images"),
        **{name: provenance.get(name) for name in ("base_model", "licence")},
        **{name: provenance.get(name) or [] for name in ("datasets", "citations")},
        "auroc": {end: known.get(f"auroc{end}") for end in ("", "_low", "_high")},
        "sae": None,
    }


def _card(facts: Mapping[str, Any]) -> str:
    from mammosae_plugin.hub.cards import render_model_card

    return render_model_card(facts)


def _check(folder: Path, model: Classifier, functions: Collection[str]) -> None:
    """See that what is staged, read back, answers as what was given does.

    Raises:
        InputError: it does not.
    """
    size = model.image_size or model.preprocessing.size or _SMALL_IMAGE
    images = torch.rand(1, model.preprocessing.channels, *size, generator=torch_generator(0))
    model.network.eval()
    with torch.no_grad():
        same = torch.equal(load_classifier(folder, functions=functions)(images), model(images))
    if not same:
        raise InputError(f"not published: {folder.name} answers otherwise once it is written and read back")


def _what_is_there(
    repo_id: str, staged: set[str], licence: str, token: str | None
) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The commit of the repository, and its other classifiers as they were described when they were published."""
    api = HfApi(token=token)
    commit = look_at_head(api, repo_id, "model")
    if commit is None:
        return None, {}
    files = files_of_repo(api, repo_id, "model", commit)

    def read(path: str) -> Any:
        if path not in files:
            return None
        return read_json(file_of_repo(repo_id, path, "model", commit, token))

    ids = {path.removesuffix(f"/{WEIGHTS}") for path in files if path.endswith(f"/{WEIGHTS}") and path.count("/") == 1}
    others = {}
    for name in sorted(ids - staged):
        provenance = read(f"{name}/{PROVENANCE}") or {}
        others[name] = model_facts(read(f"{name}/{CONFIG}"), provenance, read(f"{name}/{EVALUATION}"))
        if provenance.get("licence") != licence:
            raise InputError(
                f"{repo_id} holds classifiers under {provenance.get('licence') or 'no stated licence'}, and {licence} "
                "would be stated for them too; publish under their licence, or into another repository"
            )
    return commit, others
