"""Reading a study's configuration from YAML and from flags, and telling it to people."""

__all__ = ["AnyStudy", "BELOW_ROOT", "describe_settings", "load_config", "load_data", "portable_config"]

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from mammosae_plugin.adapters.sources import HUB_SCHEMES
from mammosae_plugin.config.common import Data
from mammosae_plugin.config.embeddings import EmbeddingStudyConfig
from mammosae_plugin.config.maps import START_LIBRARIES, WEIGHTS_BY_NAME, StudyConfig
from mammosae_plugin.datasets.mapping import preset_names
from mammosae_plugin.datasets.registry import DataSettings, dataset_kinds
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, parse_yaml
from mammosae_plugin.training.settings import SAETraining
from mammosae_plugin.validation import Settings, sections_in

AnyStudy = StudyConfig | EmbeddingStudyConfig
KINDS: dict[str, type[StudyConfig] | type[EmbeddingStudyConfig]] = {
    "maps": StudyConfig,
    "embeddings": EmbeddingStudyConfig,
}


def load_config(
    file: str | Path | None, overrides: Sequence[str] = (), *, replace: Mapping[str, Any] | None = None
) -> AnyStudy:
    """Read a study's configuration, of the kind that its `kind` names: maps where it names none.

    Args:
        file: A YAML file, or None when the overrides say everything.
        overrides: Settings of the form `key.subkey=value` that replace those of the file. List entries are addressed by
            number, a name that holds dots stands in quotes: `models.0.train.epochs=3`, `sae.paths."blocks.3"=sae.pt`.
            The value is text, a number, true, false or null; in brackets or quotes it is YAML.
        replace: Top-level settings that replace all others, such as {"output": Path("out")}.

    Raises:
        InputError: The file is missing or not YAML, a key is unknown (with the nearest known one) or given twice, or a
            value does not fit.
    """
    raw: dict[str, Any] = {}
    if file is not None:
        path = local_path(file)
        raw = _read(path)
        _make_absolute(raw, path.resolve().parent)
    given: list[str] = []
    for override in overrides:
        _apply(raw, override, given)
    for name in replace or {}:
        if _covered(name, given):
            raise InputError(f"{name} is given by --set and by its own flag; give it once")
    raw |= replace or {}
    _make_absolute(raw, Path.cwd())
    where = str(file) if file is not None else "the flags"
    kind = raw.get("kind", "maps")
    if kind not in KINDS:
        raise InputError(f"{where}: kind must be one of {', '.join(KINDS)}, not {kind!r}")
    return KINDS[kind].checked(raw, where=where)


def load_data(
    file: str | Path | None, overrides: Sequence[str] = (), *, replace: Mapping[str, Any] | None = None
) -> DataSettings:
    """The section `data` of a study's configuration alone, for what needs images and no study.

    Args:
        file: As for `load_config`; other sections are not looked at.
        overrides: The same, `data.key=value`.
        replace: Settings of `data` that replace all others.

    Raises:
        InputError: As `load_config`, or nothing says what the data are.
    """
    raw: dict[str, Any] = {} if file is None else _read(path := local_path(file))
    if file is not None:
        _make_absolute(raw, path.resolve().parent)
    given: list[str] = []
    for override in overrides:
        _apply(raw, override, given)
    section = raw.get("data") or {}
    raw = {"data": {**section, **(replace or {})} if isinstance(section, dict) else section}
    if not raw["data"]:
        raise InputError("say what the images are: a study's YAML with a section `data`, or the folder (--data ROOT)")
    _make_absolute(raw, Path.cwd())
    return _OnlyData.checked(raw, where=str(file) if file is not None else "the flags").data


class _OnlyData(Settings):
    data: Data


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the study's YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file in UTF-8, let alone YAML; name the study's configuration") from error
    raw = parse_yaml(text, where=str(path))
    if raw is None:
        return {}
    _refuse_names_that_are_no_text(raw, str(path))
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold settings of the form `key: value`, not {_a(raw)}")
    return raw


def _a(value: Any) -> str:
    kinds = {"list": "a list", "str": "text", "int": "a number", "float": "a number", "bool": "true or false"}
    return kinds.get(type(value).__name__, f"a {type(value).__name__}")


def _refuse_names_that_are_no_text(value: Any, place: str, above: tuple[int, ...] = ()) -> None:
    """Refuse names that YAML reads as something else, such as yes, 1 and 2024-01-01, and what contains itself."""
    if id(value) in above:
        raise InputError(f"{place} contains itself; write it out")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                read_as = str(name).lower() if isinstance(name, bool) else "nothing" if name is None else str(name)
                raise InputError(f"{place}: YAML reads one of the names as {read_as}, not as text; write it in quotes")
            if not name:
                raise InputError(f"{place}: a name is empty; write what the value is of")
            _refuse_names_that_are_no_text(inner, f"{place}, {name}", (*above, id(value)))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_names_that_are_no_text(inner, f"{place}, {number}", (*above, id(value)))


_KEY_PART = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^."']+))\s*(\.|$)""")


def _apply(raw: Any, override: str, given: list[str]) -> None:
    """Replace one setting; `given` are the keys that were replaced before, to which this one is added."""
    key, separator, value = override.partition("=")
    parts = _key_parts(key.strip())
    if not separator or parts is None:
        raise InputError(f"--set {override!r} is not of the form key.subkey=value")
    key = ".".join(parts)
    if twice := _covered(key, given):
        raise InputError(f"--set gives {twice} twice, of which only one would count; give it once")
    given.append(key)
    node = raw
    *parents, leaf = parts
    try:
        for part in parents:
            if isinstance(node, list):
                node = node[_number(part)]
                continue
            if node.get(part) is None:  # not there, or an empty section
                node[part] = {}
            node = node[part]
        node[_number(leaf) if isinstance(node, list) else leaf] = _value(value.strip())
    except InputError as error:
        raise InputError(f"--set {key}: {error}") from error
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"--set {override!r}: there is no setting {key!r} to replace") from error


def _number(part: str) -> int:
    """The number of a list's entry; written in one way only, so that a setting given twice is seen."""
    if re.fullmatch(r"0|[1-9][0-9]*", part) is None:
        raise ValueError
    return int(part)


def _key_parts(key: str) -> list[str] | None:
    """The parts of a key; one that holds dots stands in quotes."""
    parts, end = [], 0
    while match := _KEY_PART.match(key, end):
        parts.append((match[1] or match[2] or match[3] or "").strip())
        end = match.end()
        if not match[4]:
            break
    return parts if parts and end == len(key) and all(parts) and not key.endswith(".") else None


def _covered(key: str, given: Sequence[str]) -> str | None:
    """The setting that would be replaced again: the same, or one in the section that replaces it."""
    return next((before for before in given if before == key or before.startswith(f"{key}.")), None)


def _value(text: str) -> Any:
    """A value of the command line: a list or section in YAML's brackets, text in quotes, a number, a word, or text.

    Elsewhere than in brackets and quotes a colon or hash means nothing.
    """
    if text[:1] in ("[", "{", '"', "'"):
        try:
            value = parse_yaml(text, where=f"the value {text!r}")
        except InputError as error:
            if "is not valid YAML" not in str(error):
                raise
            quoted = json.dumps(text, ensure_ascii=False)
            raise InputError(
                f"the value {text!r} is no list or section; put it in quotes if it is text: {quoted}"
            ) from error
        _refuse_names_that_are_no_text(value, f"the value {text!r}")
        return value
    if not _ONE_WORD.fullmatch(text):
        return text or None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:  # "..." ends a document
        return text
    return parse_yaml(text, where=f"the value {text!r}") if isinstance(node, yaml.ScalarNode) else text


_ONE_WORD = re.compile(r"[\w.+~-]+")  # what YAML may read as something else than text


BELOW_ROOT = frozenset(
    {"annotations", "table", "images", "image", "masks", "ct", "mri", "split_file", "index", "source"}
)
"""Settings of `data` that are files and folders relative to its root."""


def _make_absolute(raw: dict[str, Any], base: Path) -> None:
    """Make relative paths of the raw settings absolute; what is not of the expected form is left for validation."""

    def resolve(section: Any, key: Any) -> None:
        value = section.get(key) if isinstance(section, dict) else None
        if str(value).startswith("https://huggingface.co/"):
            raise InputError(f"{key} is the address {value}; name what lies on the Hub as hub://owner/name")
        if value == "":
            raise InputError(f"{key} is empty; give a path")
        if isinstance(value, str) and re.match(r"\$\w|\$\{|%\w+%", value):
            raise InputError(f"{key} is {value}, in which no variable is replaced; write the folder out, or ~ for home")
        if isinstance(value, (str, Path)) and not str(value).startswith(HUB_SCHEMES):
            section[key] = str(base / local_path(section[key]))

    def resolve_all(section: Any, key: Any) -> None:
        value = section.get(key) if isinstance(section, dict) else None
        if not isinstance(value, list):
            resolve(section, key)
            return
        entries = dict(enumerate(value))
        for number in entries:
            resolve(entries, number)
        section[key] = list(entries.values())

    def resolve_if_there(section: Any, key: Any) -> None:
        """What may be a name as well as a file."""
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, str) and (value.startswith(("~", ".")) or (base / value).exists()):
            resolve(section, key)

    def resolve_data(data: Any) -> None:
        resolve(data, "root")
        for name in BELOW_ROOT:
            if isinstance(data, dict) and str(data.get(name, "")).startswith("~"):  # else relative to root
                resolve(data, name)
        if isinstance(data, dict) and data.get("source") not in preset_names():
            resolve_if_there(data, "source")

    resolve(raw, "output")
    resolve_data(raw.get("data"))
    analysis = raw.get("analysis")
    if isinstance(analysis, dict):
        resolve_all(analysis.get("names"), "files")
        if isinstance(pairs := analysis.get("pairs"), dict):
            resolve(pairs, "file")
            resolve_data(pairs.get("data"))
    sae = raw.get("sae")
    resolve(sae, "path")
    paths = sae.get("paths") if isinstance(sae, dict) else None
    for layer in paths if isinstance(paths, dict) else {}:
        resolve(paths, layer)
    given = sae.get("files") if isinstance(sae, dict) else None
    for name in given if isinstance(given, dict) else {}:
        resolve_all(given, name)
    resolve(raw, "images")
    models = raw.get("models")
    for model in models if isinstance(models, list) else []:
        resolve(model, "encoder")
        resolve_all(model, "embeddings")
        resolve_if_there(model, "network")
        resolve_if_there(model, "weights")
        for name in START_LIBRARIES:
            start = model.get(name) if isinstance(model, dict) else None
            if isinstance(start, dict) and start.get("weights") not in WEIGHTS_BY_NAME:
                resolve(start, "weights")
            if name == "transformers":  # whose models are folders too
                resolve_if_there(*((start, "architecture") if isinstance(start, dict) else (model, name)))
        files = model.get("classifiers") if isinstance(model, dict) else None
        for concept in files if isinstance(files, dict) else {}:
            resolve(files, concept)


def portable_config(config: AnyStudy) -> Mapping[str, Any]:
    """The configuration as JSON values with file names in place of paths, fit to be shown and shared."""

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: strip(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [strip(item) for item in value]
        return value.name if isinstance(value, Path) else value

    shown: dict[str, Any] = strip(config.model_dump())
    pairs = shown["analysis"].get("pairs") or {}
    for data in (shown["data"] or {}, pairs.get("data") or {}):
        for name in BELOW_ROOT:
            if Path(place := data.get(name) or "").is_absolute():
                data[name] = Path(place).name
        if data.get("mapping"):
            data["mapping"] = _without_folders(data["mapping"])
    for model in shown["models"]:
        for name in ("network", "weights"):
            if Path(place := model.get(name) or "").is_absolute():
                model[name] = Path(place).name
        start = model.get("transformers") or {}
        if Path(place := start.get("architecture") or "").is_absolute():
            start["architecture"] = Path(place).name
    return shown


def _without_folders(value: Any) -> Any:
    """What a mapping says, with the names alone of files that it names by an absolute path."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return re.split(r"[/\\]", value)[-1]
    return value


def describe_settings() -> str:
    """Every setting of a study of each kind, one per line: its place, default and meaning."""
    lines: list[str] = []
    told: dict[type[BaseModel], str] = {}  # the sections that several kinds have alike, by the place of the first

    def walk(section: type[BaseModel], prefix: str, kind: str = "") -> None:
        for name, field in section.model_fields.items():
            alike = DataSettings.model_fields.get(name) if kind else None
            if alike is not None and (name == "kind" or alike.default == field.default):
                continue
            inner = next(iter(sections_in(field.annotation)), None)
            place = f"{prefix}{name}" + ("[]" if name == "models" else "")
            default = "required" if field.is_required() else f"default {field.default}"
            before = told.get(inner) if inner in (DataSettings, SAETraining) else None
            if inner is None or field.description or before:
                shown = default if inner is None or field.is_required() else "optional section"
                like = f"; settings as those of {before}" if before else ""
                lines.append(f"{place}: {field.description or ''} ({shown}{f'; kind {kind}' if kind else ''}{like})")
            if inner is None or before:
                continue
            told[inner] = place
            walk(inner, f"{place}.")
            if inner is DataSettings:
                for one in dataset_kinds().values():
                    walk(one.settings, f"{place}.", one.name)

    for number, (kind, section) in enumerate(KINDS.items()):
        lines += [*([""] if number else []), f"# A study of {kind}{'' if number else ', where no other kind is named'}"]
        walk(section, "")
    return "\n".join(lines)
