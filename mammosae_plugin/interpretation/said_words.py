"""What a query says of names in words: what tells a name from others, and what speaks against it."""

__all__ = ["Candidate", "candidates", "content_words", "negations", "words_of"]

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# what any image of the kind could be called: a name is not told from others by it
_SHARED = {
    "breast", "image", "mammogram", "mammography", "patient", "photo", "picture", "plane", "projection", "scan",
    "slice", "view",
}  # fmt: skip
_STOP = {
    "a", "about", "above", "after", "all", "almost", "an", "and", "any", "are", "as", "at", "be", "before", "below",
    "beside", "between", "both", "but", "by", "each", "for", "from", "had", "has", "have", "he", "her", "his", "how",
    "i", "in", "into", "is", "it", "its", "me", "more", "most", "my", "of", "off", "on", "only", "or", "other", "our",
    "out", "over", "she", "so", "some", "such", "than", "that", "the", "their", "them", "then", "there", "these",
    "they", "this", "those", "through", "to", "too", "under", "up", "very", "was", "we", "were", "what", "when",
    "where", "which", "while", "who", "will", "with", "you", "your",
}  # fmt: skip
_NEGATIONS = {"absence", "absent", "neither", "never", "no", "none", "nor", "not", "without"}
_OPPOSITES = (
    ("left", "right"), ("upper", "lower"), ("superior", "inferior"), ("anterior", "posterior"), ("medial", "lateral"),
    ("benign", "malignant"), ("female", "male"), ("woman", "man"), ("old", "young"), ("dense", "fatty"),
)  # fmt: skip


def words_of(said: str) -> list[str]:
    """The words of a text in small letters, plurals as the singular."""
    return [_singular(word) for word in re.findall(r"[^\W_]+", said.lower())]


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    return word[: -2 if word.endswith(("sses", "xes", "ches", "shes")) else -1]


def content_words(said: str) -> list[str]:
    """Words of a text without those that say nothing (of, the, in), each once."""
    return [word for word in dict.fromkeys(words_of(said)) if word not in _STOP and word not in _NEGATIONS]


def negations(query: str) -> list[str]:
    """Words of a query that deny something."""
    return [word for word in dict.fromkeys(words_of(query)) if word in _NEGATIONS]


@dataclass(frozen=True)
class Candidate:
    """A text that a query may ask for.

    Attributes:
        text: as it is told.
        read: what is matched: the words that tell it from others.
        column: of what it is a value (`density` of `density=D`); "" for others.
        said: which of these words the query has.
    """

    text: str
    read: str
    column: str
    said: frozenset[str]


def candidates(query: str, texts: Mapping[str, Sequence[str]]) -> tuple[str, list[Candidate]]:
    """What is left of a query without words that many names share, and the texts that it may ask for.

    - Words that any image could be called by (breast, view), and those that more than half of a column's values have,
      do not count. A text all of whose words are shared keeps them.
    - The name itself counts beside its meaning: `view=MLO` where a query says MLO; a value of one character, or a
      number, only behind its column (density D).
    - A text with shared words that has none of its other words in the query needs one of the shared ones there: a fat
      cat is no fatty breast.
    - A text is out if the query says the opposite of one of its words (left for right) and not the word, or if another
      text has all of its words that are in the query, and more of them.

    Args:
        query: what is asked for.
        texts: by text the names that have it.
    """
    asked = words_of(query)
    columns = {text: next((one.partition("=")[0] for one in names if "=" in one), "") for text, names in texts.items()}
    shared = _shared_in_columns(columns)
    found, kept = list[Candidate](), set[str]()
    for text, names in texts.items():
        words = content_words(text)
        common = [word for word in words if word in _SHARED or word in shared[columns[text]]]
        own = [word for word in words if word not in common] or words
        if alias := next((one for one in names if _is_called(one, asked)), None):
            own = words_of(alias.replace("=", " "))
            said = frozenset(own)
        elif _is_bare(text, names):
            continue
        else:
            said = frozenset(own) & frozenset(asked)
        near = bool(said) or own == words or not {*common}.isdisjoint(asked)
        if own and near and not _is_contradicted({*words}, {*asked}):
            kept |= {*own}
            found.append(
                Candidate(text, " ".join(own) if alias or common and own != words else text, columns[text], said)
            )
    unsaying = {word for one in shared.values() for word in one} | _SHARED
    left = " ".join(word for word in re.findall(r"[^\W_]+", query) if _singular(word.lower()) not in unsaying - kept)
    return left, [one for one in found if not any(one.said and one.said < other.said for other in found)]


def _shared_in_columns(columns: Mapping[str, str]) -> dict[str, set[str]]:
    of_column = defaultdict(list)
    for text, column in columns.items():
        of_column[column].append({*words_of(text)})
    shared = {column: set[str]() for column in of_column}
    for column, values in of_column.items():
        if column and len(values) > 1:
            often = Counter(word for one in values for word in one)
            shared[column] = {word for word, count in often.items() if count > len(values) / 2}
    return shared


def _is_called(name: str, asked: list[str]) -> bool:
    """Whether a query has the value of a `column=value`, behind the column if it is too short to stand alone."""
    column, is_value, value = name.partition("=")
    if not is_value:
        return False
    words, of_column = words_of(value), words_of(column)
    if not words:
        return False
    if len(value) < 2 or value.isdigit():
        words = [*of_column, *words]
    return any(asked[at : at + len(words)] == words for at in range(len(asked)))


def _is_bare(text: str, names: Sequence[str]) -> bool:
    """Whether a text is a column and a value too short to stand alone, and no meaning."""
    return any(
        words_of(text) == words_of(name.replace("=", " ")) and (len(value) < 2 or value.isdigit())
        for name in names
        for _, is_value, value in [name.partition("=")]
        if is_value
    )


def _is_contradicted(words: set[str], asked: set[str]) -> bool:
    return any(
        one in words and other in asked and one not in asked and other not in words
        for pair in _OPPOSITES
        for one, other in (pair, pair[::-1])
    )
