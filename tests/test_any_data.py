"""Images that are no dataset of ours: tensors, datasets of torch, torchvision and Hugging Face, read as they are."""

import logging

import datasets as hugging_face
import numpy as np
import pytest
import timm
import torch
from helpers_backbones import FAMILIES
from helpers_study import random_sae
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torchvision.datasets import ImageFolder

from mammosae_plugin.activations import embed, extract_activations
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.preprocessing import IMAGENET
from mammosae_plugin.analysis import linear_probes, monosemanticity, retrieve
from mammosae_plugin.datasets import as_images, by_exam, is_study_dataset, load_images
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.localization import localize
from mammosae_plugin.probing import class_mean_latents, rank_latents
from mammosae_plugin.training import Augmentation

N = 6
LABELS = [0, 1, 1, 0, 1, 0]
SIZE = (96, 64)


def pixels(number):
    """Image `number`: uint8 (H, W, 3)."""
    return np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def to_input(image):
    """A transform: what the network takes of a PIL image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


TENSOR = torch.stack([to_input(pixels(number)) for number in range(N)])


class Items(Dataset):
    """A dataset of torch whose items are what a function makes of their number."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return N

    def __getitem__(self, number):
        return self.item(number)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TENSOR)


def folder_of(path):
    for number in range(N):
        place = path / "photos" / ("ill" if LABELS[number] else "well")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(place / f"{number}.png")
    return ImageFolder(path / "photos", transform=to_input)


def of_hugging_face(**columns):
    features = {"image": hugging_face.Image(), "sick": hugging_face.ClassLabel(names=["no", "yes"])}
    features |= {name: hugging_face.Value("string") for name in columns}
    images = [Image.fromarray(pixels(number)) for number in range(N)]
    return hugging_face.Dataset.from_dict(
        {"image": images, "sick": LABELS, **columns}, features=hugging_face.Features(features)
    )


SOURCES = {
    "tensor": lambda _path: (TENSOR, None),
    "array": lambda _path: (TENSOR.numpy(), None),
    "list": lambda _path: (list(TENSOR), None),
    "pixels": lambda _path: (as_images([Image.fromarray(pixels(n)) for n in range(N)], transform=to_input), None),
    "TensorDataset": lambda _path: (TensorDataset(TENSOR, torch.tensor(LABELS)), "label"),
    "pairs": lambda _path: (Items(lambda n: (TENSOR[n], LABELS[n])), "label"),
    "dicts": lambda _path: (Items(lambda n: {"pixel_values": TENSOR[n], "labels": {"ill": LABELS[n]}}), "ill"),
    "DataLoader": lambda _path: (DataLoader(TensorDataset(TENSOR, torch.tensor(LABELS)), 4, shuffle=True), "label"),
    "collated": lambda _path: (
        DataLoader(
            Items(lambda n: (Image.fromarray(pixels(n)), LABELS[n])),
            collate_fn=lambda items: {
                "image": torch.stack([to_input(one) for one, _ in items]),
                "label": [label for _, label in items],
            },
        ),
        "label",
    ),
    "ImageFolder": lambda path: (folder_of(path), "label"),
    "HuggingFace": lambda _path: (as_images(of_hugging_face(), transform=to_input), "sick"),
    "HuggingFace.set_transform": lambda _path: (
        of_hugging_face().with_transform(
            lambda rows: {"image": [to_input(image) for image in rows["image"]], "label": rows["sick"]}
        ),
        "label",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    model, size, _, last = FAMILIES["torch_cnn"]()
    with HookedVisionModel(model, [last], example_input=torch.zeros(1, 3, *size)) as hooked:
        yield hooked, random_sae(16, 32, hook_name="top.hook_out")


def means(hooked, images):
    """(N, C): the mean of the layer over positions, straight from the network."""
    _, cache = hooked.run_with_cache(images)
    return cache["top.hook_out"].flatten(1, 2).mean(1).numpy()


@pytest.mark.parametrize("kind", SOURCES)
def test_a_table_and_a_store_are_made_of_whatever_has_images(kind, network, tmp_path):
    hooked, sae = network
    source, label = SOURCES[kind](tmp_path)
    table = encode_latents(hooked, sae, source, tmp_path / "table", heads={}, batch_size=4)
    order = np.argsort([int(str(one).split("/")[-1].removesuffix(".png")) for one in table.images["image_id"]])
    np.testing.assert_allclose(table.mean_channels[order], means(hooked, TENSOR), rtol=1e-5, atol=1e-6)
    assert table.images["patient_id"].equals(table.images["image_id"])
    assert set(table.images["split"]) == {"test"}
    made = table.provenance["dataset_made"]
    assert made["patients"] == "each image its own" and ("ids" in made) == (kind != "ImageFolder")
    if label is None:
        assert not table.vocabulary and made["labels"] == "none"
    else:
        labels = np.array(LABELS) if kind != "ImageFolder" else 1 - np.array(LABELS)  # ill before well
        assert list(table.vocabulary) == [label] and (table.images[label].to_numpy()[order] == labels).all()
        assert class_mean_latents(table, label, split="test").shape == (2, 32)
    if kind in ("TensorDataset", "HuggingFace"):
        store = extract_activations(hooked, source, tmp_path / "store", batch_size=3)
        again = encode_latents(hooked, sae, source, tmp_path / "table", heads={}, batch_size=4)  # continued: read
        assert store.n_rows == N * 24 and again.images.equals(table.images)


def test_labels_boxes_and_splits_reach_the_analyses(network, tmp_path):
    hooked, sae = network
    images = torch.cat([TENSOR, TENSOR.flip(-1), TENSOR.flip(-2)])
    boxes = [[[8, 8, 40, 60]] if label else None for label in LABELS * 3]
    data = as_images(
        images,
        labels={"ill": LABELS * 3, "grade": ["a", "b", "c"] * 6, "sex": [None, "f", "m"] * 6},
        boxes={"mass": boxes},
        groups=[number % 9 for number in range(18)],
        covariates={"age": np.arange(18.0)},
        name="own",
    )
    assert is_study_dataset(data) and data.concepts == ("ill", "sex", "mass")
    assert data[1]["labels"] == {"ill": 1, "grade": 1, "sex": 0, "mass": 1}
    assert data[0]["labels"]["sex"] == -1 and data[1]["covariates"] == {"age": 1.0}
    table = encode_latents(hooked, sae, data, tmp_path / "table", heads={}, map_latents=range(32), batch_size=6)
    ranked = rank_latents(class_mean_latents(table, "ill", split="test"))
    found = localize(table, ranked.indices[1][:3], "mass")
    assert (found["n_images"] == 9).all() and (found["n_boxes"] == 9).all()
    assert set(monosemanticity(table, n=(3,), n_draws=3, n_bootstrap=3, min_groups=2).latents["latent"])
    assert len(linear_probes(table, ["ill"], ks=[2], n_bootstrap=10, min_patients=2, n_folds=2))
    asked = table.images["image_id"].iloc[0]
    like = retrieve(table, asked, method="cosine", n=3)
    assert len(like) == 3 and asked not in set(like["image_id"])
    with_splits = as_images(images, split={"training": 0.5, "test": 0.5}, groups=[number % 9 for number in range(18)])
    by_patient = with_splits.images.groupby("patient_id")["split"]
    assert by_patient.nunique().max() == 1 and set(with_splits.images["split"]) == {"training", "test"}
    unboxed = encode_latents(hooked, sae, with_splits, tmp_path / "no boxes", heads={}, batch_size=6)
    with pytest.raises(InputError, match="mass"):
        localize(unboxed, [0], "mass")


def test_a_table_without_labels_says_so_wherever_labels_are_needed(network, tmp_path):
    table = encode_latents(*network, TENSOR, tmp_path / "table", heads={}, batch_size=6)
    for asked, said in (
        (lambda: linear_probes(table), "has no concept to probe for: encode images with labels"),
        (lambda: linear_probes(table, ["ill"]), r"has no labels for 'ill' \(known: none\)"),
        (lambda: localize(table, [0], "ill"), "'ill' is not a finding with boxes: .* has none"),
    ):
        with pytest.raises(InputError, match=said):
            asked()


@pytest.mark.parametrize("kind", ["tensor", "HuggingFace", "pairs", "ImageFolder"])
def test_what_has_changed_is_not_continued(kind, network, tmp_path):
    hooked, _ = network

    def source(*, other=False):
        if kind == "tensor":
            changed = TENSOR.clone()
            changed[4, 1, 2, 3] += other
            return changed
        if kind == "pairs":
            return Items(lambda n: (TENSOR[n] + 0.1 * (other and n == 4), LABELS[n]))
        if kind == "ImageFolder":
            return as_images(folder_of(tmp_path), transform=lambda image: image * (2 if other else 1))
        rows = of_hugging_face().with_format("torch")
        return as_images(rows, transform=(lambda image: image / 254) if other else lambda image: image / 255)

    store = extract_activations(hooked, source(), tmp_path / "store")
    again = extract_activations(hooked, source(), tmp_path / "store")  # read, not made again
    assert again.manifest == store.manifest
    with pytest.raises(InputError, match="dataset"):
        extract_activations(hooked, source(other=True), tmp_path / "store")


def test_worker_processes_give_the_same_rows(network, tmp_path):
    hooked, _ = network
    data = as_images(of_hugging_face(), transform=to_input)
    one, other = (extract_activations(hooked, data, tmp_path / str(n), num_workers=n, batch_size=2) for n in (0, 1))
    assert one.manifest["shards"] == other.manifest["shards"]


def test_pixels_without_a_transform_go_as_the_network_wants_them(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="mammosae_plugin")
    model = timm.create_model("resnet10t", num_classes=0, in_chans=3).eval()
    model.default_cfg = {**model.default_cfg, "input_size": (3, 64, 64)}
    sizes = [(80, 64), (64, 96), (64, 64)]
    source = [Image.fromarray(pixels(n)[:h, :w]) for n, (h, w) in enumerate(sizes)]
    store = embed(model, source, tmp_path / "vectors")
    assert store.n_rows == 3 and "each image its own" in caplog.text and "network's own preprocessing" in caplog.text
    with HookedVisionModel(model, ["layer4"]) as hooked:
        rows = extract_activations(hooked, source, tmp_path / "rows")
    assert rows.n_rows == 3 * 4 and rows.manifest["preprocessing"]["resize"] == [64, 64]
    gray = as_images([image.convert("L") for image in source[2:]]).with_preprocessing(IMAGENET)
    assert gray[0]["image"].shape == (3, 64, 64)


def test_what_cannot_be_read_is_refused_in_one_line_whose_hint_works(network, tmp_path):
    hooked, _ = network
    stream = Stream()
    with pytest.raises(InputError, match=r"list\(itertools.islice\(images, 1000\)\)"):
        extract_activations(hooked, stream, tmp_path / "a")
    assert len(as_images(list(stream))) == N
    streamed = of_hugging_face().to_iterable_dataset()
    with pytest.raises(InputError, match=r"list\(images.take\(1000\)\)"):
        as_images(streamed)
    assert len(as_images(list(streamed.take(4)), labels=["sick"], transform=to_input)) == 4
    of_splits = hugging_face.DatasetDict(train=of_hugging_face())
    with pytest.raises(InputError, match=r"such as images\['train'\]"):
        as_images(of_splits)
    assert len(as_images(of_splits["train"], labels=["sick"], transform=to_input)) == N
    shuffled = DataLoader(TensorDataset(TENSOR), sampler=SubsetRandomSampler([1, 3]))
    with pytest.raises(InputError, match="give the dataset, or torch.utils.data.Subset"):
        as_images(shuffled)
    assert len(as_images(Subset(TensorDataset(TENSOR), [1, 3]))) == 2
    data = TensorDataset(TENSOR)
    for chosen in (
        DataLoader(data, batch_sampler=[[0, 3], [1]]),
        DataLoader(data, batch_sampler=BatchSampler(SubsetRandomSampler([0, 3]), 2, drop_last=False)),
        DataLoader(data, sampler=RandomSampler(data, replacement=True)),
        DataLoader(data, sampler=RandomSampler(data, num_samples=3)),
    ):
        with pytest.raises(InputError, match="give the dataset, or torch.utils.data.Subset"):
            as_images(chosen)
    with pytest.raises(InputError, match=r"does not say how it wants them: state it, as_images\(images, transform"):
        extract_activations(hooked, of_hugging_face(), tmp_path / "b")
    mixed = [TENSOR[0], TENSOR[1, :, :60]]
    with pytest.raises(InputError, match=r"image 000001 is float32 \(3, 60, 64\).*as_images\(images, transform=...\)"):
        extract_activations(hooked, mixed, tmp_path / "c")
    same = as_images(mixed, transform=lambda image: image[:, :60, :60])
    assert same[1]["image"].shape == (3, 60, 60)
    with pytest.raises(InputError, match="another each time it is read"):
        as_images(TENSOR, transform=lambda image: image + torch.rand(()))
    with pytest.raises(InputError, match="the source is empty"):
        extract_activations(hooked, [], tmp_path / "d")
    with pytest.raises(InputError, match="give one for each"):
        as_images(TENSOR, labels={"ill": [1]})
    with pytest.raises(InputError, match="image ids repeat"):
        as_images(TENSOR, ids=["same"] * N)
    for nothing in (5, "folder", {"a": TENSOR}, TENSOR[0]):
        with pytest.raises(InputError) as refused:
            extract_activations(hooked, nothing, tmp_path / "e")
        assert "\n" not in str(refused.value)


def test_measurements_are_covariates_and_targets_of_detectors_no_labels():
    soft = as_images(Items(lambda number: (TENSOR[number], number / 4)))
    assert soft.concepts == () and soft.images["label"].tolist() == [number / 4 for number in range(N)]
    with pytest.raises(InputError, match=r"boxes of no label .*give them by label, \{label: \(n, 4\)\}"):
        as_images(Items(lambda number: (TENSOR[number], {"boxes": torch.ones(1, 4), "labels": torch.ones(1)})))
    box = torch.tensor([[4.0, 4, 20, 16]])
    assert as_images(Items(lambda number: (TENSOR[number], {"boxes": {"spot": box}}))).concepts == ("spot",)
    with pytest.raises(InputError, match="lists of 1 or 2: give each item a list of 0 and 1 of one length"):
        as_images(Items(lambda number: (TENSOR[number], [0, 1][: 1 + number % 2])))


WORDS = ["a", "b", "c", "a", "b", "c"]
BOXES = [[[8, 8, 40, 60]]] * N
TWICE = [Image.fromarray(pixels(n)) for n in range(N)]
TWO_COLUMNS = hugging_face.Dataset.from_dict(
    {"image": TWICE, "mask": TWICE},
    features=hugging_face.Features({"image": hugging_face.Image(), "mask": hugging_face.Image()}),
)


def bytes_of_hugging_face():
    rows = of_hugging_face().cast_column("image", hugging_face.Image(decode=False))[:]["image"]
    return hugging_face.Dataset.from_dict({"photo": rows})


def tensor_of(image):
    return image if torch.is_tensor(image) else to_input(image)


def items_of(*values):
    return Items(lambda number: values[number % len(values)])


FOLLOWED = {
    "Preprocessing": (
        lambda: as_images(TWICE)[0], r"as_images\(images\).with_preprocessing\(IMAGENET\)",
        lambda: as_images(TWICE).with_preprocessing(IMAGENET)[0],
    ),
    "Preprocessing or transform": (
        lambda: as_images(TWICE)[0], r"state it, as_images\(images, transform=...\)",
        lambda: as_images(TWICE, transform=to_input)[0],
    ),
    "transform": (
        lambda: as_images(TENSOR, transform=5), "give something that is called with an image",
        lambda: as_images(TENSOR, transform=torch.neg),
    ),
    "random transform": (
        lambda: as_images(TENSOR, transform=torch.rand_like), "take what is random out of its transform",
        lambda: as_images(TENSOR),
    ),
    "ids": (
        lambda: as_images(TENSOR, ids=["same"] * N), r"give every image its own, ids=\[...\]",
        lambda: as_images(TENSOR, ids=list(range(N))),
    ),
    "missing id": (
        lambda: as_images(TENSOR, ids=[None, *"bcdef"]), "1 image has no id: see image_id",
        lambda: as_images(TENSOR, ids=list("abcdef")),
    ),
    "transform that gives none": (
        lambda: as_images(TENSOR, transform=str), "give a PIL image, a tensor or an array",
        lambda: as_images(TENSOR, transform=torch.Tensor.numpy),
    ),
    "whole numbers": (
        lambda: as_images(TENSOR.long()), r"give floats \(C, H, W\), the network's input, or uint8 pixels",
        lambda: (as_images(TENSOR), as_images(TENSOR.to(torch.uint8))),
    ),
    "number of values": (
        lambda: as_images(TENSOR, groups=[1, 2]), "patient_id has 2 values for 6 images: give one for each",
        lambda: as_images(TENSOR, groups=LABELS),
    ),
    "kinds": (
        lambda: as_images([TENSOR[0], TWICE[1]])[1], "the first is not of that kind; give images of one size and kind",
        lambda: as_images([TENSOR[0], TWICE[1]], transform=tensor_of)[1],
    ),
    "column": (
        lambda: as_images(of_hugging_face(), labels=["ill"]), r"has no column 'ill' \(there are: sick\)",
        lambda: as_images(of_hugging_face(), labels=["sick"]),
    ),
    "name of a label": (
        lambda: as_images(TENSOR, labels={"split": LABELS}), "a column of its own in tables: call it otherwise",
        lambda: as_images(TENSOR, labels={"part": LABELS}),
    ),
    "name of an item's label": (
        lambda: as_images(Items(lambda n: {"image": TENSOR[n], "labels": {"split": LABELS[n]}})), "call it otherwise",
        lambda: as_images(Items(lambda n: {"image": TENSOR[n], "labels": {"part": LABELS[n]}})),
    ),
    "boxes of each": (
        lambda: as_images(TENSOR, boxes={"mass": BOXES[:2]}), r"boxes\['mass'\] has 2 entries .*: give one for each",
        lambda: as_images(TENSOR, boxes={"mass": BOXES}),
    ),
    "boxes of a grade": (
        lambda: as_images(TENSOR, labels={"grade": WORDS}, boxes={"grade": BOXES}), "has 3 classes; boxes are of two",
        lambda: as_images(TENSOR, labels={"grade": WORDS}, boxes={"mass": BOXES}),
    ),
    "corners": (
        lambda: as_images(TENSOR, boxes={"mass": [[[40, 60, 8, 8]]] * N}), "give x and y of two corners, rising",
        lambda: as_images(TENSOR, boxes={"mass": BOXES}),
    ),
    "single image": (
        lambda: as_images(TENSOR[0]), r"give \(N, C, H, W\), with \[None\] for a single one",
        lambda: as_images(TENSOR[0][None]),
    ),
    "mapping": (
        lambda: as_images({"a": TENSOR}), r"give one of them, such as images\['a'\]",
        lambda: as_images({"a": TENSOR}["a"]),
    ),
    "two columns": (
        lambda: as_images(TWO_COLUMNS), r"its Image columns are image, mask; name it, image='...'",
        lambda: as_images(TWO_COLUMNS, image="mask", transform=to_input),
    ),
    "column of bytes": (
        lambda: as_images(bytes_of_hugging_face()), "it has none, only photo; name it, .* or cast_column it",
        lambda: as_images(bytes_of_hugging_face().cast_column("photo", hugging_face.Image()), transform=to_input)[1],
    ),
    "lists of labels": (
        lambda: as_images(items_of((TENSOR[0], [0, 1]), (TENSOR[1], [1]))), "give each item a list of 0 and 1 of one",
        lambda: as_images(items_of((TENSOR[0], [0, 1]), (TENSOR[1], [1, 0]))),
    ),
    "lists or a class": (
        lambda: as_images(items_of((TENSOR[0], [0, 1]), (TENSOR[1], [1]))), "of one length, or one class",
        lambda: as_images(items_of((TENSOR[0], 0), (TENSOR[1], 1))),
    ),
    "item": (
        lambda: as_images(items_of("a.png")), r"give an image, a pair \(image, label\) or a dict",
        lambda: [as_images(items_of(one)) for one in (TENSOR[0], (TENSOR[0], 1), {"image": TENSOR[0]})],
    ),
    "key": (
        lambda: as_images(items_of({"left": TENSOR[0], "right": TENSOR[1]})), r"name its key, image='...'",
        lambda: as_images(items_of({"left": TENSOR[0], "right": TENSOR[1]}), image="right"),
    ),
    "class": (
        lambda: as_images(TENSOR, labels={"grade": [0.5, 1, 2, 0, 1, 2]}), "give class numbers from 0, or words",
        lambda: as_images(TENSOR, labels={"grade": [0, 1, 2, 0, 1, 2], "word": WORDS}),
    ),
    "shape of pixels": (
        lambda: as_images([np.zeros((5, 8, 8), np.uint8)]), r"give \(H, W\), or 1 or 3 channels",
        lambda: [as_images([np.zeros(shape, np.uint8)]) for shape in ((8, 8), (1, 8, 8), (8, 8, 3))],
    ),
    "mode": (
        lambda: as_images([Image.new("F", (8, 8))]), "of PIL's mode F, whose range is not known: give a transform",
        lambda: as_images([Image.new("F", (8, 8))], transform=lambda one: torch.tensor(np.array(one))[None]),
    ),
    "views of an item": (
        lambda: as_images(items_of(TENSOR[:2], TENSOR[:3])), r"exam 1 is \(3, 3, .*: give 2 views of each, \(V, C, H",
        lambda: as_images(items_of(TENSOR[:2], TENSOR[2:4])),
    ),
    "view": (
        lambda: by_exam(as_images(TENSOR), 2), r"covariates=\{'exam_id': \[...\], 'view': \[...\]\}",
        lambda: by_exam(as_images(TENSOR, covariates={"exam_id": [0, 0, 1, 1, 2, 2], "view": [0, 1] * 3}), 2),
    ),
    "names of views": (
        lambda: by_exam(three_views(), 2), r"name them in its order, by_exam\(dataset, 2, views=\[...\]\)",
        lambda: by_exam(three_views(), 2, views=["1", "0"]),
    ),
    "all views": (
        lambda: by_exam(three_views(), 4), "give images of all 4",
        lambda: by_exam(as_images(TENSOR[:4], covariates={"exam_id": [0] * 4, "view": list("abcd")}), 4),
    ),
    "parts of exams": (
        lambda: by_exam(three_views(), 3).select(image_ids=["000000"]), "keep the images of an exam in one split",
        lambda: by_exam(three_views(), 3).select(split="test"),
    ),
}  # fmt: skip


def three_views():
    return as_images(TENSOR, covariates={"exam_id": [0, 0, 0, 1, 1, 1], "view": [0, 1, 2] * 2})


@pytest.mark.parametrize("what", FOLLOWED)
def test_what_a_refusal_of_images_says_can_be_done(what):
    refused, said, done = FOLLOWED[what]
    with pytest.raises(InputError, match=said) as caught:
        refused()
    assert "\n" not in str(caught.value)
    done()


def test_what_is_random_is_an_augmentation_and_files_are_opened_first(network, tmp_path):
    hooked, _ = network
    plain, flipped = (
        extract_activations(hooked, TENSOR, tmp_path / kind, augmentation=Augmentation(kind))
        for kind in ("none", "flips")
    )
    assert plain.n_rows == flipped.n_rows and plain.manifest["shards"] != flipped.manifest["shards"]
    for number in range(N):
        Image.fromarray(pixels(number)).save(tmp_path / f"{number}.png")
    lines = ["image_id,patient_id,ill", *(f"{n},{n},{LABELS[n]}" for n in range(N))]
    (tmp_path / "images.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"open them first, such as load_images\(mapping, folder\)"):
        extract_activations(hooked, str(tmp_path), tmp_path / "no")
    mapping = {"table": "images.csv", "image": "{image_id}.png", "labels": {"Ill": "ill"}, "split": {"make": {}}}
    opened = load_images(mapping, tmp_path, image_size=SIZE)
    assert extract_activations(hooked, opened, tmp_path / "store").n_rows == N * 24
