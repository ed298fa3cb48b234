"""From a text to latents: which names say what is asked for, by a text embedding, by words or by a language model."""

__all__ = [
    "as_words", "ByModel", "ByText", "ByWords", "Match", "match_names", "Matcher", "named_latents", "UnansweredError",
]  # fmt: skip

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mammosae_plugin.adapters.language_models import LanguageModel, Question
from mammosae_plugin.adapters.word_embeddings import WordEmbeddings, load_word_embeddings
from mammosae_plugin.arguments import between, entries, text, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.asking import ask_all
from mammosae_plugin.interpretation.names import LatentNames
from mammosae_plugin.interpretation.said_words import Candidate, candidates, content_words, negations, words_of
from mammosae_plugin.schema.names import readable

_KEPT = ("latent", "method", "name", "score", "low", "high", "chance", "q")
_NOTHING_LEFT = 0.2  # of the query's length that no name says yet
_SAME = 0.5  # cosine of two words from which one says the other; calcification and microcalcifications have 0.65
_EQUALLY = 0.05  # difference of two values' nearness within which a query says neither


@dataclass(frozen=True)
class Match:
    """A name that a query matches.

    Attributes:
        number: which of the texts.
        nearness: how near it is to the query, in the unit of the matcher; NaN where there is none.
        p: by chance, over all names together; NaN where the matcher has no chance.
    """

    number: int
    nearness: float
    p: float


class Matcher(Protocol):
    """What finds names for a query: `ByText`, `ByWords`, `ByModel`, or any object with these two."""

    name: str

    def match(self, query: str, texts: Sequence[str], n: int) -> list[Match]:
        """Of different texts the n at most that say what the query asks for, the best first; none if none does."""
        ...


class ByText:
    """Names by a text embedding, one after another, each for what of the query the names before it do not say.

    The embeddings of query and names are taken less the mean of random words. The name with the largest cosine to the
    query comes first; from then on, with the largest cosine to what is left of the query when its projection on the
    names found is taken away. So "a mass in a dense breast" finds *mass* beside *dense breast*, and not *left breast*,
    which is near as well. It ends where chance gives as much, or less than a fifth of the query is left.

    Chance are texts of random words other than the query's, with as many words as the names have: p is the share of
    them that are as near, times the number of names. And a word of the name must be in the query, or one as near as a
    cosine of 0.5: texts may be near in nothing but their kind. A query about something else finds nothing.

    Args:
        encoder: any object with `embed_texts`; None: the small embedding that comes with the package wordllama.
        alpha: p above which a name does not match.
        words: what random texts are made of; None: the vocabulary of wordllama's embedding.
        seed: of random texts.
    """

    def __init__(
        self, encoder: Any = None, *, alpha: float = 0.02, words: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        if encoder is not None and not callable(getattr(encoder, "embed_texts", None)):
            raise InputError(f"a {type(encoder).__name__} has no embed_texts: give a text encoder, or None")
        self._encoder: Any = load_word_embeddings() if encoder is None else encoder
        self.name = f"text ({getattr(self._encoder, 'name', type(self._encoder).__name__)})"
        self._alpha, self._seed = between(alpha, "alpha", 0, 1, with_low=False), whole(seed, "seed", least=0)
        if words is not None:
            self.words: Sequence[str] = [str(word) for word in entries(words, "words")]
        else:
            own = self._encoder if isinstance(self._encoder, WordEmbeddings) else load_word_embeddings()
            self.words = own.words
        if len(self.words) < 100:
            raise InputError(f"random texts need 100 different words or more, got {len(self.words)}")
        self._known: tuple[tuple[str, ...], Any] | None = None

    def match(self, query: str, texts: Sequence[str], n: int) -> list[Match]:
        """As `Matcher`; nearness is the cosine to the whole query."""
        middle, names, random, drawn = self._prepared(tuple(one.lower() for one in texts))
        own = {*words_of(query)}
        unsaid = ~self._says(content_words(query), texts, middle)
        random = random[[own.isdisjoint(words) for words in drawn]]
        whole_query = _unit(np.asarray(self._encoder.embed_texts([query.lower()]), dtype=np.float64) - middle)[0]
        left, found, matches = whole_query, list[int](), list[Match]()
        while len(found) < n:
            near = names @ _unit(left[None])[0]
            near[found] = near[unsaid] = -np.inf
            best = int(np.argmax(near))
            reached = 1 + int((random @ _unit(left[None])[0] >= near[best]).sum())
            p = min(1.0, len(names) * reached / (1 + len(random)))
            if not near[best] > 0 or p > self._alpha:
                break
            found.append(best)
            matches.append(Match(best, float(names[best] @ whole_query), p))
            weights = np.linalg.lstsq(names[found].T, whole_query, rcond=None)[0]
            left = whole_query - weights @ names[found]
            if len(found) == len(names) or np.linalg.norm(left) < _NOTHING_LEFT:
                break
        return matches

    def nearness(self, query: str, texts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) cosine of each text to the whole query."""
        middle, names, *_ = self._prepared(tuple(one.lower() for one in texts))
        vector = _unit(np.asarray(self._encoder.embed_texts([query.lower()]), dtype=np.float64) - middle)[0]
        found: NDArray[np.float64] = names @ vector
        return found

    def _says(self, asked: Sequence[str], texts: Sequence[str], middle: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) whether a word of a query is one of each text, or near one."""
        words = [content_words(one) or words_of(one) for one in texts]
        known = list(dict.fromkeys(word for one in (asked, *words) for word in one))
        if not known:
            return np.zeros(len(texts), dtype=bool)
        vectors = _unit(np.asarray(self._encoder.embed_texts(known), dtype=np.float64) - middle)
        at = {word: place for place, word in enumerate(known)}
        rows = vectors[[at[word] for word in asked]]
        return np.array([
            any(word in asked for word in one) or bool((rows @ vectors[[at[word] for word in one]].T >= _SAME).any())
            for one in words
        ])  # fmt: skip

    def _prepared(
        self, texts: tuple[str, ...]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], list[list[str]]]:
        """The mean of random texts (e,), names and random texts (n, e) less it, each of length 1, and their words."""
        if self._known is None or self._known[0] != texts:
            generator = np.random.default_rng(self._seed)
            n_random = max(2000, int(np.ceil(2 * len(texts) / self._alpha)))  # so that the best of many can be sure
            lengths = generator.choice([len(one.split()) for one in texts], n_random)
            drawn = [
                " ".join(self.words[at] for at in generator.integers(len(self.words), size=max(1, length)))
                for length in lengths.tolist()
            ]
            random = np.asarray(self._encoder.embed_texts(drawn), dtype=np.float64)
            own = np.asarray(self._encoder.embed_texts(list(texts)), dtype=np.float64)
            middle = random.mean(axis=0)
            words = [words_of(one) for one in drawn]
            self._known = texts, (middle, _unit(own - middle), _unit(random - middle), words)
        return self._known[1]


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float64] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-12)
    return found


class ByWords:
    """Names by BM25 (of the package bm25s), one after another, each for words of the query that those before lack.

    The name with the highest score comes first; its words then no longer count. Words that say nothing (of, the, in) do
    not count, nor does a word that more than half of the names have, if there are four or more; plurals count as the
    singular. Nearness is the score that a name has when it is found; a query that shares no word finds nothing.
    """

    name = "words (BM25)"

    def match(self, query: str, texts: Sequence[str], n: int) -> list[Match]:
        """As `Matcher`."""
        try:
            import bm25s
            from bm25s.stopwords import STOPWORDS_EN
        except ImportError as error:
            raise InputError("search by words needs bm25s; pip install 'mammosae-plugin[language]'") from error
        names = [[word for word in words_of(one) if word not in STOPWORDS_EN] for one in texts]
        often = Counter(word for one in names for word in {*one})
        known = {word for word, count in often.items() if len(names) < 4 or count <= len(names) / 2}
        asked = [word for word in dict.fromkeys(words_of(query)) if word in known]
        if not asked:
            return []
        index = bm25s.BM25(method="robertson", idf_method="lucene")
        index.index([[word for word in one if word in known] for one in names], show_progress=False)
        matches = list[Match]()
        while asked and len(matches) < n:
            scores = np.asarray(index.get_scores(asked), dtype=np.float64)
            best = int(np.argmax(scores))
            matches.append(Match(best, float(scores[best]), float("nan")))
            asked = [word for word in asked if word not in names[best]]
        return matches


class UnansweredError(InputError):
    """A model gave no answer that counts to a query."""


_SYSTEM = (
    "You match a query about medical images to descriptions of what features of a network stand for. You see no image."
)
_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"latents": {"type": "array", "items": {"type": ["number", "string"]}}},
    "required": ["latents"],
}


class ByModel:
    """Names by a language model, which sees the query and a numbered list of the names.

    An answer holds the numbers of names that are listed, each once. Any other is asked for again; a question without
    an answer that counts is an error, and not a query that nothing matches.

    Args:
        model: who is asked (`adapters.language_models`). Query and names go there.
        journal: a file that keeps every answer, so that none is asked for twice; None: none.
        seed: of the answers.
        tries: answers at the most.
        exactly: ask for exactly so many names as are wanted, as SAIL does; else for no more, and for none where none
            matches.

    Attributes:
        host: the other machine that queries and names go to; None where they stay on this one.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        journal: str | Path | None = None,
        seed: int = 0,
        tries: int = 3,
        exactly: bool = False,
    ) -> None:
        self._model, self._journal = model, None if journal is None else Path(journal)
        self._seed, self._tries, self._exactly = seed, tries, exactly
        self.host = model.host
        self.name = f"model ({model.name})"

    def match(self, query: str, texts: Sequence[str], n: int) -> list[Match]:
        """As `Matcher`; there is neither nearness nor chance.

        Raises:
            UnansweredError: no answer that counts.
            InputError: no answer at all: the server is dead, or refuses.
        """
        listed = "\n".join(f"{number}. {one}" for number, one in enumerate(texts, start=1))
        wanted = f"exactly {n}" if self._exactly else f"at most {n}"
        none = "" if self._exactly else " Give an empty list if none of them says any of it."
        asked = (
            f"Query: {query}\n\nDescriptions:\n{listed}\n\nWhich {wanted} of these descriptions say what the query "
            f"asks for? Together they should cover it: one for each thing that it names, the most important first."
            f'{none} Answer with JSON: {{"latents": [numbers]}}'
        )

        def check(found: Mapping[str, Any]) -> str | None:
            numbers = _numbers(found["latents"], len(texts))
            if numbers is None:
                return f"not each a number from 1 to {len(texts)}, given once"
            if len(numbers) > n or (self._exactly and len(numbers) < n):
                return f"{len(numbers)} numbers where {wanted} were asked for"
            return None

        questions = {query: Question((asked,), _SCHEMA, _SYSTEM)}
        reply = ask_all(
            self._model, questions, self._journal, seed=self._seed, tries=self._tries, check=check, progress="queries"
        )[query]
        if reply.found is None:
            raise UnansweredError(f"{self._model.name} gave no answer that counts for {query!r} ({reply.failure})")
        chosen = _numbers(reply.found["latents"], len(texts)) or []
        return [Match(number - 1, float("nan"), float("nan")) for number in chosen]


def _numbers(given: Any, n: int) -> list[int] | None:
    """Different whole numbers from 1 to n, also where they are text or have a point; else None."""
    found = []
    for one in given if isinstance(given, list) else [None]:
        said = re.fullmatch(r"\s*([0-9]+)(\.0*)?\s*", str(one)) if not isinstance(one, bool) else None
        found.append(int(said[1]) if said else 0)
    return found if all(1 <= one <= n for one in found) and len({*found}) == len(found) else None


def as_words(name: str) -> str:
    """A name as text: `Suspicious_Calcification` and `view=MLO` become "suspicious calcification" and "view MLO"."""
    words = readable(name.replace("=", " ")) if "_" in name else name.replace("=", " ")
    return " ".join(words.split())


def named_latents(
    names: LatentNames | Sequence[LatentNames], meanings: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The latents that have a name: a row for each name of a latent, surest first, with the text that is matched.

    Args:
        names: names by one or more methods.
        meanings: by name what it means, where that is not what it says (`density=D`: "extremely dense breast").

    Returns:
        latent, method, name, score, low, high, chance, q, and text.

    Raises:
        InputError: no names, or none but abstained ones.
    """
    given = [names] if isinstance(names, LatentNames) else entries(names, "names")
    frames = [one.latents[~one.latents["abstained"].astype(bool)] for one in given]
    if not frames or not sum(map(len, frames)):
        counted = sum(len(one.latents) for one in given)
        raise InputError(f"none of {counted} latents has a name: there is nothing to match a query to")
    found = pd.concat([one.reindex(columns=_KEPT) for one in frames], ignore_index=True)
    told = dict(meanings or {})
    found["text"] = [told.get(name, as_words(name)) for name in found["name"].astype(str)]
    above = found["score"] - found["chance"]
    order = np.lexsort((found["latent"], -above.fillna(0), found["q"].fillna(1)))  # as `surest`
    in_order: pd.DataFrame = found.iloc[order].reset_index(drop=True)
    return in_order


def match_names(
    query: str,
    names: LatentNames | Sequence[LatentNames] | pd.DataFrame,
    by: Matcher,
    *,
    n_names: int = 4,
    per_name: int = 3,
    meanings: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The named latents that a query asks for.

    Args:
        query: what is asked for, in words.
        names: names of latents, or what `named_latents` made of them.
        by: how names are found.
        n_names: different names at the most.
        per_name: latents of each name at the most: those whose name is surest (smallest q, then most above chance).
        meanings: as for `named_latents`.

    Returns:
        A row for each latent: part (which of the names, from 1), nearness and p of the name, and the columns of
        `named_latents`. No row: no named latent matches.

    Raises:
        InputError: an empty query, no named latent, or what the matcher refuses.

    Example:
        >>> match_names("a spiculated mass in a dense breast", names, ByText())   # doctest: +SKIP
    """
    text(query.strip() if isinstance(query, str) else query, "the query")
    query, n_names, per_name = query.strip(), whole(n_names, "n_names", least=1), whole(per_name, "per_name", least=1)
    rows = names if isinstance(names, pd.DataFrame) else named_latents(names, meanings)
    chosen, notes = _chosen(query, rows, by, n_names, meanings or {})
    parts = list[pd.DataFrame]()
    taken: set[int] = set()
    for said, match in chosen:
        own = rows[(rows["text"] == said) & ~rows["latent"].isin(taken)]
        own = own.drop_duplicates("latent").head(per_name)
        taken |= set(own["latent"].tolist())
        if len(own):
            parts.append(own.assign(part=len(parts) + 1, nearness=match.nearness, p=match.p))
    columns = ["part", "nearness", "p", *rows.columns]
    found = pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
    found.attrs["notes"] = notes
    return found


def _chosen(
    query: str, rows: pd.DataFrame, by: Matcher, n: int, meanings: Mapping[str, str]
) -> tuple[list[tuple[str, Match]], list[str]]:
    """The texts that a matcher chooses, and what is to be said of the query.

    Values of the names' columns that no latent is named by are among the texts, so that another does not stand for
    them. A language model reads query and names as they are.
    """
    if isinstance(by, ByModel):
        texts = list(dict.fromkeys(rows["text"]))
        return [(texts[one.number], one) for one in by.match(query, texts, min(n, len(texts)))], []
    names = dict.fromkeys(rows["name"].astype(str))
    columns = {name.partition("=")[0] for name in names if "=" in name}
    unnamed = {name: said for name, said in meanings.items() if name not in names and name.partition("=")[0] in columns}
    of_text: dict[str, list[str]] = {}
    for name, said in [*zip(rows["name"].astype(str), rows["text"], strict=True), *unnamed.items()]:
        of_text.setdefault(said, []).append(name)
    left, open_to = candidates(query, {said: list(dict.fromkeys(own)) for said, own in of_text.items()})
    notes = []
    while left and open_to:
        matches = by.match(left, [one.read for one in open_to], min(n, len(open_to)))
        found = [(open_to[match.number].text, match) for match in matches]
        torn = next(
            (one for match in matches if (one := open_to[match.number]) and _is_torn(one, open_to, left, by)), None
        )
        if torn is None:
            break
        notes.append(f"{query!r} is about as near to several values of {torn.column}: none of them is matched")
        open_to = [one for one in open_to if one.column != torn.column or one.said]
    else:
        found = []
    denied = [word for word in negations(query) if not any(word in words_of(said) for said, _ in found)]
    if denied:
        notes.append(
            f"search understands no negation: {', '.join(denied)} counts for nothing, what follows it is sought"
        )
    return found, notes


def _is_torn(one: Candidate, open_to: Sequence[Candidate], query: str, by: Matcher) -> bool:
    """Whether a query that says no word of a value is about as near to another value of its column."""
    rivals = [other for other in open_to if other.column == one.column and other != one and not other.said]
    if one.said or not one.column or not rivals or not isinstance(by, ByText):
        return False
    near = by.nearness(query, [one.read, *(other.read for other in rivals)])
    return bool(near[0] - near[1:].max() < _EQUALLY)
