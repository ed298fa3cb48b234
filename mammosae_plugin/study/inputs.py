"""What all layers of a study share: its data, its networks, and the rows that its SAEs are trained on."""

__all__ = ["EncoderGroup", "existing", "ModelPair", "StudyInputs"]

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mammosae_plugin import distributed
from mammosae_plugin.activations import ActivationStore, extract_activations
from mammosae_plugin.activations.extraction import capture_several
from mammosae_plugin.adapters import Classifier, HookedVisionModel, Preprocessing, save_classifier
from mammosae_plugin.adapters.fast_inference import compiled, fold_batch_norms
from mammosae_plugin.adapters.hook_names import hook_name_of, module_path
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.adapters.sources import CLASSIFIER_FILES, Source, find_source
from mammosae_plugin.analysis.lesion_truth import Masks
from mammosae_plugin.config import ModelConfig, StudyConfig
from mammosae_plugin.datasets import ImageTable, StudyDataset, Vocabulary, open_dataset
from mammosae_plugin.datasets.base import MammogramDataset
from mammosae_plugin.datasets.registry import dataset_kind
from mammosae_plugin.datasets.splits import sampled_patients
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.units import grouped_rows
from mammosae_plugin.study import plans
from mammosae_plugin.study.images import TEST, TRAINING, StudyImages
from mammosae_plugin.study.networks import Files, NetworkFacts, Networks, Origin, Start
from mammosae_plugin.study.outputs import class_groups, head_of_outputs
from mammosae_plugin.study.pair_images import PairImages
from mammosae_plugin.training import Augmentation, train_classifier

_FOLDED = 1e-4  # relative error of float32 features up to which folding counts as rounding; it is about 1e-6


def existing(checkpoint: str | Path, layouts: Sequence[Sequence[str]]) -> Source:
    """A checkpoint on this machine, downloaded first where it lies on the Hub, and where it came from.

    Args:
        checkpoint: A file, a folder or a place on the Hub.
        layouts: What makes up a folder of this kind; of several the first that is there.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    source = find_source(checkpoint, layouts=layouts)
    if not source.path.exists():
        raise InputError(f"{source.path} does not exist; check the configuration")
    return source


@dataclass(frozen=True)
class ModelPair:
    """One classifier of the comparison: a model of the configuration and the concept that it classifies."""

    model: str
    concept: str

    @property
    def key(self) -> str:
        """How the pair is named in files and results."""
        return f"{self.model}/{self.concept}"


@dataclass(frozen=True)
class EncoderGroup:
    """Classifiers of one model whose encoders are bit-identical: they share one pass over the images.

    Attributes:
        model: the model's name.
        encoder: fingerprint of the encoder's weights.
        preprocessing: how images become the encoder's input.
        heads: the linear head of each classifier.
    """

    model: str
    encoder: str
    preprocessing: Preprocessing
    heads: Mapping[ModelPair, nn.Linear]

    @property
    def pair(self) -> ModelPair:
        """The first of the classifiers, whose network stands for all."""
        return next(iter(self.heads))

    @property
    def named_heads(self) -> dict[str, nn.Linear]:
        """The heads by concept."""
        return {pair.concept: head for pair, head in self.heads.items()}


class StudyInputs(StudyImages):
    """Data and networks of a study, each read or trained when it is asked for and kept in the output folder.

    Args:
        config: The study's configuration.

    Raises:
        InputError: Anything that is wrong with the data, the checkpoints or the configuration, in one line.
    """

    def __init__(self, config: StudyConfig) -> None:
        super().__init__(config.data, config.output / "work", config.num_workers)
        self.config = config
        self.output = config.output
        self.results_folder = self.output / "results"
        self.folding_errors: dict[str, float] = {}  # of features by hook name, where batch norms are folded
        self.compiling_errors: dict[str, float] = {}  # the same of torch.compile
        self.pairs = tuple(ModelPair(model.name, concept) for model in config.models for concept in config.concepts)
        self.networks = Networks([model.function.architecture for model in config.models if model.function is not None])
        self._starts: dict[str, Origin] = {}

    # Data

    @cached_property
    def _opened(self) -> StudyDataset:
        """The images with the classes that the dataset has."""
        return open_dataset(self.data)

    @cached_property
    def all_images(self) -> StudyDataset:
        """All images, those in quarantine too, with the classes that the models' outputs tell apart."""
        if not dataset_kind(self.data.kind).of_files:
            raise InputError(
                f"data.kind is {self.data.kind}, of which `mammosae embed` makes embeddings; a study of feature "
                "maps screens PNG files: write the slices with write_png, and name them as kind csv"
            )
        images = self._opened
        groups = class_groups(self.config.models, images.vocabulary)
        if not groups:
            return images
        if not isinstance(images, MammogramDataset):
            raise InputError(f"the classes of {', '.join(groups)} cannot be grouped in data of kind {self.data.kind}")
        return images.with_classes(groups)

    @cached_property
    def concepts(self) -> Vocabulary:
        """The study's concepts, in the order of the configuration.

        Raises:
            InputError: The dataset is labelled with no such concept.
        """
        images = self.all_images
        where = f"the dataset {images.name}"
        return Vocabulary(images.vocabulary.named(concept, where) for concept in self.config.concepts)

    def _check_classes(self) -> None:
        for concept in self.config.concepts:
            for split in (TRAINING, TEST):
                images, unit, counted = self.split(split).images, self.data.evaluation_unit, "image"
                labels, known = images[concept].to_numpy(), self.concepts[concept]
                if not (labels >= 0).any():
                    raise InputError(
                        f"no image of the {split} split has a label of {concept}, which is missing in all "
                        f"{len(images)}; remove it from `concepts`, or add labels"
                    )
                missing = sorted(set(range(known.n_classes)) - set(labels.tolist()))
                if not missing and unit.has_several_images:
                    chosen, where = np.ones(len(images), dtype=np.bool_), f"the dataset {self.all_images.name}"
                    labels = grouped_rows(images, known, chosen=chosen, unit=unit, where=where).labels
                    missing, counted = sorted(set(range(known.n_classes)) - set(labels.tolist())), unit.name
                if missing:
                    what = f"no positive {counted}" if missing == [1] else f"no {counted} of class {missing[0]}"
                    raise InputError(
                        f"the {split} split has {what} for {concept}; remove it from `concepts` or add such images"
                    )
        if self.sampled_patients is not None:
            images = self.split(TEST).images
            drawn = images[images["patient_id"].astype(str).isin(self.sampled_patients)]
            if alike := [name for name in self.config.concepts if drawn.loc[drawn[name] >= 0, name].nunique() < 2]:
                raise InputError(
                    f"analysis.inner_patients draws {len(self.sampled_patients)} test patients, all of one class of "
                    f"{alike[0]}; draw more"
                )

    @cached_property
    def sampled_patients(self) -> list[str] | None:
        """The test patients on whose images networks are run without latents at inner layers; None: all."""
        n, images = self.config.analysis.inner_patients, self.split(TEST).images
        if n is None or n >= images["patient_id"].nunique():
            return None
        return sampled_patients(images, self.config.concepts, n, self.config.seed)

    @cached_property
    def pair_images(self) -> PairImages | None:
        """The counterfactual pairs that the study is given."""
        settings = self.config.analysis.pairs
        return None if settings is None else PairImages(settings, self.work, self.num_workers)

    @property
    def findings(self) -> list[str]:
        """The names of the study's concepts that are absent or present, and may have boxes."""
        return list(self.concepts.binary)

    @cached_property
    def pairs_with_boxes(self) -> list[ModelPair]:
        """The pairs that can be localized: some test image has a box of the concept."""
        findings, boxed = self.split(TEST).findings, self.all_images.concepts
        with_boxes = [c for c in self.findings if c in boxed and findings.loc[findings[c] > 0, "xmin"].notna().any()]
        return [pair for pair in self.pairs if pair.concept in with_boxes]

    def masks_of(self, concept: str) -> Masks | None:
        """Image id -> mask of a concept's lesions, where the data have masks of it and count images; else None."""
        dataset = self.dataset
        if not isinstance(dataset, ImageTable) or dataset.unit != "image" or not self.concepts[concept].masks:
            return None
        number_of = {image_id: number for number, image_id in enumerate(dataset.images["image_id"])}
        return lambda image_id: dataset.masks(number_of[image_id]).get(concept)

    # Models and layers

    def model_config(self, name: str) -> ModelConfig:
        """The configuration of a model."""
        return next(model for model in self.config.models if model.name == name)

    def start(self, name: str) -> Origin:
        """Where the network comes from that a model starts from: its encoder, or else its first classifier.

        Raises:
            InputError: The file is not there.
        """
        if name not in self._starts:
            model = self.model_config(name)
            preprocessing = json.dumps(model.preprocessing.given if model.preprocessing is not None else {})
            if model.start is not None:
                library, start = model.start
                self._starts[name] = Start(
                    library,
                    start.architecture,
                    start.weights,
                    self.config.data.image_size,
                    start.seed,
                    json.dumps(start.arguments, sort_keys=True),
                    preprocessing,
                    with_head=model.outputs is not None,
                    prefix=start.prefix,
                )
            elif model.encoder is not None and model.preprocessing is not None:
                self._starts[name] = Start("file", _classifier(model.encoder), preprocessing=preprocessing)
            else:
                first = model.classifiers[self.config.concepts[0]] if model.classifiers is not None else None
                file = model.encoder or first
                assert file is not None  # the configuration has been validated
                self._starts[name] = (_classifier(file),)
        return self._starts[name]

    @property
    def has_several_layers(self) -> bool:
        """Whether layers are compared."""
        return len(self.config.layers or ()) > 1

    @cached_property
    def hook_names(self) -> dict[str, str]:
        """The hook point of each of the study's layers, by the layer's name in the configuration.

        Raises:
            InputError: The first model has no such layer, it cannot be hooked, or two are the same.
        """
        start = self.start(self.config.models[0].name)
        final = self.final_hook
        names = self.config.layers or (final,)
        try:
            hooked = self.networks.hooked(start, names)
        except InputError:
            for name in names:  # which one is it?
                try:
                    self.networks.hooked(start, [name])
                except InputError as error:
                    raise InputError(f"layer {name}: {error}") from error
            raise
        hook_names = {name: hooked.resolve_hook_name(name) for name in names}
        if len(set(hook_names.values())) < len(hook_names):
            raise InputError(f"two of the layers {', '.join(hook_names)} are the same; name each once")
        return hook_names

    @property
    def modules(self) -> list[str]:
        """The module of each of the study's layers."""
        return [module_path(name) for name in self.hook_names.values()]

    @cached_property
    def final_hook(self) -> str:
        """The hook point of the final map."""
        start = self.start(self.config.models[0].name)
        return hook_name_of(self.networks.final_module(start))

    @cached_property
    def classifier_files(self) -> dict[ModelPair, tuple[Path, ...]]:
        """What `load_classifier` is given for each pair; classifiers that the study trains are trained here."""
        self._check_classes()
        if any(model.classifiers is None and model.train is not None for model in self.config.models):
            _ = self.dataset, self.content  # which all processes read together, and not the first alone
        with distributed.main_first():
            return {pair: self._classifier_file(pair) for pair in self.pairs}

    def _classifier_file(self, pair: ModelPair) -> tuple[Path, ...]:
        config = self.model_config(pair.model)
        if config.classifiers is not None:
            file = _classifier(config.classifiers[pair.concept])
            return (file,) if config.encoder is None else (_classifier(config.encoder), file)
        start = self.start(pair.model)
        if config.train is None:
            return self._own_head(pair.model, start)
        facts = self.networks.facts(start)
        images = self.split(TRAINING).with_preprocessing(facts.preprocessing)
        plan = plans.of_classifier(
            config.train, facts.weights, pair.concept, images, self.content, self.data.evaluation_unit
        )
        name = f"{pair.model}-{pair.concept}-{plans.digest(plan)}.safetensors"
        path = plans.keep(plan, self.work / "classifiers" / name)
        if not path.exists():
            trained = train_classifier(
                self.networks.plain(start),
                images,
                pair.concept,
                path,
                config.train,
                unit=str(self.data.evaluation_unit),
                metadata={"preprocessing": facts.preprocessing.describe()},
                device=self.config.device,
                num_workers=self.config.num_workers,
            )
            self.networks.note((path,), trained)
        return (path,)

    def _own_head(self, model: str, start: Origin) -> Files:
        """The file of a network whose own head is studied; of a library's network it is written here."""
        if not isinstance(start, Start):
            return start
        facts = self.networks.facts(start)
        plan = {"step": "classify", "network": facts.weights, "preprocessing": facts.preprocessing.describe()}
        path = plans.keep(plan, self.work / "classifiers" / f"{model}-{plans.digest(plan)}.safetensors")
        if not path.exists():
            save_classifier(self.networks.plain(start), path, metadata={})
        return (path,)

    def facts(self, pair: ModelPair) -> NetworkFacts:
        """What is known of the pair's classifier.

        Raises:
            InputError: A file cannot be read, its number of outputs is not that of the concept's classes, or its
                metadata name another concept.
        """
        files = self.classifier_files[pair]
        facts = self.networks.facts(files)
        concept, outputs = self.concepts[pair.concept], self.model_config(pair.model).outputs or {}
        if pair.concept in outputs:
            own = self._opened.vocabulary[pair.concept]
            head = head_of_outputs(facts.head, outputs[pair.concept], own, f"outputs of {pair.key}")
            return replace(facts, head=head)
        if facts.n_class != concept.n_outputs:
            raise InputError(
                f"{files[-1].name} has {facts.n_class} outputs, but {pair.concept} has {concept.n_classes} classes"
                + (
                    "; is it the pretraining checkpoint instead of a classifier?"
                    if facts.n_class == 0
                    else "; if its outputs stand for some of them, say for which (the model's `outputs`)"
                )
            )
        if facts.concepts and facts.concepts != (pair.concept,):
            raise InputError(
                f"{files[-1].name} is given as the classifier for {pair.concept} of model {pair.model}, but its own "
                f"metadata say that it is for {', '.join(facts.concepts)}; give the file for {pair.concept}"
            )
        return facts

    def classifier(self, pair: ModelPair) -> Classifier:
        """The pair's classifier without hooks, in evaluation mode on the CPU; another one takes its place in memory.

        Raises:
            InputError: As `facts`.
        """
        _ = self.facts(pair)
        return self.networks.plain(self.classifier_files[pair])

    def hooked(self, pair: ModelPair) -> HookedVisionModel:
        """The pair's classifier with a hook point at each of the study's layers, on the CPU; kept as `classifier`."""
        _ = self.facts(pair)
        return self.networks.hooked(self.classifier_files[pair], self.modules)

    @cached_property
    def encoder_groups(self) -> list[EncoderGroup]:
        """The classifiers, those of a model with bit-identical encoders together."""
        heads: dict[tuple[str, str, Preprocessing], dict[ModelPair, nn.Linear]] = {}
        for pair in self.pairs:
            facts = self.facts(pair)
            assert facts.head is not None  # it has outputs
            heads.setdefault((pair.model, facts.encoder, facts.preprocessing), {})[pair] = facts.head
        return [EncoderGroup(*shared, linears) for shared, linears in heads.items()]

    def name_of(self, group: EncoderGroup) -> str:
        """How findings call an encoder: as its model where that has no other, else model/concept."""
        alone = sum(other.model == group.model for other in self.encoder_groups) == 1
        return group.model if alone else f"{group.model}/{'+'.join(pair.concept for pair in group.heads)}"

    def group_of(self, pair: ModelPair) -> EncoderGroup:
        """The group that a classifier belongs to."""
        return next(group for group in self.encoder_groups if pair in group.heads)

    @cached_property
    def stores(self) -> dict[str, ActivationStore]:
        """The rows on which the SAEs are trained, by hook name, from one pass over the training images."""
        source = self.config.sae.train
        assert source is not None  # the layers ask only where the study trains its SAEs
        pair = ModelPair(source.model, source.concept)
        facts = self.facts(pair)
        images = self.split(TRAINING).with_preprocessing(facts.preprocessing)
        plan = plans.of_rows(self.config, facts.weights, images, self.content)
        folder = plans.keep(plan, self.work / "activations" / plans.digest(plan))
        hook_names = list(self.hook_names.values())
        hooked = self._folded(pair, images, hook_names) if source.fold_batch_norms else self.hooked(pair)
        with ExitStack() as stack:
            stack.enter_context(evaluation(hooked, device=distributed.place(self.config.device)))
            if source.compile:
                self.compiling_errors = stack.enter_context(compiled(hooked, images[0]["image"][None]))
            return extract_activations(
                hooked,
                images,
                folder,
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

    def _folded(self, pair: ModelPair, images: StudyDataset, hook_names: list[str]) -> HookedVisionModel:
        """A copy of the model with folded batch norms, hooked, after its features have been compared with the model's.

        Raises:
            InputError: A layer gives other features, by more than rounding.
        """
        example = images[0]["image"][None]
        model = self.classifier(pair)
        folded, _ = fold_batch_norms(model.network, example)
        with torch.inference_mode():
            expected = capture_several(self.hooked(pair), hook_names, example)
        faster = HookedVisionModel(folded, self.modules)
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
        folded.source = model.source | {"folded_batch_norms": dict(self.folding_errors)}  # type: ignore[assignment]
        return faster


def _classifier(checkpoint: str | Path) -> Path:
    """The file or folder of an encoder or a classifier."""
    return existing(checkpoint, (CLASSIFIER_FILES,)).path
