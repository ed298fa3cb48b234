"""Classifiers on an image encoder: the linear head alone, or the whole network ("finetuned")."""

__all__ = ["Integers", "LOG_EVERY", "train_classifier"]

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from mammosae_plugin.adapters import Classifier, load_classifier, save_classifier
from mammosae_plugin.adapters.checkpoints import refuse_buffers_not_finite
from mammosae_plugin.adapters.classifier import head_of
from mammosae_plugin.datasets import Item, StudyDataset, collate
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import differences, local_path, sha256_of_json, write_text
from mammosae_plugin.locks import only_run
from mammosae_plugin.measures.statistics import NETWORK_ERROR, ranking_metrics, settled
from mammosae_plugin.measures.units import EvaluationRows, EvaluationUnit, grouped_rows
from mammosae_plugin.progress import progress_bar
from mammosae_plugin.provenance import seed_everything, torch_generator
from mammosae_plugin.shards import remove_shards, run_shards, shard_paths
from mammosae_plugin.training.augmentation import Augmentation, EpochImages
from mammosae_plugin.training.checkpoints import read_state, write_state
from mammosae_plugin.training.classifier_settings import ClassifierTraining
from mammosae_plugin.training.held_out import hold_out_patients

logger = logging.getLogger(__name__)

LOG_EVERY = 10
"""Steps between two rows of the training log."""

Integers = npt.NDArray[np.int64]
AnyClassifier = TypeVar("AnyClassifier", bound=Classifier)


def train_classifier(
    encoder: AnyClassifier,
    dataset: StudyDataset,
    concept: str | Sequence[str],
    path: str | Path,
    config: ClassifierTraining | None = None,
    *,
    unit: str = "image",
    metadata: Mapping[str, Any] | None = None,
    device: str = "cpu",
    num_workers: int = 0,
) -> AnyClassifier:
    """Train a classifier for one concept, or for several findings at once, and save it.

    Classes are weighed by their rarity: positives of a finding by negatives / positives. A killed run is made again and
    continues from its last state; on the CPU it ends with the bits of an undisturbed run. `<name>.log.jsonl` beside the
    file has a row for every 10 steps and for every epoch.

    Args:
        encoder: Where the weights start: a Mammo-CLIP network, one of timm's, or any other `adapters.Classifier`. It is
            not changed.
        dataset: Training images, of which those with all labels are used, prepared as the encoder wants them; with
            `validation_share`, part of its patients are held out.
        concept: A concept of the dataset: a finding (one logit), one of more classes such as "density" (a logit per
            class), or several findings (a logit each).
        path: Where the classifier goes, a `.safetensors` file that `load_classifier` reads. Its metadata say how it was
            trained and, under "outcome", the patients and images on each side, the epoch chosen and its validation
            AUROC (a mean over several findings, or over classes against the rest).
        config: How to train.
        unit: What the validation AUROC, which chooses the epoch, counts: "breast", "exam" or "patient" put their images
            with a label together (`measures.units`), "image" the dataset's items.
        metadata: What else the file should say.
        device: Where training runs.
        num_workers: Processes that read and augment images beside the network; they change no result.

    Raises:
        InputError: An unknown concept, a class without an image, too few patients to hold some out, a loss that is not
            finite, or a file that holds another classifier or that another run writes.
    """
    config, path = config or ClassifierTraining(), local_path(path)
    concepts = [concept] if isinstance(concept, str) else list(concept)
    if dataset.preprocessing != encoder.preprocessing:
        dataset = dataset.with_preprocessing(encoder.preprocessing)
    labels = _labels(dataset, concepts)
    sides = _sides(dataset, labels, concepts, config)
    units = _units(dataset, sides, concepts, EvaluationUnit.named(unit))
    plan = {
        "concepts": concepts,
        "config": config.model_dump(),
        "encoder": encoder.fingerprint(),
        "dataset": dataset.fingerprint,
        "images": sha256_of_json(dataset.images["image_id"].tolist()),
        **({} if units is None else {"unit": unit}),
        **(metadata or {}),
    }
    if not path.exists():
        with only_run(file=path):
            if not path.exists():  # another run may have ended just now
                _train(encoder, _Task(dataset, labels, sides, units, config, path, plan, device, num_workers))
    said = encoder.description()
    functions = (said["architecture"],) if said.get("library") == "function" else ()
    model = load_classifier(path, device=device, functions=functions)
    found = {name: value for name, value in model.source["metadata"].items() if name != "outcome"}
    if differing := differences(found, plan):
        raise InputError(
            f"{path} holds a classifier of other settings ({differing}); name another file or delete this one"
        )
    remove_shards(_features_folder(path))
    _state_file(path).unlink(missing_ok=True)
    return cast(AnyClassifier, model)  # of the encoder's class, whose plan is in the file


def _train(encoder: Classifier, task: "_Task") -> None:
    """Train the classifier and write its file."""
    seed_everything(task.config.seed)
    model = encoder.with_head(_n_outputs(task.dataset, task.plan["concepts"]))
    refuse_buffers_not_finite(model.network)
    model.network.to(task.device)
    chosen = _fit_head(model, task) if task.config.kind == "pretrained" else _Run(model, task).train()
    save_classifier(model, task.path, metadata={**task.plan, "outcome": {**_sizes(task.dataset, task.sides), **chosen}})


def _head(model: Classifier) -> nn.Linear:
    head = head_of(model)
    assert head is not None  # it was put there
    return head


@dataclass(frozen=True)
class _Sides:
    """The items to train on and those of the patients held out, both in the dataset's order."""

    training: Integers
    validation: Integers


@dataclass(frozen=True)
class _Task:
    """What is trained on what, and where it goes."""

    dataset: StudyDataset
    labels: Integers
    """(n, m) classes of m concepts."""
    sides: _Sides
    units: list[EvaluationRows] | None
    """Of each concept what the images of the patients held out are put together to; None where each counts alone."""
    config: ClassifierTraining
    path: Path
    plan: Mapping[str, Any]
    device: str
    num_workers: int

    @property
    def targets(self) -> torch.Tensor:
        """What a loss compares with: (n, m) float for m findings, (n,) int64 for one concept of more classes."""
        labels = torch.tensor(self.labels)
        is_finding = self.dataset.vocabulary[self.plan["concepts"][0]].is_binary
        return labels.float() if is_finding else labels[:, 0]

    def images(self, items: Sequence[int]) -> Iterator[torch.Tensor]:
        """Batches of images (b, 3, H, W) on the device, as they are."""
        part = Subset(cast(Dataset[Item], self.dataset), items)
        loader = DataLoader(part, self.config.batch_size, num_workers=self.num_workers, collate_fn=collate)
        for batch in loader:
            yield batch["image"].to(self.device)

    @property
    def scales_gradients(self) -> bool:
        """Whether the network runs in float16, whose small gradients would vanish unscaled."""
        return self.config.autocast == "float16" and torch.device(self.device).type == "cuda"

    def autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.scales_gradients else torch.bfloat16
        enabled = self.config.autocast == "bfloat16" or self.scales_gradients
        return torch.autocast(torch.device(self.device).type, dtype, enabled=enabled)


def _n_outputs(dataset: StudyDataset, concepts: Sequence[str]) -> int:
    return sum(dataset.vocabulary[concept].n_outputs for concept in concepts)


def _labels(dataset: StudyDataset, concepts: Sequence[str]) -> Integers:
    """The class of every item for every concept, (n, m); -1 in all of a row where one is missing.

    Raises:
        InputError: Concepts that are unknown or do not go together, or a class without an item.
    """
    if not concepts:
        raise InputError("no concept is given; name a finding, several findings, or another concept of the dataset")
    table = dataset.images if dataset.unit == "image" else dataset.findings
    vocabulary = [dataset.vocabulary.named(concept, f"the dataset {dataset.name}") for concept in concepts]
    known = (table[list(concepts)].fillna(-1) >= 0).all(axis=1).to_numpy()
    if not known.any():
        raise InputError(
            f"no training image has a label of {' and of '.join(concepts)}: all {len(table)} lack one; a classifier "
            "cannot learn from these"
        )
    for concept, found in zip(concepts, vocabulary, strict=True):
        if not found.is_binary and len(concepts) > 1:
            raise InputError(f"{concept} has {found.n_classes} classes and needs a classifier of its own")
        counts = np.bincount(table[concept].to_numpy()[known], minlength=found.n_classes)
        if (counts == 0).any():
            raise InputError(
                f"no training image has class {int(np.flatnonzero(counts == 0)[0])} of {concept}; "
                "a classifier cannot learn it"
            )
    labels = table[list(concepts)].fillna(-1).to_numpy(dtype=np.int64)
    return np.where(known[:, None], labels, -1)


def _item_patients(dataset: StudyDataset) -> list[str]:
    patients = dataset.images["patient_id"]
    if dataset.unit == "finding_row":
        patients = dataset.findings["image_id"].map(dataset.images.set_index("image_id")["patient_id"])
    return [str(patient) for patient in patients]


def _sides(dataset: StudyDataset, labels: Integers, concepts: Sequence[str], config: ClassifierTraining) -> _Sides:
    """Hold patients out by seed, so that both sides show every class where that is possible.

    Raises:
        InputError: A finding cannot be judged on the patients held out, or a graded concept shows one class there.
    """
    known = labels[:, 0] >= 0
    if config.validation_share == 0:
        return _Sides(np.flatnonzero(known), np.arange(0))
    of_class = [
        labels[:, [m]] == np.arange(dataset.vocabulary[concept].n_classes) for m, concept in enumerate(concepts)
    ]
    held = hold_out_patients(
        _item_patients(dataset), np.concatenate(of_class, axis=1), config.validation_share, config.seed
    )
    for concept, shows in zip(concepts, of_class, strict=True):
        if (missing := np.flatnonzero(~shows[held].any(axis=0))).size:
            message = f"no image of the patients held out has class {missing[0]} of {concept}"
            if shows.shape[1] - len(missing) < 2:
                raise InputError(
                    f"{message}; it takes two patients of each class to hold one out: set validation_share to 0"
                )
            logger.warning("%s; the validation AUROC is a mean over the other classes", message)
    return _Sides(np.flatnonzero(~held & known), np.flatnonzero(held & known))


def _sizes(dataset: StudyDataset, sides: _Sides) -> dict[str, Any]:
    """Patients and images on each side; no identifiers."""
    patients = np.array(_item_patients(dataset))
    unlabelled = len(dataset) - len(sides.training) - len(sides.validation)
    items = {"training": sides.training, "validation": sides.validation}
    return {
        "n_patients": {side: len(np.unique(patients[rows])) for side, rows in items.items()},
        "n_images": {side: len(rows) for side, rows in items.items()},
        **({"n_unlabelled": unlabelled} if unlabelled else {}),
    }


def _units(
    dataset: StudyDataset, sides: _Sides, concepts: Sequence[str], unit: EvaluationUnit
) -> list[EvaluationRows] | None:
    """Of each concept the units that the images of the patients held out make; None where each image counts alone.

    Raises:
        InputError: It is not known what belongs together, or the dataset's items are rows of findings.
    """
    if not unit.has_several_images or not len(sides.validation):
        return None
    if dataset.unit != "image":
        raise InputError(f"the dataset counts rows of its annotation file; open it with unit='image' to count {unit}")
    images, everywhere = dataset.images.iloc[sides.validation], np.ones(len(sides.validation), dtype=np.bool_)
    where = f"the dataset {dataset.name}"
    return [
        grouped_rows(images, dataset.vocabulary[concept], chosen=everywhere, unit=unit, where=where)
        for concept in concepts
    ]


def _auroc(logits: npt.NDArray[np.float64], labels: Integers, units: Sequence[EvaluationRows] | None = None) -> float:
    """AUROC: of a finding, the mean over several, or the mean over the classes of one concept against the rest."""
    error = NETWORK_ERROR * float(np.abs(logits).max(initial=0))
    logits = logits if units is not None else settled(logits, error)
    parts = [logits[:, [m]] for m in range(labels.shape[1])] if labels.shape[1] == logits.shape[1] else [logits]
    found = []
    for m, part in enumerate(parts):
        if units is None:
            found.append(ranking_metrics(part, labels[:, m]).auroc)
        else:
            found.append(ranking_metrics(settled(units[m].logits(part), error), units[m].labels).auroc)
    return float(np.mean(found))


def _features_folder(path: Path) -> Path:
    return path.with_name(f"{path.stem}.unfinished")


def _fit_head(model: Classifier, task: _Task) -> dict[str, Any]:
    """Logistic regression on standardised pooled features, folded into the linear layer.

    Returns:
        The validation AUROC; there is no epoch to choose.
    """
    model.network.eval()
    config = task.config

    @torch.inference_mode()
    def pooled_features(items: range) -> dict[str, torch.Tensor]:
        pooled = []
        for images in task.images(items):
            with task.autocast():
                pooled.append(model.features(images).double().cpu())
        return {"pooled": torch.cat(pooled)}

    # Whole batches: what a network gives for an image can differ in the last bits with the images beside it.
    shard_size = config.batch_size * math.ceil(256 / config.batch_size)
    folder = _features_folder(task.path)
    plan = {"plan": sha256_of_json(task.plan)}
    run_shards(folder, plan, len(task.labels), shard_size, pooled_features, description="features")
    features = torch.cat([read_state(shard)[0]["pooled"] for shard in shard_paths(folder)]).numpy()

    training, validation = task.sides.training, task.sides.validation
    scaler = StandardScaler()
    standardised = scaler.fit_transform(features[training])
    weights, biases = [], []
    for column in task.labels[training].T:
        fitted = LogisticRegression(
            C=1 / config.l2, class_weight="balanced" if config.class_weights == "balanced" else None, max_iter=2000
        ).fit(standardised, column)
        weight = fitted.coef_ / scaler.scale_
        weights.append(weight)
        biases.append(fitted.intercept_ - weight @ scaler.mean_)
    weight, bias = np.concatenate(weights), np.concatenate(biases)
    _head(model).load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    if not len(validation):
        return {"validation_auroc": None, "epoch": None}
    auroc = _auroc(features[validation] @ weight.T + bias, task.labels[validation], task.units)
    return {"validation_auroc": auroc, "epoch": None}


def _state_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}.unfinished.safetensors")


@dataclass
class _Progress:
    """How far a run has come."""

    step: int = 0
    loss_sum: float = 0.0
    """Of the steps of the epoch under way."""
    best_auroc: float | None = None
    best_epoch: int | None = None


class _Run:
    """Gradient descent on the whole network, or on its head with everything else frozen."""

    def __init__(self, model: Classifier, task: _Task) -> None:
        config = task.config
        if config.kind == "finetuned":
            _regularise(model, config)
        self.model, self.task = model, task
        model.network.eval().requires_grad_(False)
        self.trained: nn.Module = model.network if config.kind == "finetuned" else _head(model)
        self.trained.requires_grad_(True)
        self.scaler = torch.amp.GradScaler(enabled=task.scales_gradients)
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.targets = task.targets
        self.weights = _class_weights(self.targets[task.sides.training]) if config.class_weights == "balanced" else None
        n_training = len(task.sides.training)
        self.steps_per_epoch = (math.floor if config.drop_last else math.ceil)(n_training / config.batch_size)
        if self.steps_per_epoch == 0:
            raise InputError(
                f"the {n_training} training images are not one batch of {config.batch_size}, and drop_last leaves out "
                "what is less; lower batch_size or set drop_last to false"
            )
        self.total = self.steps_per_epoch * config.epochs
        self.progress = _Progress()
        self.best: dict[str, torch.Tensor] = {}
        self.log = _Log(task.path.with_name(f"{task.path.stem}.log.jsonl"))

    def train(self) -> dict[str, Any]:
        """Run what is left of the training and leave the weights to keep in the model.

        Returns:
            The validation AUROC and the epoch chosen, counted from 1.
        """
        self._restore()
        self.log.cut(self.progress.step)
        config, progress = self.task.config, self.progress
        with progress_bar(
            total=self.total, done=progress.step, description=config.kind, unit="step", to=self.task.path
        ) as bar:
            for epoch in range(progress.step // self.steps_per_epoch, config.epochs):
                self._epoch(epoch, bar)
        if self.best:
            self.trained.load_state_dict(self.best)
        self.model.network.eval()
        return {"validation_auroc": progress.best_auroc, "epoch": progress.best_epoch or config.epochs}

    def _epoch(self, epoch: int, bar: Any) -> None:
        config, progress, training = self.task.config, self.progress, self.task.sides.training
        order = training[torch.randperm(len(training), generator=torch_generator(config.seed, epoch)).numpy()]
        order = order[: self.steps_per_epoch * config.batch_size]
        augmentation = Augmentation(
            config.augmentation, config.elastic_alpha, config.elastic_sigma, config.elastic_affine
        )
        images_of_epoch = EpochImages(self.task.dataset, order.tolist(), augmentation, seed=config.seed, epoch=epoch)
        first = (progress.step - epoch * self.steps_per_epoch) * config.batch_size
        loader = DataLoader(
            Subset(images_of_epoch, range(first, len(order))),
            config.batch_size,
            num_workers=self.task.num_workers,
            pin_memory=torch.device(self.task.device).type == "cuda",
        )
        self.trained.train()
        for number, images in enumerate(loader):
            place = first + number * config.batch_size
            loss = self._step(images, order[place : place + len(images)])
            if not math.isfinite(loss):
                raise InputError(f"training diverged in epoch {epoch + 1}: the loss is not finite; lower lr")
            progress.step += 1
            progress.loss_sum += loss
            bar.update()
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", best=progress.best_auroc)
            if progress.step % LOG_EVERY == 0:
                rate = self.optimizer.param_groups[0]["lr"]
                self.log.add({"epoch": epoch + 1, "step": progress.step, "lr": rate, "loss": loss})
            in_epoch = progress.step % self.steps_per_epoch != 0
            if config.checkpoint_every and progress.step % config.checkpoint_every == 0 and in_epoch:
                self._save()
        self._end_epoch(epoch)

    def _step(self, images: torch.Tensor, items: Integers) -> float:
        """One step of AdamW on images (b, 3, H, W); returns the loss before it."""
        config, step, device = self.task.config, self.progress.step, self.task.device
        torch.manual_seed(torch_generator(config.seed, step, 2).initial_seed())  # for dropout, where there is any
        for group in self.optimizer.param_groups:
            group["lr"] = _rate(step, self.total, config)
        with self.task.autocast():
            logits = self.model(images.to(device, non_blocking=True))
        loss = _loss(logits.float(), self.targets[items].to(device), self.weights)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()

    def _end_epoch(self, epoch: int) -> None:
        """Judge the epoch on the patients held out, write the log's row and the state."""
        progress = self.progress
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": progress.step,
            "training_loss": progress.loss_sum / self.steps_per_epoch,
        }
        progress.loss_sum = 0.0
        if len(self.task.sides.validation):
            row["validation_loss"], auroc = self._validate(epoch)
            if progress.best_auroc is None or auroc > progress.best_auroc:
                progress.best_auroc, progress.best_epoch = auroc, epoch + 1
                self.best = {name: tensor.detach().cpu().clone() for name, tensor in self._weights()}
            row |= {"validation_auroc": auroc, "best_epoch": progress.best_epoch}
        self.log.add(row)
        if progress.step < self.total:
            self._save()

    def _validate(self, epoch: int) -> tuple[float, float]:
        """Loss and AUROC on the images of the patients held out, as they are, in evaluation mode."""
        self.model.network.eval()
        task, items = self.task, self.task.sides.validation
        with torch.inference_mode(), task.autocast():
            logits = torch.cat([self.model(images).float().cpu() for images in task.images(items.tolist())])
        if not torch.isfinite(logits).all():
            raise InputError(f"training diverged in epoch {epoch + 1}: a logit is not finite; lower lr")
        loss = _loss(logits, self.targets[items], self.weights).item()
        return loss, _auroc(logits.double().numpy(), task.labels[items], task.units)

    def _weights(self) -> list[tuple[str, torch.Tensor]]:
        return list(self.trained.state_dict().items())

    def _save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self._weights()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
        said = {
            "plan": json.dumps(self.task.plan),
            "progress": json.dumps(vars(self.progress)),
            "scaler": json.dumps(self.scaler.state_dict()),
        }
        write_state(_state_file(self.task.path), tensors, said)

    def _restore(self) -> None:
        """Take over the last state of a killed run, if there is one."""
        file = _state_file(self.task.path)
        if not file.exists():
            return
        tensors, said = read_state(file)
        if differing := differences(_plan_in(said), self.task.plan):
            raise InputError(f"{file} belongs to a training of other settings; delete it to start anew ({differing})")
        self.scaler.load_state_dict(json.loads(said["scaler"]))
        self.progress = _Progress(**json.loads(said["progress"]))
        self.best = _below(tensors, "best.")
        self.trained.load_state_dict(_below(tensors, "model."))
        state: dict[int, dict[str, torch.Tensor]] = {}
        parameters = list(self.trained.parameters())
        for name, tensor in _below(tensors, "optimizer.").items():
            number, _, leaf = name.partition(".")
            like = parameters[int(number)]
            # The parameter's memory layout, as in an undisturbed run: vectorised loops round by place.
            same = (
                torch.empty_like(like, dtype=tensor.dtype) if tensor.shape == like.shape else torch.empty_like(tensor)
            )
            state.setdefault(int(number), {})[leaf] = same.copy_(tensor)
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        logger.info("continuing %s at step %d", self.task.path.name, self.progress.step)


def _plan_in(said: Mapping[str, str]) -> Any:
    """The plan that a state holds; earlier versions kept its SHA-256 alone."""
    try:
        return json.loads(said["plan"])
    except json.JSONDecodeError:
        return said["plan"]


def _regularise(model: Classifier, config: ClassifierTraining) -> None:
    """Put dropout, drop-connect and the momentum of batch norms into a network that is to be trained.

    None of them is in the state dict: the saved classifier has none.
    """
    model.regularise(dropout=config.dropout, drop_connect=config.drop_connect)
    for module in model.network.modules():
        if config.batch_norm_momentum is not None and isinstance(module, nn.BatchNorm2d):
            module.momentum = config.batch_norm_momentum


@dataclass
class _Log:
    """A file of JSON lines that grows while training runs; each row has the step it was written at."""

    path: Path

    def cut(self, step: int) -> None:
        """Forget what a killed run wrote after `step`, and a last line that it did not finish."""
        rows = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        write_text(self.path, "".join(row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step))

    def add(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _class_weights(targets: torch.Tensor) -> torch.Tensor:
    """Negatives / positives of each finding (m,), or n / (K * images of the class) of each of K classes."""
    if targets.ndim == 2:
        positives = targets.sum(0)
        return (len(targets) - positives) / positives
    counts = torch.bincount(targets)
    return len(targets) / (len(counts) * counts)


def _loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Weighted binary cross-entropy for findings (targets (b, m)), cross-entropy for classes (targets (b,))."""
    weights = None if weights is None else weights.to(logits.device)
    if targets.ndim == 2:
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    return functional.cross_entropy(logits, targets, weight=weights)


def _rate(step: int, total: int, config: ClassifierTraining) -> float:
    """Linear warm-up to `lr` over `warm_up * total` steps, then half a cosine down to 0.

    Where that is no whole number, the last step of the warm-up lies above `lr`, by less than one step's rise. A warm-up
    from zero has whole steps, the first of them with rate 0.
    """
    warm_up = config.warm_up * total
    if config.warm_up_from_zero:
        warm_up = round(warm_up)
        if step < warm_up:
            return config.lr * step / warm_up
    if step < warm_up:
        return config.lr * (step + 1) / warm_up
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up)))


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
