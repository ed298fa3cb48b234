"""Names by a model that looks at pictures: what do a latent's strongest images share?

What comes back is a candidate and no name: a model always finds something to say. `judge_names` sees whether it tells
the latent's images from others.
"""

__all__ = ["METHOD", "name_by_model", "names_of_plan", "NamingPlan", "plan_naming", "PROMPT_VERSION"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.adapters.language_models import LanguageModel, Question
from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.analysis.table_arrays import image_groups, image_statistic, split_rows, which_table
from mammosae_plugin.arguments import checked_arguments, entries, indices, whole
from mammosae_plugin.datasets.about import images_called
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.answers import clean_name, commonest_name
from mammosae_plugin.interpretation.asking import Reply, ask_all
from mammosae_plugin.interpretation.names import COLUMNS, NOT_JUDGED, LatentNames
from mammosae_plugin.interpretation.pictures import Pictures
from mammosae_plugin.interpretation.shown_images import diverse
from mammosae_plugin.schema.names import readable

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

METHOD = "model"
PROMPT_VERSION = "1"
"""Of the words below: who changes them counts on."""
_LONGEST_NAME = 120  # letters
_SYSTEM = (
    "You name what a unit of a neural network responds to. You are shown {called} that activate it most, chosen to "
    "differ from each other in everything else. Look for what all of them show: a finding, a kind of tissue, anatomy, "
    "a view, something of how the image was made. Name the most specific thing that every one of them shows, in at "
    "most twelve words, as a reader of such images would call it. Do not name what nearly any such image shows, and "
    "repeat no name, date or number that is written in an image. If there is no such thing, say so: that is a good "
    "answer, and a guess is a bad one."
)
_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "seen": {"type": "string", "description": "what each picture shows, in one sentence for each"},
        "in_common": {"type": "boolean", "description": "whether all of them show the same specific thing"},
        "name": {"type": "string", "description": "its name; empty if there is none"},
    },
    "required": ["seen", "in_common", "name"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class NamingPlan:
    """What will be asked, before anything is.

    Attributes:
        latents: (m,) the latents.
        rows: (m, n) the images that are shown of each, -1 where there are fewer.
        n_groups: (m,) in how many groups each fires.
        questions: by the latent's number as text, what is asked; those that fire in too few groups are not.
        min_groups: how many those are.
        n_pictures: pictures in all questions.
        about: what was chosen, in plain JSON.
    """

    latents: NDArray[np.int64]
    rows: NDArray[np.int64]
    n_groups: NDArray[np.int64]
    questions: Mapping[str, Callable[[], Question]]
    min_groups: int
    n_pictures: int
    about: Mapping[str, Any] = field(default_factory=dict)


def name_by_model(
    table: "LatentTable",
    model: LanguageModel,
    pictures: Pictures,
    *,
    latents: ArrayLike | None = None,
    split: str = "training",
    statistic: str = "max",
    group: str | ArrayLike = "patient_id",
    n: int = 5,
    of: int = 20,
    labels: Sequence[str] = (),
    min_groups: int = 10,
    votes: int = 1,
    seed: int = 0,
    tries: int = 3,
    journal: Path | None = None,
) -> LatentNames:
    """Ask a model what a latent's strongest images share, one question for each latent.

    Of the `of` strongest images, one of each group, n are shown that are unlike in all that fires in them (`diverse`:
    what they share is then more likely to be what the latent is), each with a box round the latent's peak and the part
    in the box, where the table keeps peaks. The model may say that they share nothing. What it says is listed in
    `candidates`; no latent has a name before `judge_names` has judged it.

    Args:
        table: a latents table.
        model: who is asked; of a server on another machine one with a permission to send pictures.
        pictures: the table's images.
        latents: some latents; None: those that fire in the split.
        split: whose images are shown.
        statistic: "max" or "mean" of a latent over positions.
        group: the column of `table.images` that says which images belong together, or this for each image.
        n: images that are shown.
        of: how many of the strongest they are chosen among.
        labels: labels of the table that are told beside each image. The more is told, the more a name repeats it.
        min_groups: latents that fire in fewer groups are not asked about.
        votes: how often each question is asked, with other seeds, of models that do not always say the same; the
            commonest name is taken, and none if at least half of the answers find none.
        seed: of the answers.
        tries: answers to a question at the most, where they cannot be read (`ask_all`).
        journal: where answers are kept (`ask_all`).

    Returns:
        `LatentNames` without names: all abstain, because they are not judged yet, the model finds nothing in common, no
        answer could be read, or too few groups have them. Beside the common columns model and prompt_version.

    Raises:
        InputError: an unknown split, label or group, or a server that gives no answers.

    Example:
        >>> model = openai_model("google/medgemma-4b-it", "http://127.0.0.1:8000/v1")   # doctest: +SKIP
        >>> names = name_by_model(table, model, Pictures(table, dataset))   # doctest: +SKIP
        >>> names.candidates[["latent", "name"]]   # doctest: +SKIP
    """
    plan = plan_naming(
        table, pictures, latents=latents, split=split, statistic=statistic, group=group, n=n, of=of, labels=labels,
        min_groups=min_groups,
    )  # fmt: skip
    return names_of_plan(plan, model, votes=votes, seed=seed, tries=tries, journal=journal)


@checked_arguments
def plan_naming(
    table: "LatentTable",
    pictures: Pictures,
    *,
    latents: ArrayLike | None = None,
    split: str = "training",
    statistic: str = "max",
    group: str | ArrayLike = "patient_id",
    n: int = 5,
    of: int = 20,
    labels: Sequence[str] = (),
    min_groups: int = 10,
) -> NamingPlan:
    """What `name_by_model` asks with the same arguments; no model is asked and no image read.

    Raises:
        InputError: as `name_by_model`.
    """
    told = _labels(table, labels)
    rows_of_split = split_rows(table, split)
    chosen = (
        table.live_latents(split) if latents is None else indices(latents, "the latents", table.d_sae, distinct=True)
    )
    min_groups = whole(min_groups, "min_groups", least=1)
    n, of = whole(n, "n", least=1), whole(of, "of", least=1)
    if of < n:
        raise InputError(f"{n} images cannot be chosen among the {of} strongest; give a larger number")
    every = image_statistic(table, statistic)[rows_of_split]
    groups = as_groups(image_groups(table, group)[rows_of_split], len(rows_of_split))
    strongest, n_groups = strongest_rows(as_codes(every[:, chosen]), groups, of)
    rows = np.full((len(chosen), n), -1, dtype=np.int64)
    for place, own in enumerate(strongest):
        top = own[own >= 0]
        unlike = top[diverse(every[top].toarray(), n)]
        rows[place, : len(unlike)] = rows_of_split[unlike]
    asked = np.flatnonzero(n_groups >= min_groups)
    questions = {
        str(chosen[place]): partial(
            _question, table, pictures, int(chosen[place]), rows[place][rows[place] >= 0].tolist(), told
        )
        for place in asked.tolist()
    }
    pictures.read_peaks(chosen[asked], split)
    about = {
        **which_table(table), "split": split, "statistic": statistic, "n": n, "of": of, "labels": list(told),
        "min_groups": min_groups, "n_images": len(rows_of_split), "n_groups": int(groups.max(initial=-1)) + 1,
    }  # fmt: skip
    n_pictures = int((rows[asked] >= 0).sum()) * (2 if pictures.has_peaks else 1)
    return NamingPlan(chosen, rows, n_groups, questions, min_groups, n_pictures, about)


def names_of_plan(
    plan: NamingPlan,
    model: LanguageModel,
    *,
    votes: int = 1,
    seed: int = 0,
    tries: int = 3,
    journal: Path | None = None,
) -> LatentNames:
    """Ask what was planned; arguments and errors as for `name_by_model`."""
    votes, seed, tries = whole(votes, "votes", least=1), whole(seed, "seed", least=0), whole(tries, "tries", least=1)
    rounds = [
        ask_all(
            model, plan.questions, journal, seed=seed + vote * tries, tries=tries, check=_check,
            progress="names" if votes == 1 else f"names, vote {vote + 1} of {votes}",
        )
        for vote in range(votes)
    ]  # fmt: skip
    found = [
        _decided([replies[str(latent)] for replies in rounds])
        if str(latent) in plan.questions
        else ("", f"fires in too few groups; in {fires}, fewer than {plan.min_groups}")
        for latent, fires in zip(plan.latents.tolist(), plan.n_groups.tolist(), strict=True)
    ]
    named = [(latent, name) for latent, (name, _) in zip(plan.latents.tolist(), found, strict=True) if name]
    n_failed = sum(reply.found is None for replies in rounds for reply in replies.values())
    common: dict[str, Any] = {
        **dict.fromkeys(COLUMNS, np.nan),
        "latent": plan.latents, "method": METHOD, "name": "", "n": (plan.rows >= 0).sum(axis=1),
        "abstained": True, "reason": [reason for _, reason in found],
    }  # fmt: skip
    latents = pd.DataFrame(common, index=range(len(plan.latents))).assign(
        model=model.name, prompt_version=PROMPT_VERSION
    )
    candidates = pd.DataFrame(
        {"latent": [latent for latent, _ in named], "rank": 1, "name": [name for _, name in named]},
        index=range(len(named)),
    ).assign(score=np.nan, chance=np.nan, p=np.nan, q=np.nan)
    about = {
        **plan.about, "model": model.name, "host": model.host, "prompt_version": PROMPT_VERSION, "votes": votes,
        "seed": seed, "tries": tries, "n_asked": len(plan.questions), "n_failed": n_failed,
        "n_candidates": len(named),
    }  # fmt: skip
    return LatentNames(METHOD, latents, candidates, about)


def _decided(replies: Sequence[Reply]) -> tuple[str, str]:
    """A latent's candidate, and why it has no name."""
    read = [reply.found for reply in replies if reply.found is not None]
    if not read:
        return "", f"no answer that can be read; {replies[-1].failure}"
    said = [str(found["name"]) for found in read if found["in_common"]]
    if 2 * len(said) <= len(read):
        return "", "the model finds nothing in common"
    return commonest_name(said), NOT_JUDGED


def _check(found: Mapping[str, Any]) -> str | None:
    """What the schema does not say: that what is in common has a name, and a short one."""
    if not found["in_common"]:
        return None
    length = len(clean_name(found["name"]))
    if length == 0:
        return "something in common without a name"
    return f"a name of {length} letters, more than {_LONGEST_NAME}" if length > _LONGEST_NAME else None


def _labels(table: "LatentTable", labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that are told; nothing else of a table leaves it, such as ids, ages or machines.

    Raises:
        InputError: one that is no label.
    """
    for name in (chosen := tuple(entries(labels, "labels"))):
        if name not in table.vocabulary:
            has = f"labels are {', '.join(table.vocabulary)}" if table.vocabulary else "the table has no labels"
            raise InputError(f"{name} is no label of {table.folder}, and only labels are told to a model; {has}")
    return chosen


def _question(
    table: "LatentTable", pictures: Pictures, latent: int, rows: Sequence[int], labels: Sequence[str]
) -> Question:
    parts: list[Any] = []
    for number, row in enumerate(rows, start=1):
        image, *crop = pictures.around(row, latent)
        said = f"Image {number}" + (", with a box round the place of the strongest response:" if crop else ":")
        parts += [said, image]
        if crop:
            parts += [f"Image {number}, the part in the box:", crop[0]]
        if told := _told(table, row, labels):
            parts.append(f"Known of image {number}: {told}")
    parts.append(f"What specific thing do all {len(rows)} images show, if there is one?")
    return Question(tuple(parts), _SCHEMA, _SYSTEM.format(called=images_called([pictures.about.name])))


def _told(table: "LatentTable", row: int, labels: Sequence[str]) -> str:
    said = []
    for name in labels:
        concept, number = table.vocabulary[name], int(table.images[name].iloc[row])
        if number >= 0:
            what = ("no", "yes")[number] if concept.is_binary else concept.classes[number]
            said.append(f"{readable(name)}: {what}")
    return "; ".join(said)
