"""Is a name right? Whether a judge who knows it tells where its latent fires, beside chance and shuffled names."""

__all__ = ["CHANCE", "check_judge", "judge_names", "told_scores"]

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.adapters.language_models import LanguageModel
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.dense_rows import Embeddings
from mammosae_plugin.arguments import between, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.judges import FAILED, N_RANKED, Judge, ModelJudge, WholeImages, check_answer
from mammosae_plugin.interpretation.judging_plan import SHUFFLED, TRUE, JudgingPlan, plan_judging
from mammosae_plugin.interpretation.names import CALLED, LatentNames
from mammosae_plugin.measures.shares import (
    balanced_accuracy,
    balanced_interval,
    mean_interval,
    p_of_telling_apart,
    wilson,
)

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

CHANCE: Mapping[str, float] = {
    "detection": 0.5,
    "detection_hard": 0.5,
    "intruder": 1 / 5,
    "ranking_1": 1 / N_RANKED,
    "ranking_2": 2 / N_RANKED,
}
"""What answers at random score."""


def judge_names(
    names: LatentNames,
    table: "LatentTable",
    pictures: WholeImages | None,
    judge: LanguageModel | Judge,
    *,
    split: str | None = None,
    statistic: str = "max",
    group: str | ArrayLike = "patient_id",
    embeddings: Embeddings = None,
    n: int = 10,
    set_size: int = 5,
    n_intruder: int = 2,
    n_ranking: int = 1,
    min_groups: int = 5,
    alpha: float = CALLED,
    seed: int = 0,
    journal: Path | None = None,
    same_judge: bool = False,
    announce: Callable[[JudgingPlan], None] | None = None,
) -> LatentNames:
    """Score names of latents by a judge, and take back those that do not hold up.

    - *detection*: the judge is given the name and says of n images where the latent fires and n where it does not,
      (`fires_and_rests` says which), shuffled and in sets, which of them it fits: balanced accuracy, 0.5 by chance.
      Half of the others are hard negatives: their dense vectors are nearest to those of firing images.
    - *intruder*: of five images it finds the one where the latent does not fire: 0.2 by chance.
    - *ranking*: given five images where it fires it puts the name and those of four other latents, of other texts, in
      order: first (0.2 by chance), first or second (0.4).

    All images are of another split than names were made in, each of another group within a score, so that intervals
    are over groups. The same is asked with the name of another latent in place of the name (shuffled). Answers that do
    not count are wrong answers. p is exact: the share of all ways to choose which images fire in which the same answers
    score as high; q is p after Benjamini and Hochberg over the judged names. A name stays if q is at most alpha and the
    interval of its detection lies above the mean of the shuffled names. Names that a model wrote have no other score:
    theirs is the detection.

    Args:
        names: by any method; judged are the names and what a model wrote.
        table: the latents table that they were made of.
        pictures: the table's images (`Pictures`), for a language model; others need none.
        judge: a language model, or any `Judge`.
        split: whose images are shown; None: validation where there is one that names were not made in, else test.
        statistic: "max" or "mean" of a latent over positions.
        group: the column of `table.images` that says which images belong together, or this for each image.
        embeddings: dense vectors of the images for hard negatives; None: the layer's own, as the table keeps them.
        n: images where a latent fires, and as many where it does not; fewer where there are not enough groups.
        set_size: images in one question of a detection.
        n_intruder: sets of five for each name; 0: none.
        n_ranking: rankings for each name, with other distractors; 0: none.
        min_groups: a latent that fires, or does not, in images of fewer groups of the split keeps no name.
        alpha: false discovery rate of names.
        seed: of images, orders, distractors and shuffled names, and of a language model's answers.
        journal: where a language model's answers are kept as they come: a run that is killed goes on from there.
        same_judge: let who wrote the names judge them; then it is said beside the judge's name.
        announce: called with what will be asked before anything is.

    Returns:
        The names, with the columns of judging (`schema.names_of_latents`), NaN where a latent was not judged, and the
        summary over latents in `about["judging"]`, which `told_scores` puts into lines.

    Raises:
        InputError: nothing to judge, a split that names were made in, a judge that wrote the names, or settings out of
            range.

    Example:
        >>> judged = judge_names(names, table, pictures, model, journal=Path("answers.jsonl"))   # doctest: +SKIP
        >>> print("\\n".join(told_scores(judged)))   # doctest: +SKIP
    """
    asked: Judge
    if isinstance(judge, Judge):
        asked = judge
    elif isinstance(judge, LanguageModel):
        if pictures is None:
            raise InputError(f"{judge.name} judges by looking: give pictures of the table's images")
        asked = ModelJudge(judge, pictures, journal=journal, seed=whole(seed, "seed", least=0))
    else:
        raise InputError(f"a {type(judge).__name__} is no judge: give a language model, or an object as `Judge` says")
    wrote = check_judge(names, asked.name, same_judge)
    alpha = between(alpha, "alpha", 0, 1)
    plan = plan_judging(
        names, table, split=split, statistic=statistic, group=group, embeddings=embeddings, n=n, set_size=set_size,
        n_intruder=n_intruder, n_ranking=n_ranking, min_groups=min_groups, seed=seed, unread=asked.unread,
    )  # fmt: skip
    if announce is not None:
        announce(plan)
    given = asked.answer(plan.tasks)
    answers = {key: given.get(key) for key in plan.tasks}
    for key, task in plan.tasks.items():
        check_answer(answers[key], task)
    failures: Mapping[str, str] = getattr(asked, "failures", {})
    told = f"{asked.name} (wrote the names)" if wrote else asked.name
    return _judged(names, plan, answers, told, alpha, next(iter(failures.values()), ""))


def check_judge(names: LatentNames, judge: str, same_judge: bool) -> bool:
    """Whether a judge made the names itself.

    Raises:
        InputError: it did, and may not.
    """
    wrote = judge in _writers(names)
    if wrote and not same_judge:
        raise InputError(
            f"{judge} made these names, and who judges their own names sees in images what they saw before: take "
            "another judge, or say that it is the same (same_judge=True, --same-judge)"
        )
    return wrote


def _writers(names: LatentNames) -> set[str]:
    """Who made names, as far as these say."""
    found = {str(names.about[key]) for key in ("model", "text_encoder") if names.about.get(key)}
    if "model" in names.latents:
        found |= {str(name) for name in names.latents["model"].dropna().unique()} - {""}
    return found


def _scores_of(
    plan: JudgingPlan, answers: Mapping[str, tuple[int, ...] | None], which: str, keys: list[str]
) -> dict[str, float]:
    """The figures of one latent with its name or the shuffled one."""
    own = [key for key in keys if key.split("/")[1] == which]
    said, truth, hits, first, second, n_failed = [], [], [], [], [], 0
    for key in own:
        task, right, answer = plan.tasks[key], plan.truth[key], answers[key]
        n_failed += answer is None or FAILED in answer
        if task.kind == "detection":
            said += list(answer or (FAILED,) * len(right))
            truth += list(right)
        elif task.kind == "intruder":
            hits.append(answer == right)
        else:
            place = len(task.names) if answer is None else answer.index(right[0])
            first.append(place < 1)
            second.append(place < 2)
    found: dict[str, float] = {"n_failed": n_failed, "n_answers": len(own)}
    if said:
        found |= _detected(np.array(said), np.array(truth))
    for name, values in (("intruder", hits), ("ranking_1", first), ("ranking_2", second)):
        if values:
            found[name] = float(np.mean(values))
    if hits:
        found["intruder_low"], found["intruder_high"] = wilson(sum(hits), len(hits))
    return found


def _detected(said: NDArray[np.int64], truth: NDArray[np.int64]) -> dict[str, float]:
    fires, hard = truth == 1, truth == 2
    found = int((said[fires] == 1).sum())
    passed, n_firing, n_other = int((said[~fires] == 0).sum()), int(fires.sum()), int((~fires).sum())
    score = balanced_accuracy(found, n_firing, passed, n_other)
    low, high = balanced_interval(found, n_firing, passed, n_other)
    counts = [int((said == answer).sum()) for answer in (1, 0, FAILED)]
    return {
        "detection": score,
        "detection_low": low,
        "detection_high": high,
        "detection_p": p_of_telling_apart(counts[0], counts[1], counts[2], n_firing, score),
        "detection_hard": balanced_accuracy(found, n_firing, int((said[hard] == 0).sum()), int(hard.sum()))
        if hard.any()
        else float("nan"),
        "n_shown": len(said),
    }


_COLUMNS = (
    "detection", "detection_low", "detection_high", "detection_p", "detection_q", "detection_hard",
    "detection_shuffled", "intruder", "intruder_low", "intruder_high", "ranking_1", "ranking_2",
)  # fmt: skip


def _judged(
    names: LatentNames,
    plan: JudgingPlan,
    answers: Mapping[str, tuple[int, ...] | None],
    judge: str,
    alpha: float,
    failure: str,
) -> LatentNames:
    keys: dict[int, list[str]] = {}
    for key in plan.tasks:
        keys.setdefault(int(key.split("/")[0]), []).append(key)
    true, shuffled = (
        pd.DataFrame({latent: _scores_of(plan, answers, which, own) for latent, own in keys.items()}).T
        for which in (TRUE, SHUFFLED)
    )
    for frame in (true, shuffled):
        for name in (*_COLUMNS, "n_failed", "n_answers", "n_shown"):
            if name not in frame:
                frame[name] = np.nan
    true["detection_q"] = benjamini_hochberg(true["detection_p"].to_numpy(np.float64))
    true["detection_shuffled"] = shuffled["detection"]
    by_shuffling = float(shuffled["detection"].mean())
    told = [
        _row(row, plan, true.loc[row["latent"]] if row["latent"] in true.index else None, judge, alpha, by_shuffling)
        for row in names.latents.to_dict("records")
    ]
    columns = list(dict.fromkeys([*names.latents.columns, "judge", *_COLUMNS, "n_failed"]))
    latents = pd.DataFrame(told, columns=columns)
    n_failed = {which: int(frame["n_failed"].sum()) for which, frame in ((TRUE, true), (SHUFFLED, shuffled))}
    about = {
        **plan.about, "judge": judge, "alpha": alpha, "n_judged": len(true), "n_questions": len(plan.tasks),
        "n_failed": n_failed[TRUE], "n_failed_shuffled": n_failed[SHUFFLED], "first_failure": failure,
        "n_kept": int((~latents["abstained"] & (latents["judge"] != "")).sum()), "n_not_judged": len(plan.unjudged),
        "n_unread": len(plan.unread), "first_unread": next(iter(plan.unread.values()), ""),
        "scores": [_summed(name, true[name], shuffled[name]) for name in CHANCE],
    }  # fmt: skip
    return replace(names, latents=latents, about={**names.about, "judging": about})


def _row(
    row: Mapping[Any, Any], plan: JudgingPlan, one: Any, judge: str, alpha: float, by_shuffling: float
) -> dict[Any, Any]:
    """A latent's row with what judging found of it; `one` is None where it was not judged."""
    found = {**row, "judge": "", **dict.fromkeys(_COLUMNS, float("nan")), "n_failed": 0}
    name = plan.called.get(row["latent"])
    if name is None or row["latent"] in plan.unread:
        return found
    if one is None:
        reason = f"cannot be judged: {plan.unjudged[row['latent']]}"
    else:
        reason = _reason(one, name, alpha, by_shuffling)
        found |= {
            "judge": judge,
            **{column: float(one[column]) for column in _COLUMNS},
            "n_failed": int(one["n_failed"]),
        }
        if pd.isna(row["score"]):  # what a model wrote has no score but this
            found |= {"score": found["detection"], "chance": CHANCE["detection"], "n": int(one["n_shown"])}
            found |= {part: found[f"detection_{part}"] for part in ("low", "high", "p", "q")}
    return found | {"name": "" if reason else name, "abstained": bool(reason), "reason": reason}


def _reason(one: Any, name: str, alpha: float, by_shuffling: float) -> str:
    """Why a name does not hold up; empty where it does."""
    if one["detection_q"] <= alpha and not one["detection_low"] <= by_shuffling:
        return ""
    beside = "" if np.isnan(by_shuffling) else f", shuffled names {by_shuffling:.2f}"
    unread = f"; {one['n_failed']:.0f} of {one['n_answers']:.0f} answers do not count" if one["n_failed"] else ""
    return (
        f"the name does not tell where it fires; {name} does with balanced accuracy {one['detection']:.2f} "
        f"({one['detection_low']:.2f} to {one['detection_high']:.2f}; by chance 0.50{beside}; q "
        f"{one['detection_q']:.2g}){unread}"
    )


def _summed(name: str, true: Any, shuffled: Any) -> dict[str, Any]:
    """The mean of a score over latents and that of shuffled names, with intervals."""
    found: dict[str, Any] = {"score": name, "chance": CHANCE[name]}
    for which, values in (("", true.dropna()), ("shuffled_", shuffled.dropna())):
        shares = values.to_numpy(np.float64)
        ends = wilson(float(shares.sum()), len(shares)) if name.startswith("ranking") else mean_interval(shares)
        told = (float(shares.mean()), *ends) if len(shares) else (None,) * 3
        found |= {f"{which}{part}": value for part, value in zip(("mean", "low", "high"), told, strict=True)}
        found[f"{which}n_latents"] = len(shares)
    return found


def told_scores(names: LatentNames) -> list[str]:
    """What judging found, in lines: the means over latents beside shuffled names and chance first.

    Raises:
        InputError: the names were not judged.
    """
    about = names.about.get("judging")
    if about is None:
        raise InputError("these names were not judged; judge_names does that")
    lines = [
        f"judged by {about['judge']} in split {about['split']}: {about['n_kept']} of {about['n_judged']} names hold up"
    ]
    for one in about["scores"]:
        if not one["n_latents"]:
            if one["score"] == "ranking_1" and about["n_ranking"]:
                lines.append("no ranking: too few names with different texts")
            continue
        shuffled = (
            f"shuffled names {one['shuffled_mean']:.2f} ({one['shuffled_low']:.2f} to {one['shuffled_high']:.2f})"
            if one["shuffled_n_latents"]
            else "no other name to shuffle"
        )
        lines.append(
            f"{_CALLED[one['score']]}: {one['mean']:.2f} ({one['low']:.2f} to {one['high']:.2f} over "
            f"{one['n_latents']} latents), {shuffled}, chance {one['chance']:.2f}"
        )
    if about["checked_there"]:
        lines.append(
            f"these names were checked in split {about['split']} before, so that their scores are a little high"
        )
    if about["n_everywhere"]:
        lines.append(
            f"{about['n_everywhere']} of the latents fire in over three quarters of the images: told apart were images "
            "above their median and their weakest quarter"
        )
    if about["n_not_judged"]:
        lines.append(f"{about['n_not_judged']} names could not be judged, and are none")
    if about["n_unread"]:
        lines.append(f"{about['n_unread']} names stay as they are: {about['first_unread']}")
    failed = about["n_failed"] + about["n_failed_shuffled"]
    if failed:
        why = f" (the first: {about['first_failure']})" if about["first_failure"] else ""
        lines.append(f"{failed} of {about['n_questions']} answers do not count, and are wrong answers{why}")
    return lines


_CALLED = {
    "detection": "detection (balanced accuracy)",
    "detection_hard": "the same among look-alikes",
    "intruder": "intruder found",
    "ranking_1": "name ranked first of five",
    "ranking_2": "name ranked first or second",
}
