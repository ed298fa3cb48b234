"""A whole study from one configuration: the only module that knows all rooms.

Each step keeps what it makes under a name that holds a digest of everything the step depends on, so a step whose inputs
have not changed is never repeated, one whose inputs have changed never reads old results, and a killed study is simply
run again.

Under torchrun every process runs the same study. Extraction, SAE training and encoding are shared among them; what else
is made is made by the first process, for which the others wait where they need it.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from mammosae_plugin import distributed, study_results
from mammosae_plugin.activations import ActivationStore, extract_activations
from mammosae_plugin.activations.extraction import capture_several
from mammosae_plugin.activations.store import FORMAT_VERSION
from mammosae_plugin.adapters import HookedVisionModel, MammoClipClassifier, load_mammo_clip
from mammosae_plugin.adapters.fast_inference import compiled, fold_batch_norms
from mammosae_plugin.adapters.mammo_clip import CLASSIFIER_FILES
from mammosae_plugin.config import ModelConfig, StudyConfig
from mammosae_plugin.datasets import (
    PREPROCESSING,
    VinDrMammo,
    check_suspects,
    leave_out_bad,
    n_classes_of,
    read_quarantine,
    read_suspects,
    screen_images,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file, sha256_of_json, write_json, write_text
from mammosae_plugin.locks import only_run
from mammosae_plugin.own_files import remove_files
from mammosae_plugin.provenance import tensors_fingerprint
from mammosae_plugin.study_layer import (
    TEST,
    TRAINING,
    EncoderGroup,
    LayerStudy,
    ModelPair,
    digest,
    encoder_state,
    existing,
)
from mammosae_plugin.training import Augmentation, train_classifier
from mammosae_plugin.visualization.names import LAYERS_FOLDER, layer_folder

STEPS = ("classify", "extract", "train", "encode", "probe", "intervene", "localize", "report")
_EXTRACTION = {
    *("fraction", "count", "sample_from", "limit", "augmentation", "dtype", "autocast", "fold_batch_norms", "compile")
}  # what the rows depend on
_FOLDED = 1e-4  # relative error of float32 features up to which folding counts as rounding; it is about 1e-6
_OF_ALL_PROCESSES = ("classify", "extract", "train", "encode")


class Study:
    """The steps of a study, each computed when it is asked for and kept in the output folder.

    It holds what all layers share, data and classifiers; what is done at a layer is its `LayerStudy`.

    Args:
        config: The study's configuration.

    Raises:
        InputError: Anything that is wrong with the data, the checkpoints or the configuration, in one line.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.output = config.output
        self.work = self.output / "work"
        self.results_folder = self.output / "results"
        self.folding_errors: dict[str, float] = {}  # of features by hook name, where batch norms are folded
        self.compiling_errors: dict[str, float] = {}  # the same of torch.compile
        self.pairs = tuple(ModelPair(model.name, concept) for model in config.models for concept in config.concepts)
        for concept in config.concepts:
            n_classes_of(concept)

    # Data

    @cached_property
    def _all_images(self) -> VinDrMammo:
        data = self.config.data
        return VinDrMammo(
            data.root,
            annotations=data.annotations,
            image_size=data.image_size,
            boxes=data.boxes,
            box_tolerance=data.box_tolerance,
            unmendable_boxes=data.unmendable_boxes,
            max_missing_share=data.max_bad_share,
        )

    @cached_property
    def _file_stats(self) -> str:
        """Changes when an image file is replaced or the annotations change."""
        images = self._all_images
        stats = [
            (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None for path in images.image_paths
        ]
        return digest([images.fingerprint, stats])

    @cached_property
    def content(self) -> str:
        """A digest of the annotations and of every byte of every image; results are kept under it."""
        file = self.work / f"content-{self._file_stats}.json"
        with distributed.main_first():
            if not file.exists():
                images = self._all_images
                paths = tqdm(images.image_paths, desc="fingerprint", unit="image", dynamic_ncols=True)
                of_files = [sha256_of_file(path) if path.exists() else None for path in paths]
                digests = dict(zip(images.images["image_id"], of_files, strict=True))
                write_json(file, sha256_of_json([images.fingerprint, digests]))
            return str(read_json(file))

    def _list_file(self, name: str) -> Path:
        return self.work / f"{name}-{self._file_stats}.csv"

    @cached_property
    def dataset(self) -> VinDrMammo:
        """The images without those in quarantine, each read once to find out."""
        images, data = self._all_images, self.config.data
        quarantine, listed = self._list_file("quarantine"), self._list_file("suspects")
        with distributed.main_first():
            if len(images.box_changes):
                write_text(self._list_file("boxes"), images.box_changes.to_csv(index=False, lineterminator="\n"))
            if quarantine.exists() and listed.exists():
                kept = leave_out_bad(images, quarantine, max_bad_share=data.max_bad_share)
                suspects = read_suspects(listed)
                check_suspects(images, suspects, max_suspect_share=data.max_suspect_share, listed_in=listed)
                return kept
            return screen_images(
                images,
                quarantine,
                max_bad_share=data.max_bad_share,
                num_workers=self.config.num_workers,
                suspects_file=listed,
                max_suspect_share=data.max_suspect_share,
            )

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """image_id and reason of every image that was left out."""
        _ = self.dataset
        return read_quarantine(self._list_file("quarantine"))

    @cached_property
    def suspects(self) -> pd.DataFrame:
        """image_id, suspicion and detail of every image that does not seem to fit its annotations."""
        _ = self.dataset
        return read_suspects(self._list_file("suspects"))

    @property
    def boxes(self) -> dict[str, Any]:
        """Which boxes the study uses, and how many are not as in the annotation file."""
        images = self._all_images
        return {
            "boxes": self.config.data.boxes,
            "n_mended_boxes": images.n_mended_boxes,
            "n_inverted_boxes": images.n_inverted_boxes,
            "n_dropped_boxes": images.n_dropped_boxes,
            "n_clipped_boxes": images.n_clipped_boxes,
        }

    def split(self, split: str) -> VinDrMammo:
        """The images of one split, without those in quarantine."""
        part = self.dataset.select(split=split)
        if len(part) == 0:
            raise InputError(
                f"{self.config.data.root} has no image in the split {split!r}; the study needs training and test"
            )
        return part

    def _check_classes(self) -> None:
        for concept in self.config.concepts:
            for split in (TRAINING, TEST):
                labels = self.split(split).images[concept]
                missing = sorted(set(range(n_classes_of(concept))) - set(labels.unique()))
                if missing:
                    what = "no positive image" if missing == [1] else f"no image of class {missing[0]}"
                    raise InputError(
                        f"the {split} split has {what} for {concept}; remove it from `concepts` or add such images"
                    )

    @property
    def findings(self) -> list[str]:
        """The study's concepts that have boxes: those with two classes."""
        return [concept for concept in self.config.concepts if n_classes_of(concept) == 2]

    @cached_property
    def pairs_with_boxes(self) -> list[ModelPair]:
        """The pairs that can be localized: some test image has a box of the concept."""
        findings = self.split(TEST).findings
        with_boxes = [c for c in self.findings if findings.loc[findings[c] > 0, "xmin"].notna().any()]
        return [pair for pair in self.pairs if pair.concept in with_boxes]

    # Models and layers

    def model_config(self, name: str) -> ModelConfig:
        """The configuration of a model."""
        return next(model for model in self.config.models if model.name == name)

    @property
    def has_several_layers(self) -> bool:
        """Whether layers are compared."""
        return len(self.config.layers or ()) > 1

    @cached_property
    def layers(self) -> tuple[LayerStudy, ...]:
        """The study at each of its layers, in the configuration's order.

        Names, shapes and given SAEs are tried on the network that each model starts from, before anything is trained.

        Raises:
            InputError: A layer that a model does not have or that cannot be studied, or an SAE that does not fit it.
        """
        layers: tuple[LayerStudy, ...] = ()
        for model in self.config.models:
            first = model.classifiers[self.config.concepts[0]] if model.classifiers is not None else None
            file = model.encoder or first
            assert file is not None  # the configuration has been validated
            network = load_mammo_clip(_classifier(file))
            if not layers:
                hook_names = {
                    name: _hook_name(network, name) for name in self.config.layers or [_final_module(network)]
                }
                if len(set(hook_names.values())) < len(hook_names):
                    raise InputError(f"two of the layers {', '.join(hook_names)} are the same; name each once")
                final = _hook_name(network, _final_module(network))
                layers = tuple(
                    LayerStudy(self, name, hook_name, is_final=hook_name == final)
                    for name, hook_name in hook_names.items()
                )
            for layer in layers:
                layer.check(network, model.name)
        return layers

    @property
    def primary(self) -> LayerStudy:
        """The layer whose report lies at the top: the final map, or else the last layer."""
        return next((layer for layer in self.layers if layer.is_final), self.layers[-1])

    @cached_property
    def classifier_files(self) -> dict[ModelPair, tuple[Path, ...]]:
        """What `load_mammo_clip` is given for each pair; classifiers that the study trains are trained here."""
        _ = self.layers
        self._check_classes()
        with distributed.main_first():
            return {pair: self._classifier_file(pair) for pair in self.pairs}

    def _classifier_file(self, pair: ModelPair) -> tuple[Path, ...]:
        config = self.model_config(pair.model)
        if config.classifiers is not None:
            file = _classifier(config.classifiers[pair.concept])
            return (file,) if config.encoder is None else (_classifier(config.encoder), file)
        assert config.encoder is not None and config.train is not None  # the configuration has been validated
        images = self.split(TRAINING)
        encoder = load_mammo_clip(_classifier(config.encoder))
        parts = [
            config.train.model_dump(),
            tensors_fingerprint(encoder.state_dict()),
            pair.concept,
            self.content,
            images.images["image_id"].tolist(),
        ]
        path = self.work / "classifiers" / f"{pair.model}-{pair.concept}-{digest(parts)}.safetensors"
        if not path.exists():
            train_classifier(
                encoder,
                images,
                pair.concept,
                path,
                config.train,
                metadata={"preprocessing": PREPROCESSING},
                device=self.config.device,
                num_workers=self.config.num_workers,
            )
        return (path,)

    def classifier(self, pair: ModelPair) -> MammoClipClassifier:
        """The pair's classifier, in evaluation mode on the CPU.

        Raises:
            InputError: A file cannot be read, its number of outputs is not that of the concept's classes, or its
                metadata name another concept.
        """
        files = self.classifier_files[pair]
        model = load_mammo_clip(*files)
        classes = n_classes_of(pair.concept)
        if model.n_class != (1 if classes == 2 else classes):
            raise InputError(
                f"{files[-1].name} has {model.n_class} outputs, but {pair.concept} has {classes} classes"
                + ("; is it the pretraining checkpoint instead of a classifier?" if model.n_class == 0 else "")
            )
        said = _said_concepts(model)
        if said and said != [pair.concept]:
            raise InputError(
                f"{files[-1].name} is given as the classifier for {pair.concept} of model {pair.model}, but its own "
                f"metadata say that it is for {', '.join(said)}; give the file for {pair.concept}"
            )
        return model

    @cached_property
    def encoder_groups(self) -> list[EncoderGroup]:
        """The classifiers, those of a model with bit-identical encoders together."""
        heads: dict[tuple[str, str], dict[ModelPair, nn.Linear]] = {}
        for pair in self.pairs:
            model = self.classifier(pair)
            linear = model.classifier
            assert isinstance(linear, nn.Linear)  # `classifier` has checked the number of outputs
            heads.setdefault((pair.model, tensors_fingerprint(encoder_state(model))), {})[pair] = linear
        return [EncoderGroup(name, encoder, linears) for (name, encoder), linears in heads.items()]

    @cached_property
    def stores(self) -> dict[str, ActivationStore]:
        """The rows on which the SAEs are trained, by hook name, from one pass over the training images."""
        source = self.config.sae.train
        assert source is not None  # the layers ask only where the study trains its SAEs
        model = self.classifier(ModelPair(source.model, source.concept))
        images = self.split(TRAINING)
        parts = [
            FORMAT_VERSION,
            tensors_fingerprint(model.state_dict()),
            self.content,
            images.images["image_id"].tolist(),
            source.model_dump(include=_EXTRACTION),
            self.config.seed,
            self.config.batch_size,
        ]
        hook_names = [layer.hook_name for layer in self.layers]
        modules = [layer.module for layer in self.layers]
        hooked = (
            self._folded(model, images, hook_names) if source.fold_batch_norms else HookedVisionModel(model, modules)
        )
        hooked.to(distributed.place(self.config.device))
        with ExitStack() as stack:
            if source.compile:
                self.compiling_errors = stack.enter_context(compiled(hooked, images[0]["image"][None]))
            return extract_activations(
                hooked,
                images,
                self.work / "activations" / digest(parts),
                hook_names=hook_names,
                fraction=source.fraction if source.count is None else 1.0,
                count=source.count,
                sample_from=source.sample_from,
                limit=source.limit,
                augmentation=None if source.augmentation == "none" else Augmentation(source.augmentation),
                dtype=source.dtype,
                autocast=source.autocast,
                seed=self.config.seed,
                device=self.config.device,
                batch_size=self.config.batch_size,
                num_workers=self.config.num_workers,
            )

    def _folded(self, model: MammoClipClassifier, images: VinDrMammo, hook_names: list[str]) -> HookedVisionModel:
        """The model with folded batch norms, hooked, after its features have been compared with the model's own.

        Raises:
            InputError: A layer gives other features, by more than rounding.
        """
        modules = [name.rpartition(".")[0] for name in hook_names]
        example = images[0]["image"][None]
        folded, _ = fold_batch_norms(model, example)
        with HookedVisionModel(model, modules) as hooked, torch.inference_mode():
            expected = capture_several(hooked, hook_names, example)
        faster = HookedVisionModel(folded, modules)
        with torch.inference_mode():
            found = capture_several(faster, hook_names, example)
        for name in hook_names:
            error = float((found[name] - expected[name]).norm() / expected[name].norm())
            if error > _FOLDED:
                raise InputError(
                    f"with folded batch norms {name} gives other features (by {error:.1e}): the layer lies between a "
                    "convolution and its batch norm; set sae.train.fold_batch_norms to false"
                )
            self.folding_errors[name] = error
        source = dict(getattr(model, "source", {}))
        folded.source = source | {"folded_batch_norms": dict(self.folding_errors)}  # type: ignore[assignment]
        return faster

    # The steps

    def classify(self) -> None:
        """Train the classifiers that the configuration does not give as files; check those that it gives."""
        for pair in self.pairs:
            self.classifier(pair)

    def _at_each_layer(self, do: Callable[[LayerStudy], Any]) -> None:
        for layer in self.layers:
            with layer.errors_name_it():
                do(layer)

    def extract(self) -> None:
        """The rows on which the SAEs are trained; nothing where the configuration gives the SAEs as files."""
        self._at_each_layer(LayerStudy.extract)

    def train(self) -> None:
        """Train the SAEs, or read those that the configuration names."""
        self._at_each_layer(LayerStudy.train)

    def encode(self) -> None:
        """Make the latents tables."""
        self._at_each_layer(LayerStudy.encode)

    def probe(self) -> None:
        """Table 1, class means and rankings."""
        self._at_each_layer(LayerStudy.probe)

    def intervene(self) -> None:
        """Figure 2."""
        self._at_each_layer(LayerStudy.intervene)

    def localize(self) -> None:
        """Table 2."""
        self._at_each_layer(LayerStudy.localize)

    def report_folder(self, layer: LayerStudy) -> Path:
        """Where a layer's results and report go."""
        return self.results_folder / layer_folder(layer.name, self.primary.name)

    def report(self) -> Path:
        """Write every layer's figures, tables, results and report; returns the primary layer's report."""
        side_by_side = study_results.side_by_side(self) if self.has_several_layers else []
        folders = {layer: self.report_folder(layer) for layer in self.layers}
        # As of figures: a layer that is no longer studied must not leave a report behind.
        for folder in (self.results_folder / LAYERS_FOLDER).glob("*"):
            if folder.is_dir() and folder not in folders.values():
                remove_files(folder)

        def write(layer: LayerStudy) -> None:
            layer.write_report(_dated(study_results.results(layer, side_by_side), folders[layer]), folders[layer])

        self._at_each_layer(write)
        return self.results_folder / "report.html"

    # Running

    def run(self, until: str = "report") -> None:
        """Do the steps up to and including `until`; each shows its progress and keeps its result.

        The seconds that each step took are added up over runs in `timings.json` in the output folder. Of several
        processes the first alone does what comes after `encode`.

        Raises:
            InputError: Anything that is wrong with the input, or another run writes to the output folder.
        """
        with only_run(self.output):
            for step in STEPS[: STEPS.index(until) + 1]:
                self._run(step)

    def _run(self, step: str) -> None:
        file = self.output / "timings.json"
        start = time.perf_counter()
        if step in _OF_ALL_PROCESSES:
            getattr(self, step)()
        elif distributed.is_main():
            with distributed.alone():
                getattr(self, step)()
        if distributed.is_main():
            seconds = time.perf_counter() - start
            timings = _timings(file)
            write_json(file, {**timings, step: round(timings.get(step, 0.0) + seconds, 2)})

    def summary(self, step: str) -> str:
        """What a command prints when its step is done: the main figures and where to find the rest."""
        if step == "extract" and self.config.sae.train is None:
            return "extract: nothing to do, because the study's SAE is given as a file"
        if step == "localize" and not self.pairs_with_boxes:
            return "localize: nothing to do, because no concept of the study has a box in the test split"
        if step == "report":
            others = [layer for layer in self.layers if layer is not self.primary]
            lines = [*_aurocs(self.primary), f"report: {self.results_folder / 'report.html'}"]
            return "\n".join(
                lines + [f"report of {layer.name}: {self.report_folder(layer) / 'report.html'}" for layer in others]
            )
        frames = {"probe": "reconstruction", "intervene": "interventions", "localize": "localization"}
        if step in frames:
            lines = []
            for layer in self.layers:
                frame: pd.DataFrame = getattr(layer, frames[step])
                lines += [f"layer {layer.name}:"] if self.has_several_layers else []
                lines.append(frame.to_string(index=False, max_rows=40))
            return "\n".join([*lines, f"kept in {self.work / 'analyses'}"])
        if step == "extract":
            lines = [store.summary() for store in self.stores.values()]
            lines += [
                f"batch norms folded: the features of {name} differ by {error:.1e} (relative, of one image)"
                for name, error in self.folding_errors.items()
            ]
            lines += [
                f"compiled: the features of {name} differ by {error:.1e} (relative, of one image)"
                for name, error in self.compiling_errors.items()
            ]
            return "\n".join([*lines, f"extract: done; kept in {self.work / 'activations'}"])
        places = {"classify": "classifiers", "extract": "activations", "train": "sae", "encode": "latents"}
        return f"{step}: done; kept in {self.work / places[step]}"


def _aurocs(layer: LayerStudy) -> list[str]:
    without, with_sae = (
        layer.reconstruction.query("variant == @variant").to_dict("records") for variant in ("without_sae", "with_sae")
    )
    return [
        f"{row['model']}/{row['concept']}: AUROC {row['auroc']:.3f} without the SAE, {other['auroc']:.3f} with it "
        "(test split)"
        for row, other in zip(without, with_sae, strict=True)
    ]


def _dated(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The results with the date of the first run that had them: running again changes no byte."""
    file = folder / "results.json"
    before = read_json(file) if file.exists() else {}
    created = before.pop("created", None) if isinstance(before, dict) else None
    return {**results, "created": created if before == results else date.today().isoformat()}


def _timings(file: Path) -> dict[str, float]:
    found = read_json(file) if file.exists() else {}
    return found if isinstance(found, dict) else {}


def _classifier(checkpoint: str | Path) -> Path:
    """The file or folder of an encoder or a classifier."""
    return existing(checkpoint, CLASSIFIER_FILES).path


def _final_module(model: MammoClipClassifier) -> str:
    """The module path of the final map: the last of the release's layer names."""
    return list(model.layer_aliases.values())[-1]


def _hook_name(network: MammoClipClassifier, name: str) -> str:
    """The hook point that a layer's name stands for.

    Raises:
        InputError: The network has no such layer, or it cannot be hooked.
    """
    try:
        with HookedVisionModel(network, [name]) as hooked:
            return hooked.resolve_hook_name(name)
    except InputError as error:
        raise InputError(f"layer {name}: {error}") from error


def run_study(config: StudyConfig) -> Path:
    """Run a whole study and return the path of its report. A killed study is run again and continues.

    Of several processes of torchrun the first writes the report, when the others have returned.

    Raises:
        InputError: Anything that is wrong with the data, the checkpoints or the configuration, in one line.
    """
    distributed.start()
    study = Study(config)
    study.run()
    return study.results_folder / "report.html"


def _said_concepts(model: MammoClipClassifier) -> list[str]:
    """The concepts that a saved classifier's own metadata name; empty where they name none."""
    metadata = model.source.get("metadata") or {}
    said = metadata.get("concepts", metadata.get("concept"))
    return [said] if isinstance(said, str) else [str(concept) for concept in said or ()]
