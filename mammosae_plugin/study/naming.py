"""`mammosae name`: latents of a table named by any method, what asking a model will cost, and what is told of names."""

__all__ = [
    "ANSWERS", "AskedModel", "chosen_latents", "name_in_words", "name_with_model", "open_model", "open_pictures",
    "Prices", "text_encoder", "told_cost", "told_names",
]  # fmt: skip

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mammosae_plugin.adapters.language_models import LanguageModel, host_of, openai_model
from mammosae_plugin.analysis.table_arrays import image_statistic, split_rows
from mammosae_plugin.arguments import whole
from mammosae_plugin.config import load_data
from mammosae_plugin.datasets import open_dataset
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.interpretation import LatentNames, Pictures, ask_all, name_by_directions, name_by_texts
from mammosae_plugin.interpretation.asking import Reply
from mammosae_plugin.interpretation.by_models import names_of_plan, plan_naming
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.locks import only_run
from mammosae_plugin.privacy.sending import permit_sending
from mammosae_plugin.schema.names import counted

ANSWERS = "answers.jsonl"
"""Where the answers of a model lie in the folder of the names that are made of them."""


@dataclass(frozen=True)
class AskedModel:
    """A model as the command line names it.

    Attributes:
        name: its name on the server, or of a local one on the Hub or its folder.
        endpoint: the server's address; None: a local pipeline of transformers.
        key_from: the environment variable with the server's key; None as for `openai_model`.
        licence: the licence under which pictures may go to another machine; None where it was not named.
        temperature: 0 for the likeliest answers.
        timeout: seconds of silence after which a server is asked again.
    """

    name: str
    endpoint: str | None = None
    key_from: str | None = None
    licence: str | None = None
    temperature: float = 0.0
    timeout: float = 120.0


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in any currency; None where it is not known."""

    of_input: float | None = None
    of_output: float | None = None


def open_model(asked: AskedModel, about: DatasetAbout) -> LanguageModel:
    """The model, with the permission to send the dataset's pictures where that is needed.

    Raises:
        InputError: as `permit_sending`, `openai_model` and `local_model`.
    """
    if asked.endpoint is None:
        from mammosae_plugin.adapters.local_language_model import local_model

        return local_model(asked.name, temperature=asked.temperature)
    host = host_of(asked.endpoint)
    permission = None if host is None else permit_sending(about, asked.licence, host)
    return openai_model(
        asked.name,
        asked.endpoint,
        key_from=asked.key_from,
        permission=permission,
        timeout=asked.timeout,
        temperature=asked.temperature,
    )


def open_pictures(table: LatentTable, config: Path | None, settings: Sequence[str], *, longest: int = 896) -> Pictures:
    """The table's images, of a study's YAML file or of settings such as data.root=FOLDER.

    Raises:
        InputError: as `load_data` and `open_dataset`, or images of other data.
    """
    return Pictures(table, open_dataset(load_data(config, settings)), longest=longest)


def chosen_latents(
    table: LatentTable, latents: Sequence[int] | None, top: int | None, split: str, statistic: str
) -> NDArray[np.int64] | None:
    """The latents that are named: some, or those with the largest sum of activations over a split's images, or None.

    Raises:
        InputError: both at once.
    """
    if latents is not None and top is not None:
        raise InputError("--latents and --top-latents both say which latents are named; give one of them")
    if top is not None:
        sums = np.asarray(image_statistic(table, statistic)[split_rows(table, split)].sum(axis=0), dtype=np.float64)
        live = table.live_latents(split)
        return np.sort(live[np.argsort(-sums[live], kind="stable")[: whole(top, "top-latents", least=1)]])
    return None if latents is None else np.array(latents, dtype=np.int64)


def name_with_model(
    table: LatentTable,
    asked: AskedModel,
    pictures: Pictures,
    *,
    output: Path | None,
    say: Callable[[str], None],
    votes: int = 1,
    seed: int = 0,
    prices: Prices | None = None,
    dry_run: bool = False,
    **chosen: Any,
) -> LatentNames | None:
    """`name_by_model`, with its cost told before it starts: one question is asked, and the others reckoned from that.

    Args:
        table: the latents table.
        asked: the model.
        pictures: the table's images.
        output: where the answers are kept; needed but for a dry run.
        say: is given what it will cost, in a line.
        votes: how often each question is asked.
        seed: of the answers.
        prices: of tokens.
        dry_run: end there.
        chosen: as for `plan_naming`.

    Returns:
        The names, or None of a dry run.

    Raises:
        InputError: as `name_by_model`, or no output.
    """
    if output is None and not dry_run:
        raise InputError("answers of a model take time and money, and are kept as they come: name a folder with -o")
    place = None if output is None else local_path(output)
    with nullcontext() if place is None else only_run(place):
        model = open_model(asked, pictures.about)
        plan = plan_naming(table, pictures, **chosen)
        journal = None if place is None else place / ANSWERS
        first = dict(list(plan.questions.items())[:1])
        measured = ask_all(model, first, journal, seed=seed, progress="first question") if first else {}
        say(told_cost(model, len(plan.questions) * votes, plan.n_pictures * votes, [*measured.values()], prices))
        return None if dry_run else names_of_plan(plan, model, votes=votes, seed=seed, journal=journal)


def told_cost(
    model: LanguageModel, n_questions: int, n_pictures: int, measured: Sequence[Reply], prices: Prices | None = None
) -> str:
    """How many questions a model is asked, and about how long and dear that is by measured ones, in a line."""
    place = f"on {model.host}" if model.host else "on this machine"
    asked = f"{counted(n_questions, 'question')} to {model.name} {place}, with {counted(n_pictures, 'picture')}"
    answers = [reply.answer for reply in measured if reply.answer is not None]
    if not answers:
        return f"{asked}; how long that takes is not known"
    seconds = n_questions * float(np.mean([one.seconds for one in answers]))
    told = [f"about {_duration(seconds)}"]
    prices = prices or Prices()
    cost = 0.0
    for kind, price in (("input", prices.of_input), ("output", prices.of_output)):
        counts = [count for one in answers if (count := getattr(one, f"n_{kind}_tokens")) is not None]
        if counts:
            tokens = n_questions * float(np.mean(counts))
            told.append(f"{tokens:,.0f} tokens of {kind}")
            cost = cost + tokens * price / 1e6 if price is not None else math.nan
        else:
            cost = math.nan
    if math.isfinite(cost):
        told.append(f"a price of {cost:.2f}")
    return f"{asked}; by the first answer, if all are alike, {', '.join(told)}"


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds" if seconds >= 2 else f"{seconds:.1f} seconds"


def name_in_words(
    table: LatentTable,
    by: Literal["texts", "direction"],
    *,
    text: str,
    tokenizer: str | None,
    terms: Path | None,
    sae: str | None,
    rows: Path | None,
    score: Literal["soft_wpmi", "mean_difference"] | None,
    latents: NDArray[np.int64] | None,
    seed: int,
    images: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> LatentNames:
    """`name_by_texts` or `name_by_directions`, with Mammo-CLIP's checkpoint.

    Args:
        table: the latents table.
        by: which of them.
        text: Mammo-CLIP's pretraining checkpoint.
        tokenizer: its tokenizer; None: Bio_ClinicalBERT on the Hub.
        terms: the vocabulary's file.
        sae: of direction, the SAE.
        rows: of texts, the vectors of a table of embeddings.
        score: of texts.
        latents: which latents; None: those that fire in the split.
        seed: of chance.
        images: as for `name_by_texts`: split, statistic, group, n, min_groups.
        asked: alpha, and min_excess if it was given.

    Raises:
        InputError: as these, or an SAE of another size.
    """
    from mammosae_plugin.adapters import load_mammo_clip_text, load_sae
    from mammosae_plugin.adapters.mammo_clip_text import BIO_CLINICAL_BERT
    from mammosae_plugin.interpretation import load_terms
    from mammosae_plugin.interpretation.by_texts import check_layer

    words = load_terms(terms)
    tower = load_mammo_clip_text(text, tokenizer=tokenizer or BIO_CLINICAL_BERT)
    if by == "texts":
        found = name_by_texts(
            table,
            tower,
            words,
            embeddings=rows,
            latents=latents,
            score=score or "soft_wpmi",
            seed=seed,
            **images,
            **asked,
        )
    else:
        check_layer(table)
        decoder = load_sae(str(sae)).W_dec.detach()
        if len(decoder) != table.d_sae:
            raise InputError(f"{sae} has {len(decoder)} latents and {table.folder} {table.d_sae}; name the table's SAE")
        own = table.live_latents(images["split"]) if latents is None else latents
        found = name_by_directions(decoder, tower, words, latents=own, seed=seed, **asked)
    return replace(found, about={**found.about, "text_encoder": text_encoder(text)})


def text_encoder(checkpoint: str) -> str:
    """What a text encoder is called, as the maker of names and as their judge."""
    return f"text encoder {Path(checkpoint).name}"


def told_names(names: LatentNames, top: int) -> list[str]:
    """What was found, in lines: how many have a name, and the surest of them."""
    about, latents = names.about, names.latents
    where = (
        f" in {about['n_images']} images of {about['n_groups']} groups of split {about['split']}"
        if "n_images" in about
        else ""
    )
    if "prompt_version" in about:
        tried = f"{about['model']} was asked about {about['n_asked']} and described {about['n_candidates']}"
    elif "tried" in about:
        tried = f"tried were {len(about['tried'])} attributes"
    else:
        tried = f"tried were {about['n_terms']} terms and {about['n_distractors']} distractors"
    lines = [f"{names.n_named} of {len(latents)} latents have a name; {tried}{where}"]
    best = latents[~latents["abstained"]].sort_values(["q", "score"], ascending=[True, False]).head(top)
    for _, row in best.iterrows():
        auroc = row.get("check_auroc", math.nan)
        checked = "" if math.isnan(auroc) else f"; AUROC {auroc:.2f} in split {about['check']}"
        lines.append(f"latent {row['latent']}: {names.told(row['latent'])}{checked}")
    lines += [f"not tried: {name} ({why})" for name, why in about.get("left_out", {}).items()]
    if about.get("n_distractors"):
        share = about["n_distractors"] / (about["n_terms"] + about["n_distractors"])
        lines.append(
            f"{about['n_best_is_distractor']} latents stand out by a distractor, beside {names.n_named} by a term; if "
            f"texts meant nothing it would be {share:.0%} of them"
        )
    if "prompt_version" in about:
        lines += _of_model(names)
    return lines


def _of_model(names: LatentNames) -> list[str]:
    reasons = names.latents["reason"].str.partition(";")[0].value_counts(sort=False)
    lines = [f"{count} have none: {reason}" for reason, count in reasons.items() if reason]
    if names.about["n_failed"]:
        lines.append(
            f"{names.about['n_failed']} questions have no answer that counts; the same command asks those again that "
            "the server did not answer"
        )
    return lines
