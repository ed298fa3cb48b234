"""`mammosae name --judge`: who judges the names that were found, what that costs, and what came of it."""

__all__ = ["AskedJudge", "judge_found", "JUDGING", "LABELS", "TEXTS"]

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mammosae_plugin.analysis.dense_rows import dense_rows
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.interpretation import (
    LabelJudge,
    LatentNames,
    ModelJudge,
    Pictures,
    TextJudge,
    judge_names,
    load_terms,
    plan_judging,
)
from mammosae_plugin.interpretation.attributes import attributes_of
from mammosae_plugin.interpretation.by_texts import check_layer
from mammosae_plugin.interpretation.judges import Judge
from mammosae_plugin.interpretation.judging import check_judge
from mammosae_plugin.interpretation.judging_plan import JudgingPlan, names_to_judge
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.locks import only_run
from mammosae_plugin.study.naming import AskedModel, Prices, open_model, text_encoder, told_cost

JUDGING = "judging.jsonl"
"""Where the answers of a judge lie in the folder of the names."""
LABELS, TEXTS = "labels", "texts"
"""Judges that are no language model."""


@dataclass(frozen=True)
class AskedJudge:
    """A judge as the command line names it.

    Attributes:
        who: `LABELS`, `TEXTS`, or a language model's name.
        model: where a language model is.
        labels: what labels are judged by; None: all.
        metadata: the same of other columns.
        text: the text encoder's checkpoint.
        tokenizer: its tokenizer; None: Bio_ClinicalBERT on the Hub.
        terms: a vocabulary whose texts stand for names; None: what mammograms show.
        rows: the vectors of a table of embeddings.
        split: whose images; None as for `judge_names`.
        same: whether it may have made the names.
    """

    who: str
    model: AskedModel | None = None
    labels: Sequence[str] | None = None
    metadata: Sequence[str] | None = None
    text: str | None = None
    tokenizer: str | None = None
    terms: Path | None = None
    rows: Path | None = None
    split: str | None = None
    same: bool = False


def judge_found(
    names: LatentNames,
    table: LatentTable,
    asked: AskedJudge,
    pictures: Callable[[], Pictures],
    *,
    output: Path | None,
    say: Callable[[str], None],
    prices: Prices | None = None,
    dry_run: bool = False,
    seed: int = 0,
    alpha: float = 0.05,
    **chosen: Any,
) -> LatentNames | None:
    """`judge_names`; where a language model judges, its cost is told after one question.

    Args:
        names: what was found.
        table: the latents table.
        asked: the judge.
        pictures: the table's images, asked for if a language model judges.
        output: where a language model's answers are kept; needed for one.
        say: is given what it will cost, in a line.
        prices: of tokens.
        dry_run: end there.
        seed: of `judge_names`.
        alpha: of `judge_names`.
        chosen: statistic and group, as for `judge_names`.

    Returns:
        The judged names, or the names as they are where there is none to judge; None of a dry run.

    Raises:
        InputError: as `judge_names`, or what the judge needs is not named.
    """
    if not names_to_judge(names):
        say("there is no name to judge")
        return names
    rows = None if asked.rows is None else str(asked.rows)
    if table.is_of_rows and rows is None:
        raise InputError(
            f"{table.folder} keeps no vectors of its images, which are needed to find those that look alike: name the "
            "store or the files that it was made of with --rows"
        )
    settings: Mapping[str, Any] = {"split": asked.split, "embeddings": rows, "seed": seed, **chosen}
    if asked.model is None:
        judge = _judge(asked, names, table, rows, seed)
        return judge_names(names, table, None, judge, alpha=alpha, same_judge=asked.same, **settings)
    if output is None and not dry_run:
        raise InputError("answers of a judge take time and money, and are kept as they come: name a folder with -o")
    place = None if output is None else local_path(output)
    with nullcontext() if place is None else only_run(place):
        shown = pictures()
        model = open_model(asked.model, shown.about)
        check_judge(names, model.name, asked.same)
        asking = ModelJudge(model, shown, journal=None if place is None else place / JUDGING, seed=seed)

        def tell(plan: JudgingPlan) -> None:
            measured = asking.replies(dict(list(plan.tasks.items())[:1]))
            say(told_cost(model, len(plan.tasks), plan.n_pictures, [*measured.values()], prices))

        if dry_run:
            tell(plan_judging(names, table, **settings))
            return None
        return judge_names(names, table, shown, asking, alpha=alpha, same_judge=asked.same, announce=tell, **settings)


def _judge(asked: AskedJudge, names: LatentNames, table: LatentTable, rows: str | None, seed: int) -> Judge:
    made_in = str(names.about.get("split", "training"))
    if asked.who == LABELS:
        # Thirds of numbers are those of the split that names were made in, or their names would differ.
        return LabelJudge(attributes_of(table, asked.labels, asked.metadata, made_in), seed=seed)
    from mammosae_plugin.adapters import load_mammo_clip_text
    from mammosae_plugin.adapters.mammo_clip_text import BIO_CLINICAL_BERT

    if asked.text is None:
        raise InputError("--judge texts needs a text encoder: name Mammo-CLIP's pretraining checkpoint with --text")
    check_layer(table)
    tower = load_mammo_clip_text(asked.text, tokenizer=asked.tokenizer or BIO_CLINICAL_BERT)
    features = dense_rows(table, rows, np.arange(len(table.images))).whole()
    terms = load_terms(asked.terms)
    texts = {**terms.terms, **terms.distractors}
    return TextJudge(tower, features, name=text_encoder(asked.text), texts=texts, seed=seed)
