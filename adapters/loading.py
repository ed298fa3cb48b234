"""Loading networks: a Mammo-CLIP file or one of this package's own, by what it is."""

__all__ = ["load_classifier", "load_mammo_clip"]

import os
from collections.abc import Collection

import torch

from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, is_safetensors
from mammosae_plugin.adapters.classifier import Classifier, library_of
from mammosae_plugin.adapters.mammo_clip import MammoClipClassifier
from mammosae_plugin.adapters.mammo_clip_files import read_mammo_clip
from mammosae_plugin.adapters.published_encoders import load_published_encoder
from mammosae_plugin.adapters.saved_classifiers import is_classifier_folder, read_saved_classifier
from mammosae_plugin.adapters.sources import CLASSIFIER_FILES, find_source, is_on_hub
from mammosae_plugin.errors import InputError


def load_classifier(
    checkpoint: str | os.PathLike[str],
    classifier: str | os.PathLike[str] | None = None,
    *,
    filename: str | None = None,
    classifier_filename: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    functions: Collection[str] = (),
) -> Classifier:
    """Load an image network of any kind, with or without a classifier, in evaluation mode; the file says which it is.

    Read are Mammo-CLIP's and Mammo-FM's own files, those that `save_classifier` wrote, and the image encoders of
    MedCLIP (`pytorch_model.bin`, both variants), GLoRIA (`chexpert_resnet50.ckpt`) and Mirai (a state dict). Of the
    first two the variant,
    EfficientNet-B5 or B2, is told by the file. At Mammo-CLIP's input of 1520 x 912 (height x width) the final map is
    (2048, 48, 29) for B5 and (1408, 48, 29) for B2. Mammo-FM's text tower is another one; it is not read.

    Args:
        checkpoint: a pretraining checkpoint (`b5-model-best-epoch-7.tar`), a downstream classifier file, which holds
            the encoder too, a `.safetensors` that `save_classifier` wrote, or the folder of a published classifier. A
            local file or such a folder; a Hub repo ("owner/name") or local folder with `filename`; or
            "hub://owner/name[@revision]/path/in/repo", of a published classifier with its id as the path.
        classifier: a downstream classifier file for a pretraining checkpoint; its encoder, if it has one, and its head
            replace the checkpoint's. Named like `checkpoint`.
        filename: the checkpoint's name inside the repo or folder.
        classifier_filename: the classifier's; without `classifier`, inside the checkpoint's repo or folder.
        revision: branch, tag or commit, for the files that come from the Hub. Name a commit where results must be
            reproducible; the commit that was read is recorded in any case.
        device: where to put the model.
        functions: "package.module:function" of those that may be imported and called to make a network that a file says
            is theirs; a file cannot name one by itself.

    Returns:
        The model; `n_class` is 0 when no file has a head.

    Raises:
        UnsafeCheckpointError: a file asks for code; none of it was run.
        CheckpointFormatError: a file is damaged, has another architecture, or missing, unexpected or misshapen keys.
        InputError: a path, repo, revision or file that cannot be read, or a combination of them that means nothing.
    """
    named = [(checkpoint, filename)]
    if classifier is not None or classifier_filename is not None:
        named.append((checkpoint if classifier is None else classifier, classifier_filename))
    if revision is not None and not any(is_on_hub(place) for place, _ in named):
        raise InputError(f"revision {revision!r} means nothing for local files; leave it out")
    files = [
        find_source(place, name, revision=revision if is_on_hub(place) else None, layouts=(CLASSIFIER_FILES,))
        for place, name in named
    ]
    whole = [file for file in files if is_classifier_folder(file.path) or is_safetensors(file.path)]
    if whole and len(files) > 1:
        other = files[0] if whole[0] is files[1] else files[1]
        raise InputError(f"{whole[0].path} is a whole classifier already; give it alone, without {other.path}")
    published = None if whole or len(files) > 1 else load_published_encoder(files[0])
    model: Classifier
    if published is not None:
        model = published[0]
    else:
        model = read_saved_classifier(whole[0], functions=functions) if whole else read_mammo_clip(*files)
    model.network.eval().to(device)
    return model


def load_mammo_clip(
    checkpoint: str | os.PathLike[str],
    classifier: str | os.PathLike[str] | None = None,
    *,
    filename: str | None = None,
    classifier_filename: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
) -> MammoClipClassifier:
    """`load_classifier` for Mammo-CLIP's and Mammo-FM's networks: it takes the same, and refuses files of others.

    Raises:
        CheckpointFormatError: as `load_classifier`, or the file holds another network.
    """
    model = load_classifier(
        checkpoint,
        classifier,
        filename=filename,
        classifier_filename=classifier_filename,
        revision=revision,
        device=device,
    )
    if not isinstance(model, MammoClipClassifier):
        library = library_of(model.description(), model.source)
        owner = "somebody's function" if library == "function" else f"{library}'s"
        raise CheckpointFormatError(
            f"{checkpoint} holds a {model.architecture} of {owner} and no Mammo-CLIP network; load_classifier reads it"
        )
    return model
