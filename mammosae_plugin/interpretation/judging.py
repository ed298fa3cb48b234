"""Is a name right? Whether a judge who knows it tells where its latent fires, beside chance and shuffled names."""

__all__ = ["CHANCE", "check_judge", "judge_names", "JudgingPlan", "names_to_judge", "plan_judging", "told_scores"]

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.adapters.language_models import LanguageModel
from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.analysis.table_arrays import image_groups, image_statistic, split_rows
from mammosae_plugin.arguments import between, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.judges import FAILED, N_RANKED, Judge, ModelJudge, Task, WholeImages, check_answer
from mammosae_plugin.interpretation.names import CALLED, LatentNames
from mammosae_plugin.interpretation.shown_images import Shown, distractors, diverse, other_text, shown_images
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
NOT_JUDGED = "not judged yet"
"""Why a name that a model wrote is none so far."""
_TRUE, _SHUFFLED = "true", "shuffled"
_INTRUDER_IMAGES, _RANKED_IMAGES, _CANDIDATES = 5, 5, 20


@dataclass(frozen=True)
class JudgingPlan:
    """What a judge will be asked.

    Attributes:
        tasks: by key, "latent/true or shuffled/kind/number".
        truth: by the same key the right answer: of a detection 1 or 0 for each image and 2 for hard ones where the
            latent does not fire, of an intruder its place, of a ranking the place of the name.
        called: by latent, the name that is judged.
        shuffled: by latent, the name of another latent that is judged in its place; empty where there is none.
        unjudged: by latent, why its name cannot be judged.
        about: what was asked for.
    """

    tasks: Mapping[str, Task]
    truth: Mapping[str, tuple[int, ...]]
    called: Mapping[int, str]
    shuffled: Mapping[int, str]
    unjudged: Mapping[int, str]
    about: Mapping[str, Any]

    @property
    def n_pictures(self) -> int:
        """Pictures that are shown, each as often as it is."""
        return sum(len(task.rows) for task in self.tasks.values())


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
      shuffled and in sets, which of them it fits: balanced accuracy, 0.5 by chance. Half of the others are hard
      negatives: their dense vectors are nearest to those of firing images.
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
    answers = asked.answer(plan.tasks)
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


def plan_judging(
    names: LatentNames,
    table: "LatentTable",
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
    seed: int = 0,
    unread: Callable[[str], str] = lambda _: "",
) -> JudgingPlan:
    """What `judge_names` will ask, without asking: how much it costs, and which images it shows.

    Args:
        names: as for `judge_names`, as is all that has no word here.
        table: the latents table.
        split: whose images.
        statistic: of a latent over positions.
        group: which images belong together.
        embeddings: dense vectors.
        n: images of either kind.
        set_size: images in a question.
        n_intruder: sets of five.
        n_ranking: rankings.
        min_groups: fewest groups.
        seed: of every choice.
        unread: why the judge cannot judge a name; empty where it can.

    Raises:
        InputError: as `judge_names`.
    """
    n, set_size = whole(n, "n", least=2), whole(set_size, "set_size", least=1)
    n_intruder, n_ranking = whole(n_intruder, "n_intruder", least=0), whole(n_ranking, "n_ranking", least=0)
    min_groups, seed = whole(min_groups, "min_groups", least=2), whole(seed, "seed", least=0)
    called = names_to_judge(names)
    if not called:
        raise InputError("there is no name to judge: every latent of these names abstains")
    split = _split(names, table, split)
    rows = split_rows(table, split)
    all_groups = image_groups(table, group)
    made_in = names.about.get("split")
    if made_in is not None:
        rows = rows[~np.isin(all_groups[rows].astype(str), all_groups[split_rows(table, str(made_in))].astype(str))]
    groups = as_groups(all_groups[rows], len(rows))
    latents = np.array(sorted(called), dtype=np.int64)
    every = image_statistic(table, statistic)[rows]
    codes = as_codes(every[:, latents])
    dense = _unit(dense_rows(table, embeddings, rows).whole())
    strongest, n_firing = strongest_rows(codes, groups, _CANDIDATES)
    unjudged = {latent: reason for latent, name in called.items() if (reason := unread(name))}
    readable = {latent: name for latent, name in called.items() if latent not in unjudged}
    shuffled = {latent: other_text(readable, latent, f"{seed}/{latent}") for latent in readable}
    maker = _Tasks(readable, shuffled, rows, set_size, seed)
    for column, latent in enumerate(latents.tolist()):
        if latent in unjudged:
            continue
        values = codes[:, [column]].toarray()[:, 0]
        n_other = len(np.unique(groups[values <= 0]))
        for count, where in ((int(n_firing[column]), "it fires"), (n_other, "it does not fire")):
            if count < min_groups and latent not in unjudged:
                unjudged[latent] = (
                    f"images where {where} are of {count} groups of split {split}, fewer than {min_groups}"
                )
        generator = np.random.default_rng([seed, latent])
        shown = shown_images(values, groups, dense, n, generator)
        if latent not in unjudged and len(shown.firing) < min_groups:
            unjudged[latent] = f"too few groups of split {split} to show each once"
        if latent in unjudged:
            continue
        maker.detection(latent, shown, generator)
        n_sets = min(n_intruder, int(n_firing[column]) // (_INTRUDER_IMAGES - 1), n_other)
        of_sets = shown_images(values, groups, None, n_sets * (_INTRUDER_IMAGES - 1), generator)
        maker.intruders(latent, of_sets, n_sets, generator)
        top = strongest[column][strongest[column] >= 0]
        together = top[diverse(every[top].toarray(), _RANKED_IMAGES)]
        maker.rankings(latent, together, n_ranking)
    about = {
        "split": split, "statistic": statistic, "n": n, "set_size": set_size, "n_intruder": n_intruder,
        "n_ranking": n_ranking, "min_groups": min_groups, "seed": seed,
    }  # fmt: skip
    judged = {latent: text for latent, text in shuffled.items() if latent not in unjudged}
    return JudgingPlan(maker.tasks, maker.truth, called, judged, unjudged, about)


def names_to_judge(names: LatentNames) -> dict[int, str]:
    """By latent the name, or what a model wrote and nobody has judged."""
    written = {row["latent"]: row["name"] for row in names.candidates.to_dict("records") if row["rank"] == 1}
    found: dict[int, str] = {}
    for row in names.latents.to_dict("records"):
        if not row["abstained"]:
            found[int(row["latent"])] = str(row["name"])
        elif row["reason"] == NOT_JUDGED and row["latent"] in written:
            found[int(row["latent"])] = str(written[row["latent"]])
    return found


def _split(names: LatentNames, table: "LatentTable", split: str | None) -> str:
    made_in = names.about.get("split")
    there = [name for name in ("validation", "test") if name in table.splits and name != made_in]
    if split is None:
        if not there:
            raise InputError(f"{table.folder} has no images beside those that names were made of; name a split")
        return there[0]
    if split == made_in:
        raise InputError(f"the names were made in split {split}, where they fit whatever they say: judge in another")
    return split


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)


class _Tasks:
    """Makes tasks of the true and of the shuffled name from the same images."""

    def __init__(
        self,
        called: Mapping[int, str],
        shuffled: Mapping[int, str],
        rows: NDArray[np.int64],
        set_size: int,
        seed: int,
    ) -> None:
        self.tasks: dict[str, Task] = {}
        self.truth: dict[str, tuple[int, ...]] = {}
        self._called, self._shuffled, self._rows = called, shuffled, rows
        self._set_size, self._seed = set_size, seed

    def _names(self, latent: int) -> Iterator[tuple[str, str]]:
        for which, name in ((_TRUE, self._called[latent]), (_SHUFFLED, self._shuffled[latent])):
            if name:
                yield f"{latent}/{which}", name

    def detection(self, latent: int, shown: Shown, generator: np.random.Generator) -> None:
        images = np.concatenate([shown.firing, shown.others])
        truth = np.repeat([1, 2, 0], [len(shown.firing), len(shown.hard), len(shown.random)])
        order = generator.permutation(len(images))
        for number, part in enumerate(np.array_split(order, -(-len(order) // self._set_size))):
            rows, right = tuple(self._rows[images[part]].tolist()), tuple(truth[part].tolist())
            for about, name in self._names(latent):
                self._add(about, f"detection/{number}", Task("detection", (name,), rows, about), right)

    def intruders(self, latent: int, shown: Shown, n_sets: int, generator: np.random.Generator) -> None:
        n_sets = min(n_sets, len(shown.firing) // (_INTRUDER_IMAGES - 1))
        for number in range(n_sets):
            firing = shown.firing[number::n_sets][: _INTRUDER_IMAGES - 1]
            images = self._rows[np.append(firing, shown.random[number])]
            order = generator.permutation(len(images))
            place = int(np.argmax(order == len(images) - 1))
            for about, name in self._names(latent):
                task = Task("intruder", (name,), tuple(images[order].tolist()), about)
                self._add(about, f"intruder/{number}", task, (place,))

    def rankings(self, latent: int, together: NDArray[np.int64], n_rankings: int) -> None:
        rows = tuple(self._rows[together].tolist())
        for number in range(n_rankings):
            for about, name in self._names(latent):
                # The latent's own name is no distractor of the shuffled one: a good judge would put it first.
                seed = f"{self._seed}/{about}/{number}"
                others = distractors(self._called, latent, N_RANKED - 1, seed, without=name)
                if not others:
                    continue
                order = [name, *(self._called[other] for other in others)]
                random.Random(seed).shuffle(order)
                task = Task("ranking", tuple(order), rows, about)
                self._add(about, f"ranking/{number}", task, (order.index(name),))

    def _add(self, about: str, part: str, task: Task, truth: tuple[int, ...]) -> None:
        self.tasks[f"{about}/{part}"], self.truth[f"{about}/{part}"] = task, truth


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
        for which in (_TRUE, _SHUFFLED)
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
    n_failed = {which: int(frame["n_failed"].sum()) for which, frame in ((_TRUE, true), (_SHUFFLED, shuffled))}
    about = {
        **plan.about, "judge": judge, "alpha": alpha, "n_judged": len(true), "n_questions": len(plan.tasks),
        "n_failed": n_failed[_TRUE], "n_failed_shuffled": n_failed[_SHUFFLED], "first_failure": failure,
        "n_kept": int((~latents["abstained"] & (latents["judge"] != "")).sum()), "n_not_judged": len(plan.unjudged),
        "scores": [_summed(name, true[name], shuffled[name]) for name in CHANCE],
    }  # fmt: skip
    return replace(names, latents=latents, about={**names.about, "judging": about})


def _row(
    row: Mapping[Any, Any], plan: JudgingPlan, one: Any, judge: str, alpha: float, by_shuffling: float
) -> dict[Any, Any]:
    """A latent's row with what judging found of it; `one` is None where it was not judged."""
    found = {**row, "judge": "", **dict.fromkeys(_COLUMNS, float("nan")), "n_failed": 0}
    name = plan.called.get(row["latent"])
    if name is None:
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
    if about["n_not_judged"]:
        lines.append(f"{about['n_not_judged']} names could not be judged, and are none")
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
