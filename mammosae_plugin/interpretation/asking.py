"""Many questions to a language model, each answered once: every answer is on the disk when it comes."""

__all__ = ["ask_all", "Reply"]

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mammosae_plugin.adapters.language_models import Answer, LanguageModel, NoAnswer, Question
from mammosae_plugin.arguments import whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path
from mammosae_plugin.interpretation.answers import parse_object
from mammosae_plugin.progress import progress as bar_of

_SILENT = 3
"""Questions without an answer in a row after which the server counts as dead."""
_REFUSED = 5
"""Questions that it refuses, before it answers any, after which it counts as unfit."""


@dataclass(frozen=True)
class Reply:
    """What came of a question.

    Attributes:
        found: the answer, of the question's schema; None where there is none that counts.
        failure: why there is none, in a clause; else empty.
        text: the last answer as it came; empty where none did.
        tries: how often the model answered, in this run and those before.
        answer: the last answer, with its time and tokens; None where none came.
    """

    found: Mapping[str, Any] | None
    failure: str
    text: str
    tries: int
    answer: Answer | None = None


def ask_all(
    model: LanguageModel,
    questions: Mapping[str, Question | Callable[[], Question]],
    journal: Path | None,
    *,
    seed: int = 0,
    tries: int = 3,
    check: Callable[[Mapping[str, Any]], str | None] | None = None,
    progress: str = "questions",
) -> dict[str, Reply]:
    """Ask every question once, in order, and again only what got nonsense for an answer.

    An answer counts if it holds one JSON object of the question's schema that `check` lets pass. Any other is asked for
    again with another seed, up to `tries` answers; then the question has failed, which is told and no row of anything.
    Where the server gives none (see `openai_model` for what it tries), or refuses it, the question has failed in this
    run, and the next one asks it again.

    The journal holds every answer as it came, on the disk before the next question goes out: a run that is killed goes
    on where it was. It finds an answer by the question's key and all that the model sees, its name, its settings and
    the seed; what has changed is asked anew.

    Args:
        model: who is asked.
        questions: by key; one that is a function is made when its turn comes, so that few pictures are held at once.
        journal: a file of JSON lines, made if absent and added to; None keeps nothing.
        seed: of the answers; a further try has the next one.
        tries: answers at the most.
        check: why an answer of the schema is nonsense all the same, in a clause; None where it is not.
        progress: what the bar says.

    Returns:
        A reply for each key, in the order of the questions.

    Raises:
        InputError: three questions in a row (or all, if fewer) get no answer, or the first five are refused: the server
            is dead or unfit, and what came before is kept; or what the model itself says in a line.

    Example:
        >>> from mammosae_plugin.adapters.language_models import Answer
        >>> class Parrot:
        ...     name, host = "parrot", None
        ...     def answer(self, question, *, seed):
        ...         return Answer('{"word": "%s"}' % question.parts[0], 0.0)
        >>> wants = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
        >>> replies = ask_all(Parrot(), {"a": Question(("hello",), wants)}, None)
        >>> replies["a"].found
        {'word': 'hello'}
    """
    seed, tries = whole(seed, "seed", least=0), whole(tries, "tries", least=1)
    kept = _Journal(None if journal is None else local_path(journal))
    replies: dict[str, Reply] = {}
    silent, refused, answered = 0, 0, False
    for key, given in bar_of(questions.items(), description=progress, unit="question", to=journal, delay=1):
        question = given if isinstance(given, Question) else given()
        digest = _digest(model, question, seed)
        replies[key], lost = _ask(model, question, kept, key, digest, seed, tries, check)
        answered |= lost is None
        silent = silent + 1 if lost is not None and not lost.final else 0
        refused += lost is not None and lost.final
        if silent >= min(_SILENT, len(questions)) or (refused >= _REFUSED and not answered):
            place, n = f" on {model.host}" if model.host else "", max(silent, refused)
            often = f" to {n} questions in a row" if n > 1 else ""
            raise InputError(
                f"{model.name}{place} gave no answer{often} ({lost}); look at the server and run again"
                + ("" if journal is None else ": what was answered is kept")
            )
    return replies


def _ask(
    model: LanguageModel,
    question: Question,
    kept: "_Journal",
    key: str,
    digest: str,
    seed: int,
    tries: int,
    check: Callable[[Mapping[str, Any]], str | None] | None,
) -> tuple[Reply, NoAnswer | None]:
    """The reply, and why there was no answer."""
    said: Answer | None = None
    failure = ""
    for number in range(tries):
        answer = kept.answers.get((key, digest, number))
        if answer is None:
            try:
                answer = model.answer(question, seed=seed + number)
            except NoAnswer as error:
                return _failed(f"no answer: {error}", said, number), error
            kept.add(key, digest, number, answer)
        said = answer
        found, failure = parse_object(said.text, question.schema)
        if found is not None:
            failure = (check(found) if check is not None else None) or ""
            if not failure:
                return Reply(found, "", said.text, number + 1, said), None
    return _failed(failure, said, tries), None


def _failed(failure: str, said: Answer | None, tries: int) -> Reply:
    return Reply(None, failure, "" if said is None else said.text, tries, said)


class _Journal:
    """Answers on the disk: a line of JSON for each, by the question's key, its digest and the try."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.answers: dict[tuple[str, str, int], Answer] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # its writer was killed
            os.truncate(path, sum(map(len, lines[:-1])))
            lines.pop()
        for number, line in enumerate(lines, start=1):
            try:
                told = json.loads(line)
                self.answers[told["key"], told["digest"], told["try"]] = Answer(**told["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"line {number} of {path} is no answer; take the line out, and its question is asked again"
                ) from error

    def add(self, key: str, digest: str, number: int, answer: Answer) -> None:
        self.answers[key, digest, number] = answer
        if self._path is None:
            return
        told = {"key": key, "digest": digest, "try": number, "answer": asdict(answer)}
        with self._path.open("ab") as file:
            file.write(json.dumps(told, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _digest(model: LanguageModel, question: Question, seed: int) -> str:
    """Of everything that an answer depends on."""
    found = hashlib.sha256()
    told = [model.name, getattr(model, "settings", {}), question.system, dict(question.schema), seed]
    for part in (json.dumps(told, sort_keys=True), *question.parts):
        if isinstance(part, Image.Image):
            pixels = np.asarray(part)
            held = f"picture {part.mode} {pixels.shape}".encode() + pixels.tobytes()
        else:
            held = part.encode("utf-8", "surrogatepass")
        found.update(len(held).to_bytes(8, "big") + held)
    return found.hexdigest()
