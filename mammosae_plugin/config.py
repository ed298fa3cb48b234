"""The configuration of a study: every setting, its meaning and its default, checked before anything runs."""

__all__ = [
    "AnalysisConfig", "BELOW_ROOT", "Checkpoint", "Data", "describe_settings", "load_config", "load_data",
    "ModelConfig", "portable_config", "ReportConfig", "SAEConfig", "SAETrainingSource", "StudyConfig", "TimmStart",
    "WEIGHTS_OF_TIMM",
]  # fmt: skip

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from mammosae_plugin.adapters.recording import require_device
from mammosae_plugin.adapters.sources import HUB_SCHEMES
from mammosae_plugin.datasets.registry import DataSettings, LocalPath, dataset_kinds, of_its_kind
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, parse_yaml
from mammosae_plugin.training.augmentation import Kind
from mammosae_plugin.training.classifier_settings import ClassifierTraining
from mammosae_plugin.training.settings import SAETraining
from mammosae_plugin.validation import Settings, sections_in


def _path_or_hub(value: str | Path) -> str | Path:
    return value if str(value).startswith(HUB_SCHEMES) else local_path(value)


_LONGEST_NAME = 64
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def _file_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?<!\.)", name) is None:
        raise ValueError(
            f"must be letters, digits and _.-, the first no point or hyphen, the last no point, because files "
            f"bear it; not {name!r}"
        )
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"has {len(name)} letters, but files bear it; give at most {_LONGEST_NAME}")
    if name.split(".")[0].lower() in _RESERVED:
        raise ValueError(f"is {name!r}, which no file on Windows may be called; choose another name")
    return name


# A local path, or "hub://owner/name[@revision]/path/in/repo", which stays a string.
Checkpoint = Annotated[str | Path, AfterValidator(_path_or_hub)]
# The section of the kind of dataset that it names, with that kind's own settings.
Data = Annotated[SerializeAsAny[DataSettings], BeforeValidator(of_its_kind)]


def _weights(value: str | Path) -> str | Path:
    return value if value in WEIGHTS_OF_TIMM else _path_or_hub(value)


WEIGHTS_OF_TIMM = ("pretrained", "random")


def _is_empty(section: Settings, name: str) -> bool:
    return name in section.model_fields_set and getattr(section, name) is None


class TimmStart(Settings):
    """One of timm's architectures, which the study trains classifiers from."""

    architecture: str = Field(description="timm's name, such as resnet18 or vit_small_patch16_224.")
    weights: Annotated[str | Path, AfterValidator(_weights)] = Field(
        "pretrained",
        description="'pretrained': timm's own, from the Hub or its cache on this machine; 'random'; or a file of a "
        "state dict under timm's names.",
    )
    seed: int = Field(0, ge=0, description="Of random weights.")


class ModelConfig(Settings):
    """One model of the comparison: an encoder with one classifier per concept."""

    name: Annotated[str, AfterValidator(_file_name)] = Field(description="How tables and figures call the model.")
    encoder: Checkpoint | None = Field(
        None,
        description="Mammo-CLIP pretraining checkpoint, or an encoder of any kind saved by this package. As "
        "everywhere, a path or hub://owner/name[@revision]/path/in/repo.",
    )
    timm: TimmStart | None = Field(
        None,
        description="Or one of timm's architectures for `train` to start from: its name, or its name and weights.",
    )
    classifiers: dict[str, Checkpoint] | None = Field(
        None, description="A downstream classifier file for each concept."
    )
    train: ClassifierTraining | None = Field(
        None, description="Train the classifiers here instead, starting from `encoder` or `timm`."
    )

    @field_validator("timm", mode="before")
    @classmethod
    def _by_name_alone(cls, timm: Any) -> Any:
        return {"architecture": timm} if isinstance(timm, str) else timm

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if (self.classifiers is None) == (self.train is None):
            empty = "; `train:` is empty, so say which, such as {kind: finetuned}" if _is_empty(self, "train") else ""
            raise ValueError(f"give either `classifiers` (files) or `train` (settings){empty}")
        if self.train is not None and (self.encoder is None) == (self.timm is None):
            raise ValueError("`train` needs an `encoder` to start from, or `timm`, the name of an architecture")
        if self.classifiers is not None and self.timm is not None:
            raise ValueError(
                "`timm` is an architecture for `train` to start from; files of classifiers say what they are"
            )
        return self


class SAETrainingSource(Settings):
    """The features that a new SAE is trained on."""

    model: str = Field(description="Name of the model whose features are used.")
    concept: str = Field(description="Which of its classifiers.")
    fraction: float = Field(0.25, gt=0, le=1, description="Share of each training image's positions to keep.")
    count: int | None = Field(None, gt=0, description="Or how many positions to keep of each training image, at most.")
    sample_from: Literal["image", "batch"] = Field(
        "image",
        description="What the fraction is drawn from: 'image', each image by itself; 'batch', all positions of the "
        "images of one forward pass together, as the released code does.",
    )
    limit: int | None = Field(
        None, gt=0, description="Take the first so many training images only; the released code takes 4000."
    )
    augmentation: Kind = Field(
        "none",
        description="Change the images first: 'none', 'flips', 'affine' or 'mammo_clip', as a classifier's training "
        "does; the released code's rows are of images that were augmented as 'mammo_clip'.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32",
        description="Type of the stored rows; 16 bits take half the room (float16 only for values up to 65504).",
    )
    autocast: Literal["bfloat16", "float16"] | None = Field(
        None, description="Run the network under autocast to this type while the rows are extracted."
    )
    fold_batch_norms: bool = Field(
        False,
        description="Extract from a copy of the network with its batch norms folded into the convolutions before them, "
        "which saves a pass over every map; `extract` prints the difference of the features.",
    )
    compile: bool = Field(
        False,
        description="Run the network under torch.compile while the rows are extracted, which pays for many images; on "
        "the CPU it needs a C++ compiler. `extract` prints the difference of the features.",
    )
    training: SAETraining = Field(SAETraining(), description="How the SAE is trained; the defaults are the paper's.")

    @model_validator(mode="after")
    def _one_number(self) -> "SAETrainingSource":
        if self.count is not None and "fraction" in self.model_fields_set:
            raise ValueError("give the positions to keep per image as a fraction or as a count, not as both")
        if self.count is not None and self.sample_from == "batch":
            raise ValueError("`count` is of each image; with `sample_from: batch` give a `fraction`")
        return self


class SAEConfig(Settings):
    """The sparse autoencoder of each layer, which all models of the study share."""

    path: Checkpoint | None = Field(
        None,
        description="A Mammo-SAE file or a folder in SAELens's format, for one layer; on the Hub, "
        "hub://owner/name[@revision]/sae_id.",
    )
    paths: dict[str, Checkpoint] | None = Field(
        None, description="Such a file or folder for each of `layers`, by its name."
    )
    train: SAETrainingSource | None = Field(
        None, description="Train them here instead, one per layer with the same settings."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "SAEConfig":
        if sum(source is not None for source in (self.path, self.paths, self.train)) != 1:
            empty = "; `train:` is empty, so say on which model and concept" if _is_empty(self, "train") else ""
            raise ValueError(f"give one of `path`, `paths` (a file for each of `layers`) and `train`{empty}")
        return self


class AnalysisConfig(Settings):
    """What is computed from the latents tables."""

    score: Literal["centered_mean", "mean", "overall_mean"] = Field(
        "centered_mean",
        description="Ranking: class mean minus overall mean (the published files), the class mean (Eq. 2), or the mean "
        "over all images whatever their class (class-agnostic: every class has the same ranking).",
    )
    ks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="Latents per class in Figure 2, beside `top`; None means the released values."
    )
    error_term: bool = Field(
        True, description="Intervene a second time with the SAE's reconstruction error added back."
    )
    top: int = Field(10, gt=0, description="How many of the best latents are localized, drawn and ablated.")
    n_controls: int = Field(20, ge=20, description="Random groups beside every group of latents.")
    inner_controls: int = Field(
        3, ge=1, description="The same at inner layers, where every group costs a pass through the rest of the network."
    )
    gradcam: bool = Field(
        False, description="Localize with Grad-CAM too, beside latents and raw channels; needs the extra [gradcam]."
    )
    n_bootstrap: int = Field(1000, ge=100, description="Resamples of patients for intervals.")
    min_patients: int = Field(
        10, ge=2, description="Patients of every class, in the test split, from which on an interval is given."
    )
    percentile: float = Field(95.0, gt=0, lt=100, description="Heatmap threshold of Table 2: a percentile of the map.")
    relative: float = Field(0.3, gt=0, lt=1, description="The other threshold: a fraction of the map's maximum.")
    iou_threshold: float = Field(0.25, gt=0, lt=1, description="Overlap from which a predicted box counts as found.")
    box_score: Literal["maximum", "mean", "sum", "area"] = Field(
        "maximum",
        description="By what Table 2 ranks boxes: maximum, mean or sum of the heatmap over the region's pixels, or "
        "their number. The release does not say; the range over all four stands beside the value.",
    )
    contours: Literal["all", "outer"] = Field(
        "all", description="Regions that get a box: all, or, as in the release, those that no other region encloses."
    )

    @field_validator("percentile")
    @classmethod
    def _in_percent(cls, percentile: float) -> float:
        if percentile < 1:
            raise ValueError(f"percentile is in percent: did you mean {100 * percentile:g}?")
        return percentile

    @field_validator("gradcam")
    @classmethod
    def _captum_is_there(cls, gradcam: bool) -> bool:
        if gradcam and importlib.util.find_spec("captum") is None:
            raise ValueError("Grad-CAM needs captum: pip install 'mammosae-plugin[gradcam]', or set it to false")
        return gradcam


class ReportConfig(Settings):
    """What the report says and shows."""

    title: str = Field("Concept latents of an image classifier", description="The report's heading.")
    include_images: bool = Field(
        False, description="Draw heatmaps over images of real patients. They stay on your disk."
    )
    n_images: int = Field(
        4, gt=0, description="Images per heatmap figure, drawn at random from those that contain the concept."
    )
    paper_setting: bool = Field(False, description="The run is the paper's setting: print its numbers beside ours.")


class StudyConfig(Settings):
    """A whole study. Relative paths count from the folder of the configuration file."""

    output: LocalPath = Field(description="The one folder that everything is written to.")
    data: Data
    concepts: tuple[str, ...] = Field(min_length=1, description="Labels of the data, such as Mass, density or birads.")
    models: tuple[ModelConfig, ...] = Field(min_length=1, description="The models to compare.")
    layers: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Layers to study side by side, named as `mammosae layers` prints them, in the order in which they "
        "are shown; None means the final map alone. The final map, or else the last one, fills results/; each other "
        "one has its own report in results/layers/. For interventions an inner layer keeps its outputs for the test "
        "images in work/layer-outputs/, a folder that can be deleted when the study is done.",
    )
    sae: SAEConfig
    analysis: AnalysisConfig = AnalysisConfig()
    report: ReportConfig = ReportConfig()
    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="Seeds sampled positions, bootstraps, random groups, images drawn; training has its own.",
    )
    device: str = Field("cpu", description="Where networks run: cpu, cuda, cuda:1, ...")
    batch_size: int = Field(1, gt=0, description="Images per forward pass of extraction and encoding.")
    num_workers: int = Field(0, ge=0, description="Processes that read images beside the network.")

    @field_validator("device")
    @classmethod
    def _device_is_there(cls, device: str) -> str:
        require_device(device)
        return device

    @model_validator(mode="after")
    def _names_fit(self) -> "StudyConfig":
        names = [model.name for model in self.models]
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(f"two models have the same name, or differ in case alone ({', '.join(names)})")
        if len(set(self.concepts)) < len(self.concepts):
            raise ValueError(f"a concept is named twice ({', '.join(self.concepts)})")
        for model in self.models:
            missing = [c for c in self.concepts if model.classifiers is not None and c not in model.classifiers]
            if missing:
                raise ValueError(f"model {model.name} has no classifier for {', '.join(missing)}")
        source = self.sae.train
        if source is not None and (source.model not in names or source.concept not in self.concepts):
            raise ValueError(
                f"the SAE is to be trained on {source.model}/{source.concept}, which the study does not have"
            )
        if source is not None and source.training.normalize_activations == "unit_l2":
            raise ValueError(
                "sae.train.training.normalize_activations unit_l2 is for SAEs on one vector per image; a study adds "
                "latents up over the positions of a map, where such an SAE does not decode linearly"
            )
        self._layers_fit()
        return self

    def _layers_fit(self) -> None:
        names, sae = self.layers or (), self.sae
        if len(set(names)) < len(names):
            raise ValueError(f"a layer is named twice ({', '.join(names)})")
        if sae.paths is not None and set(sae.paths) != set(names):
            raise ValueError(
                f"sae.paths has an SAE for {', '.join(sae.paths) or 'no layer'}, but `layers` are "
                f"{', '.join(names) or 'not given'}; name the same layers in both"
            )
        if sae.path is not None and len(names) > 1:
            raise ValueError("sae.path is one SAE, but `layers` are several; give sae.paths, with a file for each")


def load_config(
    file: str | Path | None, overrides: Sequence[str] = (), *, replace: Mapping[str, Any] | None = None
) -> StudyConfig:
    """Read a study's configuration.

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
    return StudyConfig.checked(raw, where=str(file) if file is not None else "the flags")


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


BELOW_ROOT = frozenset({"annotations", "table", "images", "image", "masks", "ct", "mri", "split_file", "index"})
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

    data = raw.get("data")
    resolve(raw, "output")
    resolve(data, "root")
    for name in BELOW_ROOT:
        if isinstance(data, dict) and str(data.get(name, "")).startswith("~"):  # else relative to root
            resolve(data, name)
    sae = raw.get("sae")
    resolve(sae, "path")
    paths = sae.get("paths") if isinstance(sae, dict) else None
    for layer in paths if isinstance(paths, dict) else {}:
        resolve(paths, layer)
    models = raw.get("models")
    for model in models if isinstance(models, list) else []:
        resolve(model, "encoder")
        timm = model.get("timm") if isinstance(model, dict) else None
        if isinstance(timm, dict) and timm.get("weights") not in WEIGHTS_OF_TIMM:
            resolve(timm, "weights")
        files = model.get("classifiers") if isinstance(model, dict) else None
        for concept in files if isinstance(files, dict) else {}:
            resolve(files, concept)


def portable_config(config: StudyConfig) -> Mapping[str, Any]:
    """The configuration as JSON values with file names in place of paths, fit to be shown and shared."""

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: strip(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [strip(item) for item in value]
        return value.name if isinstance(value, Path) else value

    shown: dict[str, Any] = strip(config.model_dump())
    for name in BELOW_ROOT:
        if Path(place := shown["data"].get(name) or "").is_absolute():
            shown["data"][name] = Path(place).name
    return shown


def describe_settings() -> str:
    """Every setting of a study, one per line: its place, default and meaning."""
    lines: list[str] = []

    def walk(section: type[BaseModel], prefix: str, kind: str = "") -> None:
        for name, field in section.model_fields.items():
            if kind and name in DataSettings.model_fields:
                continue
            inner = next(iter(sections_in(field.annotation)), None)
            place = f"{prefix}{name}" + ("[]" if name == "models" else "")
            default = "required" if field.is_required() else f"default {field.default}"
            if inner is None or field.description:
                shown = default if inner is None or field.is_required() else "optional section"
                lines.append(f"{place}: {field.description or ''} ({shown}{f'; kind {kind}' if kind else ''})")
            if inner is not None:
                walk(inner, f"{place}.")
            if inner is DataSettings:
                for one in dataset_kinds().values():
                    walk(one.settings, f"{place}.", one.name)

    walk(StudyConfig, "")
    return "\n".join(lines)
