"""Who judges names: one protocol of tasks and answers, and a language model, a text encoder or labels that speak it."""

__all__ = [
    "check_answer",
    "FAILED",
    "Judge",
    "LabelJudge",
    "ModelJudge",
    "N_RANKED",
    "Task",
    "TextJudge",
    "WholeImages",
]

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from mammosae_plugin.adapters.language_models import LanguageModel, Question
from mammosae_plugin.adapters.text_towers import TextTower, unit_rows
from mammosae_plugin.arguments import numbers, text
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.answers import parse_ranking
from mammosae_plugin.interpretation.asking import Reply, ask_all
from mammosae_plugin.interpretation.shown_images import plain_text

Kind = Literal["detection", "intruder", "ranking"]
N_RANKED = 5
"""Names in a ranking, one of which is true."""
FAILED = -1
"""In place of an answer of yes (1) or no (0) on an image: there is none that counts."""


@dataclass(frozen=True)
class Task:
    """One question to a judge.

    Attributes:
        kind: "detection": which images does the name fit? "intruder": which one does it not fit? "ranking": which names
            fit all images best?
        names: one name; for a ranking several, in the order in which they are shown.
        rows: image rows of the table, in the order in which they are shown.
        about: tasks of one latent and one name have it in common.
    """

    kind: Kind
    names: tuple[str, ...]
    rows: tuple[int, ...]
    about: str


@runtime_checkable
class Judge(Protocol):
    """Who answers tasks: any object with these is one.

    Attributes:
        name: as results say it; who wrote the names must not have it.
    """

    name: str

    def unread(self, name: str) -> str:
        """Why it cannot judge a name, in a clause; empty where it can."""
        ...

    def answer(self, tasks: Mapping[str, Task]) -> Mapping[str, tuple[int, ...] | None]:
        """The answer to every task by its key, or None where there is none that counts.

        Detection: 1 (fits), 0 or `FAILED` for every image. Intruder: the place of the image. Ranking: the places of the
        names, best first. Places count from 0.
        """
        ...


class WholeImages(Protocol):
    """Images of a table as a model sees them; `Pictures` is one."""

    def whole(self, image_row: int) -> Image.Image:
        """The image, without a mark of where a latent fires, which would be the answer."""
        ...


class _GradingJudge:
    """A judge that grades how well each name fits each image of a table."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self._seed = name, seed

    def grades(self, name: str) -> NDArray[np.float64]:
        """(n_images,) how well a name fits, NaN where that is not known."""
        raise NotImplementedError

    def bound(self, grades: NDArray[np.float64]) -> float:
        """Above which grade a name fits, from the grades of all images that a name is judged by."""
        raise NotImplementedError

    def unread(self, name: str) -> str:
        """Why it cannot judge a name."""
        raise NotImplementedError

    def answer(self, tasks: Mapping[str, Task]) -> dict[str, tuple[int, ...] | None]:
        """Answers from grades; equal grades are in random order."""
        generator = np.random.default_rng(self._seed)
        of_name = {name: self.grades(name) for name in sorted({name for task in tasks.values() for name in task.names})}
        shown: dict[str, list[int]] = defaultdict(list)
        for task in tasks.values():
            if task.kind == "detection":
                shown[task.about] += task.rows
        found: dict[str, tuple[int, ...] | None] = {}
        for key, task in tasks.items():
            grades = np.array([of_name[name][list(task.rows)] for name in task.names])
            if task.kind == "detection":
                bound = self.bound(of_name[task.names[0]][shown[task.about]])
                found[key] = tuple(np.where(np.isnan(grades[0]), FAILED, grades[0] > bound).astype(int).tolist())
            elif np.isnan(grades).any():
                found[key] = None
            elif task.kind == "intruder":
                found[key] = (int(np.lexsort((generator.random(grades.shape[1]), grades[0]))[0]),)
            else:
                order = np.lexsort((generator.random(len(grades)), -grades.mean(axis=1)))
                found[key] = tuple(order.tolist())
        return found


class LabelJudge(_GradingJudge):
    """Labels and metadata as the judge of names that are attributes of images: a name fits where an image has it.

    Args:
        attributes: (n_images, A) 1, 0 or NaN, as `attributes_of` gives them of a table.
        seed: of the order of equal names.
    """

    def __init__(self, attributes: pd.DataFrame, *, seed: int = 0) -> None:
        super().__init__("labels", seed)
        self._columns = {plain_text(str(name)): attributes[name].to_numpy(np.float64) for name in attributes.columns}

    def unread(self, name: str) -> str:
        """Why it cannot judge a name, in a clause; empty where it can."""
        return "" if plain_text(name) in self._columns else "no attribute of the images has this name"

    def grades(self, name: str) -> NDArray[np.float64]:
        """1 where an image has the attribute, 0 where not."""
        return self._columns[plain_text(name)]

    def bound(self, grades: NDArray[np.float64]) -> float:  # noqa: ARG002
        """Half."""
        return 0.5


class TextJudge(_GradingJudge):
    """A text encoder as the judge: a name's grade is the cosine of its text's embedding with the image's.

    Of the images that are shown for a name, those above their median fit: unlike a language model it is told that half
    of them fire.

    Args:
        tower: the text encoder, with the image side's projection.
        features: (n_images, d) of all images of the table, as the projection reads them: of a table of the final map
            its mean channels.
        name: as results say it.
        texts: by name, the text to embed where that is another than the name, as `Terms` have it.
        seed: of the order of equal names.

    Raises:
        InputError: features that the projection does not read.
    """

    def __init__(
        self,
        tower: TextTower,
        features: ArrayLike,
        *,
        name: str = "text encoder",
        texts: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        text(name, "the judge's name")
        super().__init__(name, seed)
        self._tower, self._texts = tower, dict(texts or {})
        self._images = unit_rows(tower.project(numbers(features, "features")), "image embeddings")

    def unread(self, name: str) -> str:  # noqa: ARG002
        """It reads every name."""
        return ""

    def grades(self, name: str) -> NDArray[np.float64]:
        """The cosine with every image."""
        found: NDArray[np.float64] = self._images @ self._tower.embed_texts([self._texts.get(name, _in_words(name))])[0]
        return found

    def bound(self, grades: NDArray[np.float64]) -> float:
        """The median."""
        return float(np.median(grades))


def _in_words(name: str) -> str:
    """A name as it is read: on one line, so that no part of it passes for the question's own, without underscores."""
    return " ".join(name.replace("_", " ").split())


_SYSTEM = (
    "You look at medical images and judge descriptions of what they show. Judge only by what can be seen, and look at "
    "small and faint things too."
)


class ModelJudge:
    """A language model as the judge, which sees the images and the name, and nothing else.

    Args:
        model: the language model.
        pictures: the images.
        journal: where every answer is kept as it comes, so that a run that is killed goes on; None: nowhere.
        seed: of the answers.
        tries: how often an answer that cannot be read is asked for.
    """

    def __init__(
        self,
        model: LanguageModel,
        pictures: WholeImages,
        *,
        journal: Path | None = None,
        seed: int = 0,
        tries: int = 3,
    ) -> None:
        self.name, self._model, self._pictures = model.name, model, pictures
        self._journal, self._seed, self._tries = journal, seed, tries
        self.failures: dict[str, str] = {}

    def unread(self, name: str) -> str:  # noqa: ARG002
        """It reads every name."""
        return ""

    def answer(self, tasks: Mapping[str, Task]) -> dict[str, tuple[int, ...] | None]:
        """Ask for all of them; `failures` then says by key why an answer does not count."""
        replies = self.replies(tasks)
        self.failures = {key: reply.failure for key, reply in replies.items() if reply.found is None}
        return {key: _read(tasks[key], reply.found) for key, reply in replies.items()}

    def replies(self, tasks: Mapping[str, Task]) -> dict[str, Reply]:
        """What the model said to each task, as it came; what the journal holds is not asked again."""
        return ask_all(
            self._model,
            {key: self._asking(task) for key, task in tasks.items()},
            self._journal,
            seed=self._seed,
            tries=self._tries,
            check=_unranked,
            progress="judging names",
        )

    def _asking(self, task: Task) -> Callable[[], Question]:
        def question() -> Question:
            said, schema = _WORDS[task.kind](replace(task, names=tuple(map(_in_words, task.names))))
            parts: list[str | Image.Image] = [said]
            for number, row in enumerate(task.rows, start=1):
                parts += [f"Image {number}:", self._pictures.whole(row)]
            return Question(tuple(parts), schema, _SYSTEM)

        return question


def _detection(task: Task) -> tuple[str, dict[str, Any]]:
    n = len(task.rows)
    said = (
        f"Which of these {n} images does this description fit?\n\nDescription: {task.names[0]}\n\n"
        f"Any number of them may be right, none and all too. `fits` has true or false for each of the {n}, in order."
    )
    return said, _object("fits", {"type": "array", "items": {"type": "boolean"}, "minItems": n, "maxItems": n})


def _intruder(task: Task) -> tuple[str, dict[str, Any]]:
    n = len(task.rows)
    said = (
        f"This description fits {n - 1} of these {n} images. Which one does it fit least?\n\nDescription: "
        f"{task.names[0]}\n\n`odd` is the number of that image."
    )
    return said, _object("odd", {"type": "integer", "minimum": 1, "maximum": n})


def _ranking(task: Task) -> tuple[str, dict[str, Any]]:
    labels = ascii_uppercase[: len(task.names)]
    listed = "\n".join(f"{label}: {name}" for label, name in zip(labels, task.names, strict=True))
    said = (
        f"One of these descriptions was written for all of these {len(task.rows)} images. Put the descriptions in "
        f"order, the one that fits best what the images have in common first.\n\n{listed}\n\n`order` is the letters "
        f'from best to worst, each once, such as "C > A > E > B > D".'
    )
    return said, _object("order", {"type": "string"})


def _object(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}


_WORDS: Mapping[Kind, Callable[[Task], tuple[str, dict[str, Any]]]] = {
    "detection": _detection,
    "intruder": _intruder,
    "ranking": _ranking,
}


def _unranked(found: Mapping[str, Any]) -> str | None:
    if "order" not in found or parse_ranking(found["order"], N_RANKED) is not None:
        return None
    return f"no order of {N_RANKED} letters"


def _read(task: Task, found: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    if found is None:
        return None
    if task.kind == "detection":
        return tuple(int(one) for one in found["fits"])
    if task.kind == "intruder":
        return (int(found["odd"]) - 1,)
    order = parse_ranking(found["order"], len(task.names))
    return None if order is None else tuple(ascii_uppercase.index(letter) for letter in order)


def check_answer(answer: Sequence[int] | None, task: Task) -> None:
    """See that a judge's answer has the form of its task.

    Raises:
        InputError: it has not.
    """
    if answer is None:
        return
    n_rows, n_names = len(task.rows), len(task.names)
    fits = {
        "detection": len(answer) == n_rows and {*answer} <= {FAILED, 0, 1},
        "intruder": len(answer) == 1 and 0 <= answer[0] < n_rows,
        "ranking": sorted(answer) == list(range(n_names)),
    }
    if not fits[task.kind]:
        raise InputError(f"the judge answers {tuple(answer)!r} to a {task.kind}; `Judge` says what is asked of it")
