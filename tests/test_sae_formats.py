"""SAEs that others saved, as SAELens's: latents and reconstructions equal those of the library that wrote the files.

Each folder of `data/sae_formats` holds what a library wrote, and in `expected.safetensors` rows with the latents and
reconstructions that its own code gave in float32; the script that made it lies beside. A format adds a row to
`FIXTURES`.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_adapters import DATA
from sae_lens import SAE
from safetensors.torch import load_file, save_file

import mammosae_plugin as mp
from mammosae_plugin.adapters import CheckpointFormatError, inspect_checkpoint, load_sae, load_vision_sae
from mammosae_plugin.adapters.sae_formats import FORMATS, disk_converter
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file

FOLDER = DATA / "sae_formats"


@dataclass(frozen=True)
class Fixture:
    """What a library wrote, and what it becomes.

    Attributes:
        folder: its name in `data/sae_formats`.
        format: whose it is.
        architecture: SAELens's.
        file: the file of weights in the folder.
        said: what the metadata say besides.
        alone: whether the file can be read without the folder's other files.
    """

    folder: str
    format: str
    architecture: str
    file: str
    said: dict[str, Any] = field(default_factory=dict)
    alone: bool = True

    @property
    def path(self) -> Path:
        return FOLDER / self.folder

    @property
    def beside(self) -> Path:
        """The folder with what belongs to it."""
        return self.path if self.path.is_dir() else self.path.parent


_DL = {"model_name": "some/vit", "source_layer": 3, "source_submodule": "resid_post_layer_3"}
FIXTURES = (
    *(
        Fixture(f"dictionary_learning_{name}", "dictionary_learning", architecture, "ae.pt", {**_DL, **said}, alone)
        for name, architecture, said, alone in (
            ("standard", "standard", {"dictionary_class": "AutoEncoder", "decoder_normalized": True}, True),
            ("new", "standard", {"dictionary_class": "AutoEncoderNew"}, True),
            ("gated", "gated", {"dictionary_class": "GatedAutoEncoder"}, True),
            ("jumprelu", "jumprelu", {"dictionary_class": "JumpReluAutoEncoder"}, False),
            ("topk", "topk", {"dictionary_class": "AutoEncoderTopK"}, False),
            ("batchtopk", "jumprelu", {"dictionary_class": "BatchTopKSAE", "k": 4}, False),
            ("matryoshka", "jumprelu", {"levels": [3, 10, 20], "k": 4}, True),
        )
    ),
    Fixture(
        "sparsify_topk/layers.3.mlp",
        "sparsify",
        "topk",
        "sae.safetensors",
        {"source_layer": "layers.3.mlp", "hook_name": "layers.3.mlp.hook_out"},
        alone=False,
    ),
    *(
        Fixture(
            f"overcomplete_{name}/sae.pth", "overcomplete", architecture, "sae.pth", {"dictionary_class": said}, alone
        )
        for name, architecture, said, alone in (
            ("standard", "standard", "SAE", False),
            ("batchnorm", "standard", "SAE", False),
            ("tied", "standard", "SAE", False),
            ("topk", "topk", "TopKSAE", False),
            ("batchtopk", "jumprelu", "BatchTopKSAE", False),
            ("jump", "jumprelu", "JumpSAE", False),
        )
    ),
)
every = pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.folder)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@every
def test_latents_and_reconstructions_are_those_of_the_library(fixture: Fixture) -> None:
    expected = load_file(fixture.beside / "expected.safetensors")
    sae = load_sae(fixture.path)
    with torch.no_grad():
        latents = sae.encode(expected["rows"])
        reconstructions = sae.decode(latents)
    assert sae.cfg.architecture() == fixture.architecture
    assert expected["latents"].count_nonzero() > 0
    assert torch.equal(latents != 0, expected["latents"] != 0)
    assert relative(latents, expected["latents"]) < 1e-6
    assert relative(reconstructions, expected["reconstructions"]) < 1e-6


@every
def test_the_metadata_say_where_an_sae_came_from_and_where_it_belongs(fixture: Fixture) -> None:
    sae = load_sae(fixture.path)
    metadata = sae.cfg.metadata
    weights = fixture.beside / fixture.file
    assert metadata.source_format == fixture.format
    assert (metadata.source_file, metadata.source_sha256) == (fixture.path.name, sha256_of_file(weights))
    assert {name: metadata[name] for name in fixture.said} == fixture.said
    json.dumps(sae.cfg.to_dict())


@every
def test_a_folder_is_inspected_by_name_with_library_widths_and_architecture(fixture: Fixture) -> None:
    report = inspect_checkpoint(fixture.path)
    sae = load_sae(fixture.path)
    assert (report.kind, report.loads_with, report.problem) == (fixture.format, "load_sae", None)
    assert (report.d_in, report.d_sae, report.architecture) == (sae.cfg.d_in, sae.cfg.d_sae, fixture.architecture)
    assert report.library in {one.library for one in FORMATS}
    assert {file.name for file in report.files} >= {fixture.file}


@every
def test_each_is_a_converter_of_saelens_and_comes_back_after_saving(fixture: Fixture, tmp_path: Path) -> None:
    expected = load_sae(fixture.path)
    found = SAE.load_from_disk(fixture.path, converter=disk_converter(fixture.format))
    assert found.cfg.to_dict() == expected.cfg.to_dict()
    found.save_model(tmp_path)
    again = load_sae(tmp_path)
    assert again.cfg.metadata.source_format == fixture.format
    for one in (found, again, load_vision_sae(fixture.path)):
        assert all(torch.equal(value, one.state_dict()[name]) for name, value in expected.state_dict().items())


@every
def test_a_file_alone_is_read_or_refused_with_a_way_out_that_works(fixture: Fixture, tmp_path: Path) -> None:
    weights = Path(shutil.copy(fixture.beside / fixture.file, tmp_path))
    if not fixture.alone:
        with pytest.raises(CheckpointFormatError, match=r"config\.json|cfg\.json"):
            load_sae(weights)
        for file in fixture.beside.glob("*.json"):
            shutil.copy(file, tmp_path)
    expected = load_sae(fixture.path).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_sae(weights).state_dict().items())


def test_load_sae_is_offered_at_the_top_and_knows_its_formats() -> None:
    assert mp.load_sae is load_sae
    names = [one.name for one in FORMATS]
    assert len(set(names)) == len(names)
    assert {fixture.format for fixture in FIXTURES} <= set(names)
    with pytest.raises(InputError, match="is no format of SAEs; known are saelens, mammo-sae"):
        load_sae(FIXTURES[0].path, format="other")
    with pytest.raises(CheckpointFormatError, match="is not a Mammo-SAE checkpoint: it holds"):
        load_sae(FIXTURES[0].path, format="mammo-sae")


@pytest.mark.parametrize(
    ("fixture", "change", "said"),
    [
        ("sparsify_topk/layers.3.mlp", {"transcode": True}, "is an SAE as sparsify saves it, a transcoder"),
        ("sparsify_topk/layers.3.mlp", {"skip_connection": True}, "with a linear skip connection"),
        ("sparsify_topk/layers.3.mlp", {"activation": "groupmax"}, "with the activation 'groupmax', which no SAE"),
        ("sparsify_topk/layers.3.mlp", {"k": 99}, "has k 99 for 20 latents"),
        ("dictionary_learning_topk", {"trainer": {"dict_class": "IdentityDict"}}, "is of the class IdentityDict"),
        (
            "dictionary_learning_topk",
            {"trainer": {"dict_class": "AutoEncoder"}},
            "should be an AutoEncoder .* but lacks",
        ),
        ("dictionary_learning_topk", {"trainer": {}}, "of AutoEncoderTopK and of BatchTopKSAE alike"),
        ("sparsify_topk/layers.3.mlp", {"k": True}, "has k True for 20 latents; give it in its cfg.json"),
        ("sparsify_topk/layers.3.mlp", {"k": 7.5}, "has k 7.5 for 20 latents; give it in its cfg.json"),
        ("overcomplete_topk", {"top_k": True}, "has top_k True for 20 latents; give it in the config.json beside it"),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_reason(
    fixture: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(FOLDER / fixture, tmp_path / "layers.3.mlp")
    config = next(folder.glob("*.json"))
    own = config.read_text()
    config.write_text(json.dumps({**json.loads(own), **change}))
    (folder / "expected.safetensors").unlink()  # a folder with one file of weights is that file
    with pytest.raises(CheckpointFormatError, match=said) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)
    report = inspect_checkpoint(folder)
    assert (report.loads_with, report.problem) == (None, str(caught.value))
    config.write_text(own)  # of those that say what to write there
    assert load_sae(folder).cfg.d_sae == 20


def test_a_folder_of_several_saes_names_them_and_each_loads_by_its_name(tmp_path: Path) -> None:
    for layer in ("layers.3.mlp", "layers.4.mlp"):
        shutil.copytree(FOLDER / "sparsify_topk/layers.3.mlp", tmp_path / layer)
    with pytest.raises(InputError, match=r"2 in folders: layers\.3\.mlp, layers\.4\.mlp; name one as filename="):
        load_sae(tmp_path)
    assert load_sae(tmp_path, filename="layers.4.mlp").cfg.metadata.hook_name == "layers.4.mlp.hook_out"


def test_a_training_of_dictionary_learning_that_was_interrupted_takes_rows_as_they_are(tmp_path: Path) -> None:
    source = FOLDER / "dictionary_learning_batchtopk"
    expected, state = load_sae(source).state_dict(), torch.load(source / "ae.pt", weights_only=True)
    for name in ("encoder.bias", "b_dec", "threshold"):
        state[name] = state[name] / 4
    torch.save({"step": 3, "ae": state, "norm_factor": 4.0}, tmp_path / "ae.pt")
    shutil.copy(source / "config.json", tmp_path)
    found = load_sae(tmp_path).state_dict()
    assert all(torch.allclose(value, found[name]) for name, value in expected.items())


def test_a_checkpoint_below_the_settings_of_its_training_finds_them(tmp_path: Path) -> None:
    source = FOLDER / "dictionary_learning_topk"
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(source / "config.json", tmp_path)
    path = Path(shutil.copy(source / "ae.pt", tmp_path / "checkpoints" / "ae_100.pt"))
    assert load_sae(path).cfg.architecture() == "topk"


def test_bare_weights_under_saelens_names_load_where_their_format_is_named(tmp_path: Path) -> None:
    sae = load_sae(FOLDER / "dictionary_learning_gated")
    path = tmp_path / "weights.pt"
    torch.save(sae.state_dict(), path)
    with pytest.raises(
        CheckpointFormatError, match='load_sae\\(path, format="saelens-weights"\\) takes them for a gated'
    ):
        load_sae(path)
    sae.save_model(tmp_path / "saved")
    (tmp_path / "with").mkdir()
    shutil.copy(tmp_path / "saved" / "cfg.json", tmp_path / "with")
    save_file(torch.load(path, weights_only=True), tmp_path / "with" / "sae_weights.safetensors")
    for found in (load_sae(path, format="saelens-weights"), load_sae(tmp_path / "with")):  # what it says
        assert type(found) is type(sae)
        assert all(torch.equal(value, found.state_dict()[name]) for name, value in sae.state_dict().items())


def test_sae_for_vlm_spells_a_class_in_its_own_way_and_names_no_network(tmp_path: Path) -> None:
    source = FOLDER / "dictionary_learning_matryoshka"
    shutil.copy(source / "ae.pt", tmp_path)
    trainer = {"dict_class": "MatroyshkaBatchTopKSAE", "lm_name": "", "layer": "", "submodule_name": "", "k": 4}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    found = load_sae(tmp_path)
    assert (found.cfg.metadata.levels, found.cfg.metadata.model_name) == ([3, 10, 20], None)
    assert torch.equal(found.W_enc, load_sae(source).W_enc)


@pytest.mark.parametrize("folder", ["dictionary_learning_batchtopk", "dictionary_learning_standard"])
def test_nothing_is_computed_in_the_half_precision_of_a_file(folder: str, tmp_path: Path) -> None:
    shutil.copy(FOLDER / folder / "config.json", tmp_path)
    narrow = {
        name: value.bfloat16() for name, value in torch.load(FOLDER / folder / "ae.pt", weights_only=True).items()
    }
    if "threshold" in narrow:
        narrow["threshold"] = torch.tensor(0.6)  # which bfloat16 does not hold
    if "bias" in narrow:  # decoder columns of other lengths than 1, which are taken into latents
        narrow["decoder.weight"] = narrow["decoder.weight"] * 3
    torch.save(narrow, tmp_path / "ae.pt")
    found = load_sae(tmp_path).state_dict()
    torch.save({name: value.float() for name, value in narrow.items()}, tmp_path / "ae.pt")
    assert all(torch.equal(value, found[name]) for name, value in load_sae(tmp_path).state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {"threshold": torch.tensor(float("nan"))}, "20 of 20 values in threshold that are NaN"),
        (
            lambda state: state | {"encoder.weight": state["encoder.weight"].to_sparse()},
            "sparse_coo; save it as a dense",
        ),
        (lambda state: state | {"encoder.weight": state["encoder.weight"].int()}, "int32, torch.strided; save it as"),
        (lambda state: {name: value.to("meta") for name, value in state.items()}, "as no values"),
    ],
)
def test_weights_that_nothing_can_be_computed_with_are_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], said: str, tmp_path: Path
) -> None:
    source = FOLDER / "dictionary_learning_batchtopk"
    shutil.copy(source / "config.json", tmp_path)
    torch.save(change(torch.load(source / "ae.pt", weights_only=True)), tmp_path / "ae.pt")
    with pytest.raises(CheckpointFormatError, match=said) as caught:
        load_sae(tmp_path)
    assert inspect_checkpoint(tmp_path).problem == str(caught.value)
    shutil.copy(source / "ae.pt", tmp_path)  # dense tensors of floats
    assert load_sae(tmp_path).cfg.d_sae == 20


def test_a_file_that_says_how_it_is_used_is_not_taken_for_bare_weights() -> None:
    place = FOLDER / "saev-4-relu.pt"
    with pytest.raises(CheckpointFormatError, match="which says how it is used.*leave format= out"):
        load_sae(place, format="saelens-weights")
    assert load_sae(place).cfg.metadata.source_format == "saev"


# -- hints, each followed ----------------------------------------------------------------------------------------------


def _states(name: str, **change: Any) -> dict[str, Any]:
    """What the file of weights of overcomplete holds, changed; an entry of None is taken out."""
    found = torch.load(FOLDER / f"overcomplete_{name}" / "sae.pth", weights_only=True) | change
    return {key: value for key, value in found.items() if value is not None}


_LONG = {"dictionary._weights": 3 * torch.nn.functional.normalize(torch.arange(160.0).reshape(20, 8).sin(), dim=1)}
_TOP_K = json.loads((FOLDER / "overcomplete_topk" / "config.json").read_text())
_BATCH = json.loads((FOLDER / "overcomplete_batchtopk" / "config.json").read_text())
OVERCOMPLETE: list[tuple[str, dict[str, Any], dict[str, Any], str, dict[str, Any]]] = [
    # whose, tensors changed, config.json, what is said, the config.json that it says to write
    ("standard", {}, {}, 'does not say of which class.*"sae_class": "SAE"', {"sae_class": "SAE"}),
    ("topk", {}, {"sae_class": "TopKSAE"}, "has top_k None for 20 latents; give it in the config.json", _TOP_K),
    ("topk", {}, {**_TOP_K, "top_k": 7.5}, "has top_k 7.5 for 20 latents; give it in the config.json", _TOP_K),
    ("batchtopk", {}, {"sae_class": "BatchTopKSAE"}, "has running_threshold None; give the number in the", _BATCH),
    ("batchtopk", {}, {**_BATCH, "running_threshold": True}, "has running_threshold True; give the number", _BATCH),
    (
        "standard",
        _LONG,
        {"sae_class": "SAE"},
        'not normalised to length 1.*"normalization": one of l2, max_l2',
        {"normalization": "max_l2"},
    ),
    (
        "standard",
        {},
        {"sae_class": "SAE", "normalization": "l3"},
        "'l3' in its config.json; known are l2",
        {"normalization": "l2"},
    ),
]


@pytest.mark.parametrize(("name", "change", "config", "said", "then"), OVERCOMPLETE, ids=range(len(OVERCOMPLETE)))
def test_a_refusal_of_overcomplete_says_what_to_write_and_that_is_read(
    name: str, change: dict[str, Any], config: dict[str, Any], said: str, then: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(_states(name, **change), tmp_path / "sae.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointFormatError, match=said) as caught:
        load_sae(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({**config, **then}))
    found = load_sae(tmp_path)
    if not change:
        expected = load_sae(FOLDER / f"overcomplete_{name}" / "sae.pth")
        assert all(torch.equal(value, found.state_dict()[key]) for key, value in expected.state_dict().items())
    else:  # all rows have the largest length
        torch.testing.assert_close(found.W_dec.norm(dim=1), torch.full((20,), found.W_dec.norm(dim=1)[0].item()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder.mlp_blocks.0.weight": torch.zeros(2)}, "with an encoder of several layers, which no SAE"),
        ({"dictionary._weights": None}, "with a dictionary of another form than a matrix"),
        ({"encoder.final_block.0.weight": None}, "with an encoder that is not one linear layer"),
        ({"encoder.final_block.1.weight": torch.zeros(20)}, "with a layer norm in its encoder.*a batch norm can be"),
    ],
)
def test_what_overcomplete_has_and_saelens_has_not_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    torch.save(_states("standard", **change), tmp_path / "sae.pt")
    shutil.copy(FOLDER / "overcomplete_standard" / "config.json", tmp_path)
    with pytest.raises(CheckpointFormatError, match=said):
        load_sae(tmp_path)
    assert load_sae(FOLDER / "overcomplete_batchnorm" / "sae.pth").cfg.d_sae == 20  # what the last one says


def test_a_class_that_tensors_leave_open_is_read_as_the_refusal_says(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "dictionary_learning_batchtopk" / "ae.pt", tmp_path)
    with pytest.raises(CheckpointFormatError, match='{"trainer": {"dict_class": "AutoEncoderTopK"}} or "BatchTopKSAE"'):
        load_sae(tmp_path / "ae.pt")
    for name, architecture in (("AutoEncoderTopK", "topk"), ("BatchTopKSAE", "jumprelu")):
        (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name}}))
        assert load_sae(tmp_path).cfg.architecture() == architecture


@pytest.mark.parametrize("k", [True, 7.5, 0, 99, "4", None])
def test_a_k_that_is_no_number_of_latents_is_refused_and_one_that_is_helps(k: Any, tmp_path: Path) -> None:
    state = torch.load(FOLDER / "dictionary_learning_topk" / "ae.pt", weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "k"}, tmp_path / "ae.pt")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", "k": k}}))
    with pytest.raises(CheckpointFormatError, match=rf"has k {k!r} for 20 latents; give the number, in the file or as"):
        load_sae(tmp_path)
    config.write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", "k": 4}}))
    assert load_sae(tmp_path).cfg.k == 4
    if isinstance(k, (float, bool)):
        torch.save(state | {"k": torch.tensor(k)}, tmp_path / "ae.pt")
        with pytest.raises(CheckpointFormatError, match=f"has k {k!r} for 20 latents"):
            load_sae(tmp_path)
        torch.save(state | {"k": torch.tensor(4.0)}, tmp_path / "ae.pt")  # of a file made float as a whole
        assert load_sae(tmp_path).cfg.k == 4


def test_a_folder_with_one_file_of_weights_is_that_file(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "saev-5-relu.pt", tmp_path / "sae.pt")
    (tmp_path / "notes.txt").write_text("of the training")
    found = load_sae(tmp_path)
    assert (found.cfg.metadata.source_format, found.cfg.metadata.source_file) == ("saev", "sae.pt")
    assert inspect_checkpoint(tmp_path).kind == "saev"
    assert SAE.load_from_disk(tmp_path, converter=disk_converter()).cfg.to_dict() == found.cfg.to_dict()
    shutil.copy(FOLDER / "openai-relu.pt", tmp_path / "other.pt")
    with pytest.raises(InputError, match="holds no SAE.*; name a file in it with filename="):
        load_sae(tmp_path)
    with pytest.raises(InputError, match=r"nope\.pt does not exist; give a checkpoint"):
        load_sae(tmp_path, filename="nope.pt")
    assert load_sae(tmp_path, filename="other.pt").cfg.metadata.source_format == "openai"  # what they say
    overcomplete = tmp_path / "overcomplete"
    overcomplete.mkdir()
    for name in ("config.json", "sae.pth"):
        shutil.copy(FOLDER / "overcomplete_topk" / name, overcomplete)
    assert load_sae(overcomplete).cfg.metadata.source_format == "overcomplete"
