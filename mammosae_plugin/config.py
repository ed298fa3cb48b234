"""The configuration of a study: every setting, its meaning and its default, checked before anything runs."""

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mammosae_plugin.adapters.sources import HUB_SCHEMES
from mammosae_plugin.errors import InputError
from mammosae_plugin.training.classifier import ClassifierTraining
from mammosae_plugin.training.settings import SAETraining


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _path_or_hub(value: str | Path) -> str | Path:
    return value if str(value).startswith(HUB_SCHEMES) else Path(value)


# A local path, or "hub://owner/name[@revision]/path/in/repo", which stays a string.
Checkpoint = Annotated[str | Path, AfterValidator(_path_or_hub)]


class DataConfig(_Section):
    """The images and their annotations, in VinDr-Mammo's format."""

    root: Path = Field(description="Folder that holds images_png/<patient_id>/<image_id>.")
    annotations: str = Field(
        "vindr_detection_v1_folds.csv",
        description="The annotation CSV, relative to root or absolute; one row per finding.",
    )
    image_size: tuple[int, int] = Field((1520, 912), description="Height and width of the images in pixels.")
    unit: Literal["image", "finding_row"] = Field(
        "image", description="What a metric counts: images, or rows of the annotation file as the released code does."
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="The study stops if more than this share of the images is unreadable or constant."
    )
    phantom: bool = Field(
        False, description="True for generated images: only then may the report show images by default."
    )


class ModelConfig(_Section):
    """One model of the comparison: an encoder with one classifier per concept."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", description="How tables and figures call the model.")
    encoder: Checkpoint | None = Field(
        None,
        description="Mammo-CLIP pretraining checkpoint, or an encoder saved by this package. As everywhere, a path or "
        "hub://owner/name[@revision]/path/in/repo.",
    )
    classifiers: dict[str, Checkpoint] | None = Field(
        None, description="A downstream classifier file for each concept."
    )
    train: ClassifierTraining | None = Field(
        None, description="Train the classifiers here instead, starting from `encoder`."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if (self.classifiers is None) == (self.train is None):
            raise ValueError("give either `classifiers` (files) or `train` (settings)")
        if self.train is not None and self.encoder is None:
            raise ValueError("`train` needs an `encoder` to start from")
        return self


class SAETrainingSource(_Section):
    """The features that a new SAE is trained on."""

    model: str = Field(description="Name of the model whose features are used.")
    concept: str = Field(description="Which of its classifiers.")
    fraction: float = Field(0.25, gt=0, le=1, description="Share of each training image's positions to keep.")
    count: int | None = Field(None, gt=0, description="Or the number of positions to keep of each training image.")
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
        return self


class SAEConfig(_Section):
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
            raise ValueError("give one of `path`, `paths` (a file for each of `layers`) and `train`")
        return self


class AnalysisConfig(_Section):
    """What is computed from the latents tables."""

    score: Literal["centered_mean", "mean"] = Field(
        "centered_mean",
        description="Ranking: class mean minus overall mean (the published files), or the class mean (Eq. 2).",
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
    percentile: float = Field(95.0, gt=0, lt=100, description="Heatmap threshold of Table 2: a percentile of the map.")
    relative: float = Field(0.3, gt=0, lt=1, description="The other threshold: a fraction of the map's maximum.")
    iou_threshold: float = Field(0.25, gt=0, lt=1, description="Overlap from which a predicted box counts as found.")

    @field_validator("gradcam")
    @classmethod
    def _captum_is_there(cls, gradcam: bool) -> bool:
        if gradcam and importlib.util.find_spec("captum") is None:
            raise ValueError("Grad-CAM needs captum: pip install 'mammosae-plugin[gradcam]', or set it to false")
        return gradcam


class ReportConfig(_Section):
    """What the report says and shows."""

    title: str = Field("Concept latents of a mammography model", description="The report's heading.")
    include_images: bool = Field(
        False, description="Draw heatmaps over images of real patients. They stay on your disk."
    )
    n_images: int = Field(
        4, gt=0, description="Images per heatmap figure, drawn at random from those that contain the concept."
    )
    paper_setting: bool = Field(False, description="The run is the paper's setting: print its numbers beside ours.")


class StudyConfig(_Section):
    """A whole study. Relative paths count from the folder of the configuration file."""

    output: Path = Field(description="The one folder that everything is written to.")
    data: DataConfig
    concepts: tuple[str, ...] = Field(min_length=1, description="Findings (such as Mass), density or birads.")
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
        description="Seeds sampled positions, bootstraps, random groups, images drawn; training has its own.",
    )
    device: str = Field("cpu", description="Where networks run: cpu, cuda, cuda:1, ...")
    batch_size: int = Field(1, gt=0, description="Images per forward pass of extraction and encoding.")
    num_workers: int = Field(0, ge=0, description="Processes that read images beside the network.")

    @field_validator("device")
    @classmethod
    def _device_is_there(cls, device: str) -> str:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch's own for an unknown device, and for one without driver
            raise ValueError(f"{device!r} is not available on this machine; use cpu") from error
        return device

    @model_validator(mode="after")
    def _names_fit(self) -> "StudyConfig":
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"two models have the same name ({', '.join(names)})")
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
        overrides: Settings of the form `key.subkey=value` (the value is YAML) that replace those of the file. List
            entries are addressed by number: `models.0.train.epochs=3`.
        replace: Top-level settings that replace all others, such as {"output": Path("out")}.

    Raises:
        InputError: The file is missing or not YAML, a key is unknown (with the nearest known one), or a value does not
            fit.
    """
    raw: Any = {}
    base = Path.cwd()
    if file is not None:
        path = Path(file)
        base = path.resolve().parent
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise InputError(f"cannot read the configuration {path}: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(raw, dict):
            raise InputError(f"{path} must hold settings of the form `key: value`, not a {type(raw).__name__}")
        _make_absolute(raw, base)
    for override in overrides:
        _apply(raw, override)
    raw |= replace or {}
    _make_absolute(raw, Path.cwd())
    where = str(file) if file is not None else "the flags"
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error)}") from error


def _apply(raw: Any, override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise InputError(f"--set {override!r} is not of the form key.subkey=value")
    node = raw
    *parents, leaf = key.split(".")
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(leaf) if isinstance(node, list) else leaf] = yaml.safe_load(value)
    except (IndexError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"--set {override!r}: there is no setting {key!r} to replace") from error


def _make_absolute(raw: dict[str, Any], base: Path) -> None:
    """Make relative paths of the raw settings absolute; what is not of the expected form is left for validation."""

    def resolve(section: Any, key: Any) -> None:
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, (str, Path)) and not str(value).startswith(HUB_SCHEMES):
            section[key] = str(base / Path(section[key]).expanduser())

    resolve(raw, "output")
    resolve(raw.get("data"), "root")
    sae = raw.get("sae")
    resolve(sae, "path")
    paths = sae.get("paths") if isinstance(sae, dict) else None
    for layer in paths if isinstance(paths, dict) else {}:
        resolve(paths, layer)
    models = raw.get("models")
    for model in models if isinstance(models, list) else []:
        resolve(model, "encoder")
        files = model.get("classifiers") if isinstance(model, dict) else None
        for concept in files if isinstance(files, dict) else {}:
            resolve(files, concept)


def _explain(error: ValidationError) -> str:
    """All problems of a configuration in one line, each with its place."""
    problems = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _known_keys(StudyConfig), n=1)
            problems.append(f"unknown setting {place!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        elif item["type"] == "missing":
            problems.append(f"{place} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{place}: {message}" if place else message)
    return "; ".join(problems)


def _known_keys(model: type[BaseModel]) -> list[str]:
    keys: set[str] = set()
    for section in (
        model, DataConfig, ModelConfig, SAEConfig, SAETrainingSource, AnalysisConfig, ReportConfig, ClassifierTraining,
        SAETraining
    ):  # fmt: skip
        keys |= set(section.model_fields)
    return sorted(keys)


def portable_config(config: StudyConfig) -> Mapping[str, Any]:
    """The configuration as JSON values with file names in place of paths, fit to be shown and shared."""

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: strip(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [strip(item) for item in value]
        return value.name if isinstance(value, Path) else value

    shown: dict[str, Any] = strip(config.model_dump())
    if Path(shown["data"]["annotations"]).is_absolute():
        shown["data"]["annotations"] = Path(shown["data"]["annotations"]).name
    return shown


def describe_settings() -> str:
    """Every setting of a study, one per line: its place, default and meaning."""
    lines: list[str] = []

    def walk(section: type[BaseModel], prefix: str) -> None:
        for name, field in section.model_fields.items():
            inner = _section_of(field.annotation)
            place = f"{prefix}{name}" + ("[]" if name == "models" else "")
            default = "required" if field.is_required() else f"default {field.default}"
            if inner is None or field.description:
                shown = default if inner is None or field.is_required() else "optional section"
                lines.append(f"{place}: {field.description or ''} ({shown})")
            if inner is not None:
                walk(inner, f"{place}.")

    walk(StudyConfig, "")
    return "\n".join(lines)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)
