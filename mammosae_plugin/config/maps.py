"""The configuration of a study of maps: every setting, its meaning and its default, checked before anything runs."""

__all__ = [
    "AnalysisConfig", "ConfoundersConfig", "EvidenceConfig", "LesionSettings", "ModelConfig", "NetworkStart", "Outputs",
    "PreprocessingSettings", "ReportConfig", "SAEConfig", "SAETrainingSource", "START_LIBRARIES", "StudyConfig",
    "ViewSettings", "WEIGHTS_BY_NAME",
]  # fmt: skip

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mammosae_plugin.config.common import Checkpoint, CommonConfig, Data, FileName, is_empty, path_or_hub
from mammosae_plugin.config.explain import ExplainSettings
from mammosae_plugin.config.names import NameSettings
from mammosae_plugin.config.pairs import PairSettings
from mammosae_plugin.config.repair import RepairSettings
from mammosae_plugin.training.augmentation import Kind
from mammosae_plugin.training.classifier_settings import ClassifierTraining
from mammosae_plugin.training.settings import SAETraining
from mammosae_plugin.validation import Settings


def _weights(value: str | Path) -> str | Path:
    return value if value in WEIGHTS_BY_NAME else path_or_hub(value)


WEIGHTS_BY_NAME = ("pretrained", "random")
START_LIBRARIES = ("timm", "torchvision", "transformers", "open_clip", "function")
_Class = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]  # YAML's 4
Outputs = int | list[_Class | list[_Class] | None]


class NetworkStart(Settings):
    """An architecture of a library's, or somebody's function that makes a network."""

    architecture: str = Field(
        description="The library's name, such as resnet18 or vit_small_patch16_224, or of timm hf-hub:owner/name; of "
        "transformers a model's name on the Hub or its folder; of a function package.module:function, which is "
        "imported and called."
    )
    weights: Annotated[str | Path, AfterValidator(_weights)] = Field(
        "pretrained",
        description="'pretrained': the library's own, from the Hub or its cache on this machine, or of a function what "
        "it gives; 'random'; or a file of a state dict under the network's own names.",
    )
    prefix: str = Field(
        "",
        description="What stands in a file of weights before the names of the network's tensors, such as "
        "image_encoder.; the others are left out.",
    )
    seed: int = Field(0, ge=0, description="Of random weights.")
    arguments: dict[str, Any] = Field(
        {}, description="Of the function or the library's builder; of transformers settings in place of its config's."
    )

    @field_validator("architecture")
    @classmethod
    def _is_said(cls, architecture: str) -> str:
        if not architecture.strip():
            raise ValueError("is empty; give the name of an architecture")
        return architecture

    @field_validator("arguments")
    @classmethod
    def _plain(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(arguments, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"must be plain JSON: {error}") from error
        return arguments


class PreprocessingSettings(Settings):
    """How 8-bit pixels become a network's input, in place of what its library says of the weights."""

    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = Field(
        None, description="Height and width that every image is stretched to; by default images stay as they are."
    )
    mean: float | tuple[float, float, float] | None = Field(
        None, description="What is taken off after scaling, one number or one for each of red, green and blue."
    )
    std: float | tuple[float, float, float] | None = Field(None, description="What the rest is divided by.")
    scale: Literal["full_range", "own_range"] | None = Field(
        None,
        description="full_range: over 255; own_range: minus the image's minimum, over its new maximum, with one mean "
        "and std.",
    )
    channels: Literal[1, 3] | None = Field(
        None, description="3 (gray is repeated), or 1 for a network that takes gray images."
    )

    @property
    def given(self) -> dict[str, Any]:
        """What is said."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class ModelConfig(Settings):
    """One model of the comparison: an encoder with one classifier per concept."""

    name: FileName = Field(description="How tables and figures call the model.")
    encoder: Checkpoint | None = Field(
        None,
        description="Mammo-CLIP pretraining checkpoint, or an encoder of any kind saved by this package. As "
        "everywhere, a path or hub://owner/name[@revision]/path/in/repo.",
    )
    timm: NetworkStart | None = Field(
        None, description="Or one of timm's architectures: its name, or its name, weights and arguments."
    )
    torchvision: NetworkStart | None = Field(None, description="Or one of torchvision's classifiers, said likewise.")
    transformers: NetworkStart | None = Field(
        None, description="Or an image model of transformers: its name on the Hub or its folder, said likewise."
    )
    open_clip: NetworkStart | None = Field(
        None,
        description="Or an image tower of OpenCLIP: a name with one of its weights, such as ViT-B-32/openai, or "
        "hf-hub:owner/name, said likewise.",
    )
    function: NetworkStart | None = Field(
        None,
        description="Or package.module:function, which gives a torch.nn.Module. Beside `encoder` or `classifiers` it "
        "permits files of networks that this function makes.",
    )
    preprocessing: PreprocessingSettings | None = Field(
        None, description="How images become the network's input, where that is not as its file or library says."
    )
    classifiers: dict[str, Checkpoint] | None = Field(
        None, description="A downstream classifier file for each concept."
    )
    train: ClassifierTraining | None = Field(
        None,
        description="Train the classifiers here instead, starting from `encoder`, `timm`, `torchvision`, "
        "`transformers`, `open_clip` or `function`.",
    )
    outputs: dict[str, Outputs] | None = Field(
        None,
        description="What the outputs of a head that is trained already stand for, by concept: the number of the "
        "output, from 0, that says whether a finding is there; or, for every output in order, the class of the "
        "concept, a list of classes that it stands for, or null for none. Images of classes that no output stands for "
        "have no label for the concept. Without `classifiers` and `train` the network's own head is studied.",
    )

    @field_validator(*START_LIBRARIES, mode="before")
    @classmethod
    def _by_name_alone(cls, start: Any) -> Any:
        return {"architecture": start} if isinstance(start, str) else start

    @property
    def start(self) -> tuple[str, NetworkStart] | None:
        """The library and the architecture that the model starts from; None where it starts from files."""
        given = [(name, start) for name in START_LIBRARIES if (start := getattr(self, name)) is not None]
        is_permission = self.encoder is not None or self.classifiers is not None
        return None if is_permission or not given else given[0]

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        given = [name for name in START_LIBRARIES if getattr(self, name) is not None]
        if (
            self.classifiers is not None
            and self.train is not None
            or (self.classifiers is None and self.train is None and self.outputs is None)
        ):
            empty = "; `train:` is empty, so say which, such as {kind: finetuned}" if is_empty(self, "train") else ""
            raise ValueError(
                f"give either `classifiers` (files) or `train` (settings){empty}; or `outputs`, of a network whose own "
                "head is studied"
            )
        if self.train is not None and self.outputs is not None:
            raise ValueError("`outputs` are of a head that is trained already; with `train` leave them out")
        libraries = [
            name for name in given if name != "function" or (self.encoder is None and self.classifiers is None)
        ]
        if self.classifiers is not None and libraries:
            raise ValueError(
                f"`{libraries[0]}` is an architecture for `train` to start from; files of classifiers say what they are"
            )
        if self.classifiers is None and (self.encoder is not None) + len(libraries) != 1:
            raise ValueError(
                f"`{'train' if self.train is not None else 'outputs'}` needs an `encoder` to start from, or one of "
                f"{', '.join(START_LIBRARIES)}, the name of an architecture"
            )
        if self.classifiers is not None and self.preprocessing is not None:
            raise ValueError("`preprocessing` is in the files of classifiers; leave it out")
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
            empty = "; `train:` is empty, so say on which model and concept" if is_empty(self, "train") else ""
            raise ValueError(f"give one of `path`, `paths` (a file for each of `layers`) and `train`{empty}")
        return self


class LesionSettings(Settings):
    """Localization lesion by lesion, on all test images: FROC of the best latents and of what stands beside them."""

    peaks: int = Field(5, gt=0, le=255, description="Strongest local maxima kept of every map in every image.")
    top: int | None = Field(
        None, gt=0, description="How many of the best latents and raw channels are judged; None means analysis.top."
    )
    group: int | None = Field(
        None,
        gt=1,
        description="How many of the best latents are summed up, weighted by what each adds to the logit, and judged "
        "as one map (where the classifier reads the layer's mean); None means `top`.",
    )
    fppi: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.125, 0.25, 0.5, 1.0, 2.0, 4.0),
        min_length=1,
        max_length=16,
        description="False positives per image at which sensitivities are read.",
    )
    n_null: int = Field(999, ge=19, description="Draws of other patients' lesions for chance.")

    @field_validator("fppi")
    @classmethod
    def _rising(cls, fppi: tuple[float, ...]) -> tuple[float, ...]:
        if list(fppi) != sorted(set(fppi)):
            raise ValueError("fppi rises: name each number of false positives once, the smallest first")
        return fppi


class EvidenceConfig(Settings):
    """The table of every latent that fires, with what is known of it for each finding."""

    n_bootstrap: int = Field(200, ge=50, description="Resamples of patients for the intervals of every latent.")
    n_permutations: int = Field(
        200, ge=50, description="Permutations of covariates between patients, behind the p-values of associations."
    )
    masked: int = Field(
        10,
        ge=0,
        description="At inner layers, how many of the best latents are removed one by one to see what the logit loses, "
        "each at the cost of a pass through the rest of the network; at the final map it is exact for all.",
    )


class ConfoundersConfig(Settings):
    """Whether a latent stands for the finding, for its context or for a shortcut; performance by group."""

    covariates: tuple[str, ...] | dict[str, Literal["patient", "acquisition"]] | None = Field(
        None,
        description="Columns of the data that describe images, such as [age, density, view, machine], or by name "
        "whether each is of the `patient` or of the `acquisition`; None means all there are, of which age, density and "
        "implant are of the patient. An empty list looks at none.",
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="What corrected p-values are held against.")
    breast: bool = Field(
        True,
        description="Tell how much of a latent lies in the breast, which is the largest bright region of an image that "
        "shows a background; what lies outside is no lesion's.",
    )


class ViewSettings(Settings):
    """Whether latents say the same of the two views of a breast and of the two breasts; needs no label."""

    views: tuple[str, str] = Field(
        ("CC", "MLO"), description="The two views of a breast that are held together, as the column `view` has them."
    )
    statistic: Literal["max", "mean"] = Field("max", description="What of a latent counts, over positions.")
    n_draws: int = Field(1000, ge=99, description="Draws of other patients, for chance.")
    n_bootstrap: int = Field(200, ge=50, description="Resamples of patients for the intervals of every latent.")

    @field_validator("views")
    @classmethod
    def _differ(cls, views: tuple[str, str]) -> tuple[str, str]:
        if views[0] == views[1]:
            raise ValueError(f"views names {views[0]!r} twice: give two views of a breast, such as [CC, MLO]")
        return views


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
    inner_patients: int | None = Field(
        None,
        gt=1,
        description="At inner layers intervene on the images of so many test patients alone, drawn evenly over those "
        "with and without each concept; intervals are then those of so few. None means all.",
    )
    inner_hours: float = Field(
        24.0,
        gt=0,
        description="Refuse interventions at inner layers, of all layers and networks together, that would take more "
        "hours than this, as measured on one image of each, before any begins.",
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

    lesions: LesionSettings | None = Field(
        LesionSettings(),
        description="Which lesions maps find, at how many false positives on all images (FROC); null leaves it out, "
        "and the latents tables then keep no peaks.",
    )
    evidence: EvidenceConfig = Field(EvidenceConfig(), description="The table of every latent that fires.")
    confounders: ConfoundersConfig = Field(
        ConfoundersConfig(), description="What each latent stands for, and how groups of images are served."
    )
    repair: RepairSettings | None = Field(
        RepairSettings(),
        description="Classifiers without the latents that are called shortcuts, as files, and what that does to "
        "performance; null leaves it out. Where nothing is a shortcut it costs nothing.",
    )
    views: ViewSettings | None = Field(
        ViewSettings(),
        description="How far the views of a breast, and the two breasts, agree on every latent; null leaves it out, as "
        "do data without laterality and view.",
    )
    explain: ExplainSettings | None = Field(
        ExplainSettings(),
        description="Test images whose logit is taken apart in the report, latent by latent, where it is a sum over "
        "latents; null leaves it out.",
    )
    names: NameSettings | None = Field(
        NameSettings(), description="What latents are called, each name beside its score and chance; null: no names."
    )
    pairs: PairSettings | None = Field(
        None,
        description="What latents answer to, by pairs of images that differ in one thing: phantoms of `mammosae pairs "
        "--make`, or one's own.",
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


class StudyConfig(CommonConfig):
    """A study of the positions of maps. Relative paths count from the folder of the configuration file."""

    kind: Literal["maps"] = Field(
        "maps", description="maps: SAEs on the positions of feature maps; embeddings: on one vector per image."
    )
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
            outputs = model.outputs or {}
            unsaid = [
                c for c in self.concepts if model.classifiers is None and model.train is None and c not in outputs
            ]
            if unsaid:
                raise ValueError(f"model {model.name}: `outputs` do not say which stand for {', '.join(unsaid)}")
            if others := [name for name in outputs if name not in self.concepts]:
                raise ValueError(f"model {model.name} has outputs for {', '.join(others)}, no concept of the study")
        there = [f"{name}/{concept}" for name in names for concept in self.concepts]
        named = None if self.analysis.repair is None else self.analysis.repair.named
        if others := [one for one in named or () if one not in there]:
            raise ValueError(
                f"analysis.repair.latents names {others[0]}, no model/concept of the study; it has {', '.join(there)}"
            )
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
        pairs = self.analysis.pairs
        if pairs is not None and pairs.data.image_size != self.data.image_size:
            sizes = [f"{size[0]} x {size[1]}" for size in (pairs.data.image_size, self.data.image_size)]
            raise ValueError(
                f"analysis.pairs.data.image_size is {sizes[0]}, but the study's images are {sizes[1]} pixels; draw or "
                "prepare the pairs at that size, and say it there too"
            )
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
