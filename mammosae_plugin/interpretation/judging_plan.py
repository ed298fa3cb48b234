"""What a judge of names will be asked: which images, which other names, in which sets, all before anything is asked."""

__all__ = ["judging_split", "JudgingPlan", "names_to_judge", "plan_judging", "SHUFFLED", "TRUE"]

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.analysis.dense_rows import Embeddings, dense_rows
from mammosae_plugin.analysis.table_arrays import image_groups, image_statistic, split_rows
from mammosae_plugin.arguments import whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.judges import N_RANKED, Task
from mammosae_plugin.interpretation.names import NOT_JUDGED, LatentNames
from mammosae_plugin.interpretation.shown_images import (
    REST,
    Shown,
    distractors,
    diverse,
    fires_and_rests,
    other_text,
    shown_images,
)

if TYPE_CHECKING:
    from mammosae_plugin.latents import LatentTable

TRUE, SHUFFLED = "true", "shuffled"
"""Whether a task is of the latent's name or of another latent's."""
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
        unread: by latent, why the judge cannot read its name, which stays as it is.
        unjudged: by latent, why its name cannot be judged by anybody, and so is none.
        about: what was asked for.
    """

    tasks: Mapping[str, Task]
    truth: Mapping[str, tuple[int, ...]]
    called: Mapping[int, str]
    shuffled: Mapping[int, str]
    unread: Mapping[int, str]
    unjudged: Mapping[int, str]
    about: Mapping[str, Any]

    @property
    def n_pictures(self) -> int:
        """Pictures that are shown, each as often as it is."""
        return sum(len(task.rows) for task in self.tasks.values())


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
    split = judging_split(table, names.about.get("split"), split)
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
    strongest, _ = strongest_rows(codes, groups, _CANDIDATES)
    strange = {latent: reason for latent, name in called.items() if (reason := unread(name))}
    readable = {latent: name for latent, name in called.items() if latent not in strange}
    unjudged: dict[int, str] = {}
    n_everywhere = 0
    shuffled = {latent: other_text(readable, latent, f"{seed}/{latent}") for latent in readable}
    maker = _Tasks(readable, shuffled, rows, set_size, seed)
    for column, latent in enumerate(latents.tolist()):
        if latent in strange:
            continue
        values = codes[:, [column]].toarray()[:, 0]
        n_everywhere += bool(np.mean(values <= 0) < REST)
        n_firing, n_other = (len(np.unique(groups[one])) for one in fires_and_rests(values))
        for count, where in ((n_firing, "it fires"), (n_other, "it does not fire")):
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
        n_sets = min(n_intruder, n_firing // (_INTRUDER_IMAGES - 1), n_other)
        of_sets = shown_images(values, groups, None, n_sets * (_INTRUDER_IMAGES - 1), generator)
        maker.intruders(latent, of_sets, n_sets, generator)
        top = strongest[column][strongest[column] >= 0]
        together = top[diverse(every[top].toarray(), _RANKED_IMAGES)]
        maker.rankings(latent, together, n_ranking)
    about = {
        "split": split, "statistic": statistic, "n": n, "set_size": set_size, "n_intruder": n_intruder,
        "n_ranking": n_ranking, "min_groups": min_groups, "seed": seed, "n_everywhere": n_everywhere,
        "checked_there": names.about.get("check") == split,
    }  # fmt: skip
    judged = {latent: text for latent, text in shuffled.items() if latent not in unjudged}
    return JudgingPlan(maker.tasks, maker.truth, called, judged, strange, unjudged, about)


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


def judging_split(table: "LatentTable", made_in: str | None, split: str | None = None) -> str:
    """Whose images names are judged in: validation where there is one that they were not made in, else test.

    Args:
        table: the latents table.
        made_in: the split that names were made in.
        split: the one that is asked for, if any.

    Raises:
        InputError: there is none, or it is the one that they were made in.
    """
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
        for which, name in ((TRUE, self._called[latent]), (SHUFFLED, self._shuffled[latent])):
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
