"""Looking for what must not get out: many known values at once in any bytes, and text under its disguises."""

__all__ = ["Buffer", "Needles", "readings", "SHORTEST_VALUE", "spellings"]

import base64
import binascii
import gzip
import hashlib
import html
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

Buffer = bytes | memoryview

SHORTEST_VALUE = 4
"""A shorter value is not looked for: it would be found everywhere."""
_SHORTEST_IN_BYTES = 8  # in random bytes of an SAE's weights, shorter ones occur by chance
_SHORTEST_NUMBER = 7  # shorter numbers occur as counts
_CHUNK = 1 << 23
_LOWER: npt.NDArray[np.uint8] = np.frombuffer(bytes(range(256)).lower(), np.uint8)
_SELECTORS = re.compile(
    "[\0\u034f\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)  # invisible, but no format characters
_TAGS = {0xE0000 + code: code for code in range(0x20, 0x7F)}  # invisible doubles of ASCII
_SEPARATORS = np.isin(np.arange(256), np.frombuffer(b" \t\n_-./:", np.uint8))
_DASHES = "\u00b7\u2010-\u2015\u2020-\u2027\u2030-\u205e\u2212\u22c5\u22ef\u2e3a\u2e3b\u30fb"  # and dots, slashes
_AS_SEPARATOR = re.compile(rf"[^\S\n]{{0,3}}(?:[-{_DASHES}~#]|\.{{2,}})+[^\S\n]{{0,3}}")
_ONE_DASH = re.compile(f"[{_DASHES}]")
_NO_WORD = re.compile(r"[\W_]+")
_HEX, _HALF = re.compile(r"[0-9a-f]{32,}"), 16
_START = re.compile(r"(?<![^\W_])[^\W_]")
_DEPTH = 3
_PART, _LONGEST_PART, _COMMON = 8, 31, 32
_WORD = re.compile(rf"(?<![a-z0-9])[a-z0-9]{{{_PART},}}(?![a-z0-9])")
_PIECES = re.compile(r"(?<![a-z0-9])[0-9a-f]{1,31}(?:[-_:./ ]{1,3}[0-9a-f]{1,31})+(?![a-z0-9])")  # hexadecimal digits
_NUMERIC = re.compile(rb"\d[.:,\n\t]\d")  # among digits: decimals, times, cells of a table


class Needles:
    """Many values, looked for in bytes and in text without regard to case.

    In bytes a value of 8 characters or more is found as UTF-8, UTF-16, hexadecimal, base64 (at any offset) and as its
    unkeyed MD5, SHA-1 or SHA-256 (the first 16 hexadecimal digits are enough). In text, shorter values count as whole
    words, and numbers of fewer than 7 digits only where they are all of a text: others are counts too often. An id is
    also found in text with other separators between its parts, dashes and ellipses among them, or without (P-00417,
    P…00417 and P00417 for P_00417); one of 8 letters and digits or more, not all digits, also with single separators
    where it has none, as a UUID has them.

    Args:
        values: what to look for; shorter than 4 characters are left out.
        separated: whether to look for other separators too.
    """

    def __init__(self, values: Iterable[str], *, separated: bool = True) -> None:
        self._words: set[str] = set()
        self._whole: set[str] = set()
        plain: set[bytes] = set()
        joined: set[bytes] = set()
        values = {value.strip() for value in values}
        for value in {value.lower() for value in values} | values:
            if len(value) >= SHORTEST_VALUE:
                plain |= self._forms(value)
                joined |= self._joined_forms(value.lower(), plain) if separated else set()
        self._plain, self._joined = _Patterns(plain), _Patterns(joined)
        self._beginnings, self._ends = _parts(values if separated else ())

    def _forms(self, value: str) -> set[bytes]:
        if value.isdigit() and len(value) < _SHORTEST_NUMBER:
            self._whole.add(value)
        elif len(value) < _SHORTEST_IN_BYTES:
            self._words.add(value.lower())
        forms = {pattern.lower() for pattern in spellings(value) if len(pattern) >= _SHORTEST_IN_BYTES}
        return forms | ({value[:_HALF].lower().encode()} if _HEX.fullmatch(value.lower()) else set())

    def _joined_forms(self, value: str, plain: set[bytes]) -> set[bytes]:
        """The form without separators; of a short id, the forms with others are added to the words."""
        parts = [part for part in _NO_WORD.split(value) if part]
        joined = "".join(parts)
        if joined.isdigit() and len(joined) < _SHORTEST_IN_BYTES:
            return set()
        if len(joined) >= _SHORTEST_IN_BYTES:
            return {joined.encode()}
        if len(parts) > 1 and len(joined) >= SHORTEST_VALUE:
            for separator in ("", "_", "-", ".", "/", *(" " if len(joined) > SHORTEST_VALUE else "")):
                form = separator.join(parts)
                if len(form) < _SHORTEST_IN_BYTES:
                    self._words.add(form)
                else:
                    plain.add(form.encode())
        return set()

    def in_bytes(self, data: Buffer) -> int | None:
        """The offset of the first value in the bytes; None when there is none."""
        return next((at for at, found in self._plain.find(data) if not _inside_number(data, at, found)), None)

    def in_text(self, text: str) -> bool:
        """Whether the text holds a value."""
        plain = _AS_SEPARATOR.sub("-", text)
        return self._is_in(text) or (plain != text and self._is_in(plain))

    def _is_in(self, text: str) -> bool:
        if text.strip() in self._whole:
            return True
        if self._words and self._has_word(text.lower()):
            return True
        data = text.encode("utf-8", "surrogatepass")
        return self.in_bytes(data) is not None or self._is_joined(data)

    def _is_joined(self, data: bytes) -> bool:
        """Whether a value stands in the text with single separators put in or left out."""
        if not self._joined or len(data) < _SHORTEST_IN_BYTES:
            return False
        array = np.frombuffer(data, np.uint8)
        separator = np.pad(_SEPARATORS[array], 1)
        kept = np.flatnonzero(~(separator[1:-1] & ~separator[:-2] & ~separator[2:]))
        for at, found in self._joined.find(array[kept].tobytes()):
            start, stop = int(kept[at]), int(kept[at + len(found) - 1]) + 1
            if data[max(0, start - 1) : start].isalnum() or data[stop : stop + 1].isalnum():
                continue
            if not found.isdigit() or not _NUMERIC.search(data[max(0, start - 2) : stop + 2]):
                return True
        return False

    def parts_in(self, text: str) -> Iterator[str]:
        """Words of the text that are the beginning or end of a value: 8 of its letters and digits, or more.

        Of a value of 32 hexadecimal digits, also with single separators in them.
        """
        low = _ONE_DASH.sub("-", text.lower())
        for found in _WORD.finditer(low):
            if self._parts_of(found[0]):
                yield text[found.start() : found.end()]
        for run in _PIECES.finditer(low):
            words = list(re.finditer(r"[0-9a-f]+", run[0])) if re.search("[a-f]", run[0]) else []
            for first, start in enumerate(words):
                joined = start[0]
                for stop in words[first + 1 :]:
                    joined += stop[0]
                    if len(joined) > _LONGEST_PART:
                        break
                    if any(_HEX.fullmatch(whole) for whole in self._parts_of(joined)):
                        yield text[run.start() + start.start() : run.start() + stop.end()]

    def _parts_of(self, word: str) -> list[str]:
        """The values that the word begins or ends."""
        wholes = (*self._beginnings.get(word[:_PART], ()), *self._ends.get(word[-_PART:], ()))
        return [one for one in wholes if len(one) > len(word) >= _PART and (one.startswith(word) or one.endswith(word))]

    def _has_word(self, text: str) -> bool:
        """Whether a short value stands in the text between characters that are no letters or digits."""
        for found in _START.finditer(text):
            start = found.start()
            for length in range(SHORTEST_VALUE, _SHORTEST_IN_BYTES):
                word, after = text[start : start + length], text[start + length : start + length + 1]
                if word in self._words and not after.isalnum() and not (word.isdigit() and text[:start].endswith(".")):
                    return True
        return False


def _parts(values: Iterable[str]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The values by their first and by their last 8 letters and digits; without those that many begin or end with."""
    wholes = {_NO_WORD.sub("", value.lower()) for value in values}
    beginnings: dict[str, set[str]] = {}
    ends: dict[str, set[str]] = {}
    for whole in wholes:
        if len(whole) > _PART and whole.isascii():
            beginnings.setdefault(whole[:_PART], set()).add(whole)
            ends.setdefault(whole[-_PART:], set()).add(whole)
    return tuple(  # type: ignore[return-value]
        {part: of for part, of in parts.items() if len(of) < _COMMON and any(map(str.isdigit, part))}
        for parts in (beginnings, ends)
    )


class _Patterns:
    """Many byte strings in lower case, each of 8 bytes or more, looked for at once."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        self._by_length: dict[int, set[bytes]] = {}
        for pattern in patterns:
            self._by_length.setdefault(len(pattern), set()).add(pattern)
        # By the first two bytes of a pattern, then the next two, and so on: few places are left to look at closely.
        self._pairs = np.zeros((_SHORTEST_IN_BYTES // 2, 1 << 16), dtype=bool)
        for pattern in (pattern for patterns in self._by_length.values() for pattern in patterns):
            for pair in range(len(self._pairs)):
                self._pairs[pair, int.from_bytes(pattern[2 * pair : 2 * pair + 2], "little")] = True

    def __bool__(self) -> bool:
        return bool(self._by_length)

    def find(self, data: Buffer) -> Iterator[tuple[int, bytes]]:
        """(offset, pattern) of every pattern in the bytes, in whatever case it stands there."""
        if not self:
            return
        longest = max(self._by_length)
        array = np.frombuffer(data, np.uint8)
        for start in range(0, len(array), _CHUNK):
            low = _LOWER[array[start : start + _CHUNK + longest]]
            if len(low) < _SHORTEST_IN_BYTES:
                break
            keys = low[:-1] | low[1:].astype(np.uint16) << 8
            candidates = np.flatnonzero(self._pairs[0][keys[: len(keys) - _SHORTEST_IN_BYTES + 2]])
            for pair in range(1, len(self._pairs)):
                candidates = candidates[self._pairs[pair][keys[candidates + 2 * pair]]]
            text = low.tobytes()
            for position in candidates.tolist():
                for length, patterns in self._by_length.items():
                    found = text[position : position + length]
                    if found in patterns:
                        yield int(start + position), found


def _inside_number(data: Buffer, position: int, found: bytes) -> bool:
    """Whether digits that were found are only some of the digits of a longer number."""
    if not found.isdigit():
        return False
    before = bytes(data[max(0, position - 1) : position])
    after = bytes(data[position + len(found) : position + len(found) + 1])
    return before.isdigit() or before == b"." or after.isdigit()


def spellings(value: str) -> Iterator[bytes]:
    """A value as bytes in the encodings that are common in files, and its unkeyed digests."""
    raw = value.encode()
    yield raw
    yield value.encode("utf-16-le")[:-1]  # without the last zero it is part of the big-endian form too
    yield raw.hex().encode()
    for offset in range(3):
        # The characters that depend on what stands before and after the value are left out.
        start, stop = -(-offset * 8 // 6), (offset + len(raw)) * 8 // 6
        encoded = base64.b64encode(b"\0" * offset + raw)[start:stop]
        yield encoded
        yield encoded.translate(bytes.maketrans(b"+/", b"-_"))
    for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256):
        yield digest(raw, usedforsecurity=False).hexdigest()[:16].encode()


def readings(text: str, depth: int = _DEPTH) -> Iterator[str]:
    """The text, and what it says once escapes, base64, hexadecimal and compression in it are undone."""
    yield text
    if depth == 0:
        return
    for other in dict.fromkeys([*_visible(text), unquote(text), html.unescape(text), _unescape(text)]):
        if other != text:
            yield from readings(other, depth - 1)
    for found in re.finditer(r"[A-Za-z0-9+/_-]{12,}={0,2}", text):
        run = found[0].rstrip("=").translate(str.maketrans("-_", "+/"))
        if run.isdigit():
            continue  # decimals of numbers: there are very many, and no text is written with digits alone
        for offset in range(4):
            yield from _decoded(run[offset:], depth)
        if re.fullmatch(r"[0-9A-Fa-f]+", run):
            with_pairs = run[: len(run) // 2 * 2]
            yield from _meant(bytes.fromhex(with_pairs), depth)


def _visible(text: str) -> Iterator[str]:
    """The text in plain letters without characters that nobody sees, and with those that are doubles of letters."""
    if text.isascii():
        yield text.replace("\0", "")
        return
    hidden = {ord(character) for character in set(text) if unicodedata.category(character) == "Cf"}
    for shown in (dict.fromkeys(hidden), dict.fromkeys(hidden) | {code: _TAGS[code] for code in hidden & set(_TAGS)}):
        yield unicodedata.normalize("NFKC", _SELECTORS.sub("", text.translate(shown)))


def _decoded(run: str, depth: int) -> Iterator[str]:
    try:
        decoded = base64.b64decode(run + "=" * (-len(run) % 4), validate=True)
    except (binascii.Error, ValueError):
        return
    yield from _meant(decoded, depth)


def _meant(data: bytes, depth: int) -> Iterator[str]:
    """What decoded bytes say: compressed ones are unpacked, others count when they are readable text."""
    for unpack in (gzip.decompress, zlib.decompress):
        try:
            data = unpack(data)
        except (OSError, EOFError, zlib.error):
            continue
        yield from readings(data.decode("utf-8", "replace"), depth - 1)
        return
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if len(text) >= 6 and text.isascii() and text.isprintable():
            yield from readings(text, depth - 1)


def _unescape(text: str) -> str:
    r"""JavaScript's and JSON's \\xNN, \\uNNNN, \\u{N...} and \\/ undone."""

    def character(found: re.Match[str]) -> str:
        number = int(next(group for group in found.groups() if group), 16)
        return chr(number) if number < 0x110000 else found[0]

    text = text.replace("\\/", "/")
    return re.sub(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\})", character, text)
