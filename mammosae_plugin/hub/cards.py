"""The cards of what is published: Markdown with front matter, filled from results, never from what somebody remembers.

Facts are plain values (numbers, texts, lists, dictionaries); NumPy's are made plain, so that the front matter is plain
YAML. A number that was suppressed or not measured is None and shows as a dash. The templates lie in `hub_cards/`.

Facts of `render_sae_card`:
    repo_id: owner/name.
    saes: by id, `cfg` (content of cfg.json), `evaluation` (measures: explained_variance, l0, dead_share, mse, rows,
        n_images, measured_on, ...), `training` (content of training.json, None if unknown) and `score_card` (of
        score_card.json, None if it was not audited); as far as they are
        known `base_model` and `datasets`, as in `publish_sae`, and `confounders`, rows of latent and what it follows.
    licence: of all of them.
    tag, figures: as in `publish_sae`; figures are paths in the repository.

Facts of `render_model_card`:
    repo_id, licence, tag: as above.
    models: by id, what `models.model_facts` gives.

Facts of `render_findings_card` and `render_study_card`: what `findings.findings_facts` gives.

Facts of `render_space_readme`: title, datasets (repositories of the findings shown), models (of their SAEs and
classifiers), kinds (`data_kind` of the studies), libraries of their networks (`adapters.classifier.library_of`), and
citations of data that this package does not know.

All of them, but for a study's: about, what `about.About.facts` gives; without it nothing is said.
"""

__all__ = [
    "Facts", "is_phantom", "MEASURES", "PROJECT_URL", "render_findings_card", "render_model_card", "render_sae_card",
    "render_space_readme", "render_study_card", "Row",
]  # fmt: skip

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import RepoCard
from huggingface_hub.repocard_data import CardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from mammosae_plugin.adapters.classifier import library_of
from mammosae_plugin.datasets.about import KNOWN, PHANTOMS, VINDR_MAMMO, images_called
from mammosae_plugin.hub.card_parts import mark
from mammosae_plugin.hub.score_cards import eval_results_of, shown_score_cards
from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.provenance import plain
from mammosae_plugin.schema.findings import CONFIGS, dictionary
from mammosae_plugin.schema.libraries import MAMMO_CLIP, cited, libraries_used
from mammosae_plugin.schema.names import MINUS, digits, ends, file_part, readable
from mammosae_plugin.schema.results import BACKGROUND, CONCEPT, UNCLEAR
from mammosae_plugin.training.architectures import taking

Row = dict[str, Any]
Facts = Mapping[str, Any]

_TAG = "mammosae-plugin"
PROJECT_URL = f"https://huggingface.co/models?other={_TAG}"
"""What was made with this package: every card of ours has its name as a tag."""
_TAGS = ("sparse-autoencoder", "interpretability", _TAG)
_DASH = "–"

MEASURES: Mapping[str, str] = {
    "explained_variance": "explained variance",
    "l0": "active latents per position",
    "dead_share": "dead latents",
    "mse": "mean squared error",
    "auroc_without_sae": "AUROC without the SAE",
    "auroc_with_sae": "AUROC with the SAE",
    "auroc_cost": "AUROC cost",
}
"""Measures of an SAE that its card shows, in this order."""


def render_sae_card(facts: Facts) -> str:
    """The card of a repository of SAEs.

    Args:
        facts: See the module.

    Returns:
        README.md, whose front matter holds the measures as a model-index.
    """
    known = plain(facts)
    saes: dict[str, Row] = known["saes"]
    base_models = _distinct(one.get("base_model") for one in saes.values())
    data = ModelCardData(
        library_name="saelens",
        license=known.get("licence"),
        base_model=base_models[0] if len(base_models) == 1 else base_models or None,
        datasets=_distinct(name for one in saes.values() for name in one.get("datasets") or [] if "/" in name) or None,
        tags=[*_tags(_distinct(name for one in saes.values() for name in one.get("datasets") or [])), "saelens"],
        model_name=known["repo_id"].rpartition("/")[2],
        eval_results=list(_eval_results(saes)) or None,
    )
    text = _render(
        "sae.md.j2",
        **{"tag": None, "figures": [], "licence": None, "about": _NOTHING_SAID, **known},
        all_datasets=_distinct(name for one in saes.values() for name in one.get("datasets") or []),
        first=next(iter(saes)),
        base_model=base_models[0]
        if base_models and _all_same([one.get("base_model") for one in saes.values()])
        else None,
        same_data=_all_same([one.get("datasets") or [] for one in saes.values()]),
        unread=[sae_id for sae_id, one in saes.items() if not one.get("confounders")],
        shown={sae_id: _shown(one) for sae_id, one in saes.items()},
        score_cards=shown_score_cards(saes),
        measures={name: title for name, title in MEASURES.items() if any(_measure(one, name) for one in saes.values())},
        libraries=_distinct(_library(one) for one in saes.values()),
        data_citations=_distinct(text for one in saes.values() for text in one.get("citations") or []),
        model_names=_distinct(one["cfg"].get("metadata", {}).get("model_name") for one in saes.values()),
    )
    return _card(ModelCard, data, text)


def render_model_card(facts: Facts) -> str:
    """The card of a repository of classifiers.

    Args:
        facts: See the module.
    """
    known = plain(facts)
    models: dict[str, Row] = known["models"]
    datasets = _distinct(name for one in models.values() for name in one.get("datasets") or [])
    base_models = _distinct(one.get("base_model") for one in models.values())
    data = ModelCardData(
        library_name="mammosae-plugin",
        license=known.get("licence"),
        base_model=base_models[0] if len(base_models) == 1 else base_models or None,
        datasets=[name for name in datasets if "/" in name] or None,
        pipeline_tag="image-classification",
        tags=[
            *_tags(datasets)[1:],
            *(["efficientnet"] if all(_is_efficientnet(one) for one in models.values()) else []),
        ],
    )
    text = _render(
        "model.md.j2",
        **{"tag": None, "about": _NOTHING_SAID, **known},
        first=next(iter(models)),
        all_datasets=datasets,
        libraries=_distinct(one.get("library") or MAMMO_CLIP for one in models.values()),
        data_citations=_distinct(text for one in models.values() for text in one.get("citations") or []),
    )
    return _card(ModelCard, data, text)


def _is_efficientnet(model: Row) -> bool:
    return model.get("library") in (None, MAMMO_CLIP) or "efficientnet" in str(model["architecture"])


def _library(sae: Row) -> str | None:
    """Whose network an SAE reads, as far as its metadata or its publisher say so."""
    about = sae["cfg"].get("metadata") or {}
    if source := about.get("model_source"):
        return library_of({}, source)
    of_mammo_clip = (
        str(about.get("model_name")).startswith(MAMMO_CLIP) or "mammo-clip" in str(sae.get("base_model")).lower()
    )
    return MAMMO_CLIP if of_mammo_clip else None


class _Known(dict[str, Any]):
    """What is known; None for everything else, since an SAE of others may say little of itself."""

    def __missing__(self, key: str) -> None:
        return None


def _shown(one: Row) -> Row:
    """An SAE as the template shows it."""
    about = one["cfg"].get("metadata") or {}
    training = (one.get("training") or {}).get("config") or about.get("training") or {}
    parts = {"cfg": one["cfg"], "about": about, "training": training, "evaluation": one.get("evaluation") or {}}
    said = {"base_model": one.get("base_model")} | {name: one.get(name) or [] for name in ("datasets", "confounders")}
    trained = {"images": _Known(one.get("images") or {}), "preprocessing": about.get("preprocessing")}
    return {name: _Known(part) for name, part in parts.items()} | said | trained


def _all_same(values: Sequence[Any]) -> bool:
    """Whether something is the same for all SAEs, so that it can be said once."""
    return all(value == values[0] for value in values)


def _eval_results(saes: Mapping[str, Row]) -> Iterator[EvalResult]:
    for sae_id, one in saes.items():
        datasets = one.get("datasets") or []
        name = ", ".join(_dataset_name(dataset) for dataset in datasets) or "the training data"
        for measure, title in MEASURES.items():
            value = _measure(one, measure)
            if value is not None:
                yield EvalResult(
                    task_type="feature-extraction",
                    task_name="reconstruction of a layer's activations",
                    dataset_type="-".join(file_part(dataset) for dataset in datasets) or "unknown",
                    dataset_name=name,
                    dataset_config=sae_id,  # keeps the SAEs of a repository apart
                    dataset_split=one["evaluation"].get("measured_on"),
                    metric_type=measure,
                    metric_name=title,
                    metric_value=value,
                )

    for sae_id, split, measure, title, value in eval_results_of(saes):
        datasets = saes[sae_id].get("datasets") or []
        yield EvalResult(
            task_type="feature-extraction",
            task_name="audit beside seeds and controls",
            dataset_type="-".join(file_part(dataset) for dataset in datasets) or "unknown",
            dataset_name=", ".join(_dataset_name(dataset) for dataset in datasets) or "the training data",
            dataset_config=sae_id,
            dataset_split=split,
            metric_type=measure,
            metric_name=title,
            metric_value=value,
        )


def _measure(one: Row, name: str) -> float | None:
    value = (one.get("evaluation") or {}).get(name)
    return None if value is None or isinstance(value, bool) else float(value)


def render_findings_card(facts: Facts) -> str:
    """The card of a findings dataset: how to load it, what its configs hold, and the card of the study.

    Args:
        facts: What `findings.findings_facts` gives.

    Returns:
        README.md, whose front matter tells `datasets` where the configs are.
    """
    known = plain(facts)
    data = DatasetCardData(
        license=known.get("licence"),
        pretty_name=_line(known["title"]),
        tags=[*_tags(known["datasets"]), "mammosae-findings"],
        size_categories=_size(known["n_latents"]),
        configs=[
            {
                "config_name": config["name"],
                "data_files": [{"split": "train", "path": config["path"]}],
                **({"default": True} if number == 0 else {}),
            }
            for number, config in enumerate(known["configs"])
        ],
    )
    columns = {config: dictionary(config) for config in CONFIGS}
    return _card(DatasetCard, data, _render("findings.md.j2", **_of_study(known), columns=columns))


def render_study_card(facts: Facts) -> str:
    """The card of a study alone: data, models, SAEs, what was found, and which latents to distrust; no front matter.

    Args:
        facts: What `findings.findings_facts` gives.
    """
    return _render("study.md.j2", **{**_of_study(plain(facts)), "heading": "#"})


def render_space_readme(facts: Facts) -> str:
    """The README of a static Space, which the Hub reads its settings from.

    Args:
        facts: See the module.
    """
    known = plain(facts)
    kinds = list(known.get("kinds") or ())
    data = CardData(
        title=_line(known["title"])[:80],
        emoji="🔬",
        colorFrom="gray",
        colorTo="blue",
        sdk="static",
        pinned=False,
        tags=_tags(kinds),
        datasets=list(known["datasets"]) or None,
        models=list(known.get("models") or ()) or None,
    )
    unsaid = {"about": _NOTHING_SAID, "libraries": [], "citations": [], "pictures": False}
    text = _render(
        "space.md.j2",
        **{**unsaid, **known, "title": _line(known["title"])},
        all_datasets=kinds,
        data_citations=known.get("citations") or [],
    )
    return _card(RepoCard, data, text)


# -- the study ---------------------------------------------------------------------------------------------------------


def _of_study(facts: Row) -> Row:
    """The facts with what the templates of a study show."""
    study = facts["study"]
    kinds = {(row["name"], row["concept"]): row["kind"] for row in study["models"]}
    return {
        "about": _NOTHING_SAID,
        **facts,
        "all_datasets": facts["datasets"],
        "data_citations": facts["citations"],
        "libraries": libraries_used(study["models"], study.get("config", {})),
        "title": _line(facts["title"]),
        "heading": "##",
        "separation": [row for row in _separation(facts["reconstruction"]) if len(row) > 3],
        "saes": study["sae"],
        "architectures": _distinct(row["architecture"] for row in study["models"]),
        "model_names": _distinct(f"{name} ({kind})" if name != kind else name for (name, _), kind in kinds.items()),
        "of_concept": [row for row in facts["best"] if row["role"] == CONCEPT],
        "background": [row for row in facts["best"] if row["role"] == BACKGROUND],
        "unclear": [row for row in facts["best"] if row["role"] == UNCLEAR],
        "named_by_readers": [row for row in facts["best"] if row["role"] not in (CONCEPT, BACKGROUND, UNCLEAR)],
        "is_phantom": study["data_kind"] == "phantom",
        "measured": {layer: _measured(sae) for layer, sae in study["sae"].items()},
        "counted": EvaluationUnit.named(study["data"].get("unit", "image")).nouns,
        "patients": {row["split"]: row for row in study["data"].get("splits", [])},
    }


def _measured(sae: Row) -> Row:
    """The quality of a study's SAE on the test images of the model that it was trained on, else of the first."""
    rows = [row for row in sae.get("quality") or [] if row["split"] == "test"]
    own = [row for row in rows if f"{row['model']}/{row['concept']}" == sae.get("trained_on")]
    return _Known((own or rows or [{}])[0])


def _separation(rows: Sequence[Row]) -> Iterator[Row]:
    """A row per layer, model and concept: AUROC of both variants with their intervals."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row["layer"], row["model"], row["concept"])
        one = found.setdefault(key, dict(zip(("layer", "model", "concept"), key, strict=True)))
        one[row["variant"]] = {end: row[f"auroc{end}"] for end in ("", "_low", "_high")}
    yield from found.values()


def _grouped(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Latents by where they are: ("layer_10, finetuned, Mass", "202, 17")."""
    found: dict[str, list[str]] = {}
    for row in rows:
        place = f"{row['layer']}, {row['model']}, {readable(row['concept'])}"
        found.setdefault(place, []).append(str(row["latent"]))
    return [(place, ", ".join(latents)) for place, latents in found.items()]


# -- templates ---------------------------------------------------------------------------------------------------------


def _card(kind: Any, data: CardData, text: str) -> str:
    """Front matter and text, after huggingface_hub has read them back."""
    written = f"---\n{data.to_yaml()}\n---\n\n{mark(text)}\n"
    return str(kind(written))


def _render(template: str, **facts: Any) -> str:
    environment = Environment(  # Markdown: the filter `cell` escapes what others wrote
        loader=PackageLoader("mammosae_plugin", "hub_cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": _number,
        "percent": _percent,
        "cell": _cell,
        "readable": readable,
        "dataset": _dataset,
        "grouped": _grouped,
        "interval": _interval,
        "caption": _caption,
        "setting": lambda value: _DASH if value is None else f"{value:g}",
        "sparsity": _sparsity,
        "preprocessing": _preprocessing,
        "names": _names,
        "place": _place,
        "phantoms": is_phantom,
        "images": images_called,
        "networks_cited": cited,
        "data_cited": _data_cited,
    }
    environment.globals["project_url"] = PROJECT_URL
    text = environment.get_template(template).render(facts)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _number(value: Any) -> str:
    if value is None:
        return _DASH
    if isinstance(value, (bool, str)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else digits(value)


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.1f} %".replace("-", MINUS)


def _interval(value: Row | None) -> str:
    """An AUROC with its interval; one below 0.5 is called inverted."""
    if value is None or value[""] is None:
        return _DASH
    text = f"{value['']:.3f}"
    if value["_low"] is not None:
        text += " ({} to {})".format(*ends(value["_low"], value["_high"]))
    return f"{text}, inverted" if value[""] < 0.5 else text


def _caption(figure: str) -> str:
    """What a figure shows, from the name that a study gave it."""
    name = figure.rpartition("/")[2].removesuffix(".png")
    known = {"figure_2_": "Interventions: ", "figure_4_": "Class means: ", "layers": "Layers side by side"}
    for prefix, words in known.items():
        if name.startswith(prefix):
            return _cell(words + name.removeprefix(prefix).replace("_", " "))
    return _cell(name.replace("_", " "))


def _cell(value: Any) -> str:
    """Words of others as they stand in a card: on one line, and as text whatever signs of Markdown or HTML they hold.

    Those signs become HTML's numbers, which mean nothing in Markdown, in a table or between backticks either.
    """
    return _line(value).translate(_SIGNS) if value is not None else _DASH


_SIGNS = {ord(sign): f"&#{ord(sign)};" for sign in "&<>|`[]*\\~"}


def _line(value: Any) -> str:
    return " ".join(str(value).split())


_NOTHING_SAID: Mapping[str, Any] = {"authors": [], "description": None, "links": []}


def _tags(datasets: Sequence[str]) -> list[str]:
    """Tags of a card, with what its images are, where that is known."""
    tags = {"phantom images": ["phantoms"], "mammograms": ["mammography"]}
    return [*_TAGS, *tags.get(images_called(datasets), [])]


def is_phantom(datasets: Sequence[str]) -> bool:
    """Whether all the images behind something were drawn by a program."""
    return bool(datasets) and all(name == PHANTOMS.name for name in datasets)


def _sparsity(sae: Row) -> str | None:
    """What an SAE was trained for, beside what was measured."""
    training, measured = sae["training"], sae["evaluation"].get("l0")
    if training.get("k"):
        asked = f"trained for {training['k']:g} active latents per position"
    elif training.get("architecture") in taking("sparsity") and training.get("sparsity") is not None:
        asked = f"trained with lambda {training['sparsity']} (mean over channels)"
    else:
        asked = None
    found = None if measured is None else f"measured: {_number(float(measured))} active latents per position"
    return "; ".join(filter(None, (asked, found))) or None


def _preprocessing(value: Any) -> str:
    """How images were read before the network, in one line."""
    if not isinstance(value, Mapping):
        return "not stated"
    steps = ", ".join(str(step) for step in value.get("steps") or [])
    return _cell("; ".join(filter(None, (f"read as {value['read_as']}" if value.get("read_as") else "", steps))))


def _names(values: Sequence[Any]) -> str:
    """A, B and C."""
    texts = [_cell(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _place(published: Row) -> str:
    from mammosae_plugin.findings.about import hub_place

    return hub_place(published["repo"], published["revision"], published["id"])


def _distinct(values: Any) -> list[Any]:
    return [value for value in dict.fromkeys(values) if value is not None]


def _dataset_name(name: str) -> str:
    return "phantoms" if name == PHANTOMS.name else KNOWN[name].title if name in KNOWN else name


def _dataset(name: str) -> str:
    """What is said of a dataset: of those that this package knows, their terms."""
    if name == PHANTOMS.name:
        return "phantoms: images drawn by a program, of no patient and without clinical meaning"
    if name not in KNOWN:
        return f"{_cell(name)} (its terms are its owner's)"
    one = KNOWN[name]
    return f"[{one.title}]({one.url}) ({one.licence}: the images are not part of this repository)"


def _data_cited(names: Sequence[str]) -> list[str]:
    """How to cite datasets that this package knows, but VinDr-Mammo, which the cards have as BibTeX."""
    known = [KNOWN[name] for name in names if name in KNOWN and name != VINDR_MAMMO.name]
    return [one.citation for one in known if one.citation]


def _size(n: int) -> str:
    """The Hub's words for a number of rows."""
    for limit, words in ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if n < limit:
            return words
    return "n>1M"
