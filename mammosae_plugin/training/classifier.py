"""Classifiers on an image encoder: the linear head alone ("pretrained") or the whole network ("finetuned")."""

import copy
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2
from tqdm.auto import tqdm

from mammosae_plugin.activations import image_batches
from mammosae_plugin.adapters import MammoClipClassifier, load_mammo_clip, save_classifier
from mammosae_plugin.datasets import MammogramDataset, collate, n_classes_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_json, write_safetensors
from mammosae_plugin.provenance import seed_everything, tensors_fingerprint, torch_generator

logger = logging.getLogger(__name__)


class ClassifierTraining(BaseModel):
    """How a classifier is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["pretrained", "finetuned"] = Field(
        "finetuned",
        description="'pretrained': fit the linear head on frozen features. 'finetuned': train the whole network.",
    )
    l2: float = Field(
        1.0, gt=0, description="pretrained: L2 penalty of the logistic regression on standardised features."
    )
    epochs: int = Field(10, gt=0, description="finetuned: passes over the training images.")
    batch_size: int = Field(16, gt=0, description="Images per step.")
    lr: float = Field(5e-5, gt=0, description="finetuned: peak learning rate of AdamW.")
    weight_decay: float = Field(1e-4, ge=0, description="finetuned: AdamW's decoupled weight decay.")
    warm_up: float = Field(
        0.1, ge=0, lt=1, description="finetuned: share of the steps with rising learning rate; then cosine."
    )
    augmentation: Literal["none", "flips", "affine"] = Field(
        "affine",
        description="finetuned: flips, or flips with rotation 20, shift 10 %, scale 0.8 to 1.2 and shear 20 degrees.",
    )
    seed: int = Field(0, ge=0, description="Seeds the head, the order of the images and the augmentation.")


def train_classifier(
    encoder: MammoClipClassifier,
    dataset: MammogramDataset,
    concept: str | Sequence[str],
    path: str | Path,
    config: ClassifierTraining | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    device: str = "cpu",
    num_workers: int = 0,
) -> MammoClipClassifier:
    """Train a classifier for one concept, or for several findings at once, and save it.

    Classes are weighed by their rarity: positives of a finding by negatives / positives. A killed run is made again and
    continues at its last epoch.

    Args:
        encoder: Where the weights start; it is not changed.
        dataset: Training images with labels.
        concept: A finding (one logit), "density" or "birads" (a logit per class), or several findings (a logit each).
        path: Where the classifier goes, a `.safetensors` file that `load_mammo_clip` reads.
        config: How to train.
        metadata: What else the file should say.
        device: Where training runs.
        num_workers: Processes that read images beside the network.

    Raises:
        InputError: A concept has a class without an image, or the file holds another classifier.
    """
    config, path = config or ClassifierTraining(), Path(path)
    concepts = [concept] if isinstance(concept, str) else list(concept)
    targets = _targets(dataset, concepts)
    plan = {
        "concepts": concepts,
        "config": config.model_dump(),
        "encoder": tensors_fingerprint(encoder.state_dict()),
        "dataset": dataset.fingerprint,
        "images": sha256_of_json(dataset.images["image_id"].tolist()),
        **(metadata or {}),
    }
    if path.exists():
        model = load_mammo_clip(path, device=device)
        if model.source["metadata"] != json.loads(json.dumps(plan)):
            raise InputError(f"{path} holds a classifier of other settings; name another file or delete this one")
        return model
    seed_everything(config.seed)
    model = with_new_head(encoder, _n_outputs(concepts)).to(device)
    if config.kind == "pretrained":
        _fit_head(model, dataset, targets, config, device, num_workers)
    else:
        _finetune(model, dataset, targets, config, path, plan, device, num_workers)
    save_classifier(model, path, metadata=plan)
    _state_file(path).unlink(missing_ok=True)
    return load_mammo_clip(path, device=device)


def with_new_head(encoder: MammoClipClassifier, n_class: int) -> MammoClipClassifier:
    """A copy of the encoder's network with a fresh linear head of `n_class` outputs."""
    model = copy.deepcopy(encoder)
    model.classifier = nn.Linear(model.num_features, n_class)
    model.n_class = n_class
    return model


def _n_outputs(concepts: Sequence[str]) -> int:
    classes = n_classes_of(concepts[0])
    return len(concepts) if classes == 2 else classes


def _targets(dataset: MammogramDataset, concepts: Sequence[str]) -> torch.Tensor:
    """(n, m) float for m findings, or (n,) int64 for one concept with more than two classes."""
    for concept in concepts:
        n_classes = n_classes_of(concept)
        if n_classes > 2 and len(concepts) > 1:
            raise InputError(f"{concept} has {n_classes} classes and needs a classifier of its own")
        counts = np.bincount(dataset.images[concept].to_numpy(), minlength=n_classes)
        if (counts == 0).any():
            raise InputError(
                f"no training image has class {int(np.flatnonzero(counts == 0)[0])} of {concept}; "
                "a classifier cannot learn it"
            )
    labels = torch.tensor(dataset.images[list(concepts)].to_numpy())
    return labels.float() if n_classes_of(concepts[0]) == 2 else labels[:, 0].long()


def _fit_head(
    model: MammoClipClassifier,
    dataset: MammogramDataset,
    targets: torch.Tensor,
    config: ClassifierTraining,
    device: str,
    num_workers: int,
) -> None:
    """Logistic regression with balanced classes on standardised pooled features, folded into the linear layer."""
    model.eval()
    pooled = []
    with torch.inference_mode(), tqdm(total=len(dataset), desc="features", unit="image", dynamic_ncols=True) as bar:
        for _, images in image_batches(dataset, range(len(dataset)), config.batch_size, num_workers):
            pooled.append(model.forward_features(images.to(device)).mean(dim=(2, 3)).double().cpu())
            bar.update(len(images))
    scaler = StandardScaler()
    features = scaler.fit_transform(torch.cat(pooled).numpy())
    columns = targets.T if targets.ndim == 2 else targets[None]
    weights, biases = [], []
    for column in columns:
        fitted = LogisticRegression(C=1 / config.l2, class_weight="balanced", max_iter=2000).fit(
            features, column.numpy()
        )
        weight = fitted.coef_ / scaler.scale_
        weights.append(weight)
        biases.append(fitted.intercept_ - weight @ scaler.mean_)
    model.classifier.load_state_dict(
        {"weight": torch.from_numpy(np.concatenate(weights)), "bias": torch.from_numpy(np.concatenate(biases))}
    )


def _augment(images: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "none":
        return images
    steps: list[nn.Module] = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    if kind == "affine":
        background = float(images.amin())
        steps.append(v2.RandomAffine(degrees=20, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=20, fill=background))
    transform = v2.Compose(steps)
    return torch.stack([transform(image) for image in images])


def _state_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}.unfinished.safetensors")


def _finetune(
    model: MammoClipClassifier,
    dataset: MammogramDataset,
    targets: torch.Tensor,
    config: ClassifierTraining,
    path: Path,
    plan: Mapping[str, Any],
    device: str,
    num_workers: int,
) -> None:
    steps_per_epoch = math.ceil(len(dataset) / config.batch_size)
    total = steps_per_epoch * config.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    if targets.ndim == 2:
        positives = targets.sum(0)
        loss_of: nn.Module = nn.BCEWithLogitsLoss(pos_weight=((len(targets) - positives) / positives).to(device))
    else:
        counts = torch.bincount(targets)
        loss_of = nn.CrossEntropyLoss(weight=(len(targets) / (len(counts) * counts)).to(device))
    first = _load_state(path, plan, model, optimizer)
    with tqdm(total=total, initial=first * steps_per_epoch, desc="finetune", unit="step", dynamic_ncols=True) as bar:
        for epoch in range(first, config.epochs):
            torch.manual_seed(int(torch_generator(config.seed, epoch, 1).initial_seed()))  # torchvision draws from it
            order = torch.randperm(len(dataset), generator=torch_generator(config.seed, epoch))
            shuffled = Subset(dataset, order.tolist())
            loader = DataLoader(shuffled, config.batch_size, num_workers=num_workers, collate_fn=collate)
            model.train()
            for number, batch in enumerate(loader):
                images = batch["image"]
                rows = order[number * config.batch_size : number * config.batch_size + len(images)]
                rate = _rate(epoch * steps_per_epoch + number, total, config)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                logits = model(_augment(images, config.augmentation).to(device))
                loss = loss_of(logits, targets[rows].to(device))
                if not torch.isfinite(loss):
                    raise InputError(f"training diverged in epoch {epoch + 1}: the loss is not finite; lower lr")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
                bar.set_postfix(epoch=epoch + 1, loss=f"{loss.item():.3f}")
            if epoch + 1 < config.epochs:
                _save_state(path, plan, model, optimizer, epoch + 1)
    model.eval()


def _rate(step: int, total: int, config: ClassifierTraining) -> float:
    """Linear warm-up to `lr`, then half a cosine down to 0."""
    warm_up = config.warm_up * total
    if step < warm_up:
        return config.lr * (step + 1) / warm_up
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up)))


def _save_state(
    path: Path, plan: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, epochs_done: int
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    write_safetensors(_state_file(path), tensors, {"epochs_done": str(epochs_done), "plan": sha256_of_json(plan)})


def _load_state(path: Path, plan: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore the last whole epoch; returns how many are done."""
    file = _state_file(path)
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as opened:
        found = opened.metadata()
    if found["plan"] != sha256_of_json(plan):
        raise InputError(f"{file} belongs to a training of other settings; delete it to start anew")
    tensors = load_file(file)
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, field = name.split(".", 2)
            state.setdefault(int(number), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    logger.info("continuing %s after %s epochs", path.name, found["epochs_done"])
    return int(found["epochs_done"])
