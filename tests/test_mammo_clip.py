"""Mammo-CLIP files become timm EfficientNets that compute what the original computes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers_adapters import (
    DATA,
    N_FEATURES,
    fixture_checkpoint,
    fixture_downstream,
    fixture_input,
    fixture_state_dict,
    relative_error,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mammosae_plugin.adapters import (
    CheckpointFormatError,
    MammoClipClassifier,
    UnsafeCheckpointError,
    load_mammo_clip,
    new_classifier,
    save_classifier,
)
from mammosae_plugin.adapters.fast_inference import fold_batch_norms
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file


@pytest.fixture(scope="module")
def b2_downstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("b2") / "b2_ft_mass.pth"
    torch.save(fixture_downstream("b2"), path)
    return path


@pytest.fixture(scope="module")
def b2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("b2") / "b2-model-best-epoch-10.tar"
    torch.save(fixture_checkpoint("b2"), path)
    return path


def timm_model(model: MammoClipClassifier) -> torch.nn.Module:
    """The same weights in timm's own network, with timm's own padding."""
    network = timm.create_model(model.architecture, num_classes=model.n_class)
    network.load_state_dict(model.state_dict())
    return network.eval()


def refusal(path: Path, classifier: Path | None = None, error_type: type[Exception] = CheckpointFormatError) -> str:
    with pytest.raises(error_type) as caught:
        load_mammo_clip(path, classifier)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(content: dict[str, Any], change: Callable[[dict[str, Any]], Any], path: Path) -> Path:
    """Save the content with a change to (a shallow copy of) its model."""
    model = dict(content["model"])
    change(model)
    torch.save({**content, "model": model}, path)
    return path


# -- agreement with the original ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b5", "b2"])
def test_features_pooled_vector_and_logit_equal_the_original_at_1520_x_912(variant: str, tmp_path: Path) -> None:
    torch.save(fixture_checkpoint(variant), tmp_path / "pretraining.tar")
    torch.save(fixture_downstream(variant), tmp_path / "classifier.pth")
    model = load_mammo_clip(tmp_path / "pretraining.tar", tmp_path / "classifier.pth")
    expected = load_file(DATA / f"mammo_clip_{variant}_expected.safetensors")
    with torch.inference_mode():
        feature_map = model.forward_features(fixture_input())
        pooled = model.global_pool(feature_map)[0]
        logits = model.forward_head(feature_map)
        timms_own = timm_model(model).forward_features(fixture_input())
    assert feature_map.shape == (1, N_FEATURES[variant], 48, 29)
    assert relative_error(feature_map[0, :64], expected["features_first_64_channels"]) < 1e-4
    assert relative_error(pooled, expected["pooled"]) < 1e-4
    assert relative_error(logits[0], expected["logit"]) < 1e-4
    # So that nobody "simplifies" the static padding away: timm's own is far off here.
    assert relative_error(timms_own[0, :64], expected["features_first_64_channels"]) > 0.1


@pytest.mark.slow
def test_folded_batch_norms_keep_the_originals_features_at_1520_x_912(tmp_path: Path) -> None:
    torch.save(fixture_checkpoint("b5"), tmp_path / "pretraining.tar")
    model = load_mammo_clip(tmp_path / "pretraining.tar")
    images = fixture_input()
    folded, error = fold_batch_norms(model, images)
    assert error < 1e-4
    expected = load_file(DATA / "mammo_clip_b5_expected.safetensors")["features_first_64_channels"]
    with torch.inference_mode():
        assert relative_error(folded.forward_features(images)[0, :64], expected) < 1e-4


def test_static_and_timms_padding_agree_at_the_native_size_and_only_there(b2_downstream: Path) -> None:
    model = load_mammo_clip(b2_downstream)
    native, other = (
        torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)) for size in ((260, 260), (96, 64))
    )
    with torch.inference_mode():
        timms_own = timm_model(model)
        assert relative_error(model.forward_features(native), timms_own.forward_features(native)) < 1e-4
        assert relative_error(model.forward_features(other), timms_own.forward_features(other)) > 0.1


def test_a_forward_pass_is_features_then_head_and_repeats_bit_for_bit(b2_downstream: Path) -> None:
    model = load_mammo_clip(b2_downstream)
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(images)
        assert torch.equal(logits, model.forward_head(model.forward_features(images)))
        assert torch.equal(logits, model(images))
        assert torch.equal(logits, model(images.contiguous(memory_format=torch.channels_last)))
    assert logits.shape == (2, 1)
    assert not model.training


# -- what files are accepted -------------------------------------------------------------------------------------------


def test_a_pretraining_file_alone_gives_pooled_features(b2_checkpoint: Path) -> None:
    model = load_mammo_clip(b2_checkpoint)
    assert (model.architecture, model.num_features, model.n_class) == ("tf_efficientnet_b2", 1408, 0)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1408)
    assert model.source == {
        "kind": "pretraining",
        "variant": "b2",
        "files": ["b2-model-best-epoch-10.tar"],
        "sha256": [sha256_of_file(b2_checkpoint)],
    }


def test_mammo_fm_and_a_classifier_on_it_load_like_mammo_clip_b5(tmp_path: Path) -> None:
    """Mammo-FM: the same B5 image encoder beside a ModernBERT; here in DataParallel's form, with a density head."""
    content = fixture_checkpoint("b5")
    model = {key: tensor for key, tensor in content["model"].items() if not key.startswith("text_encoder.")}
    model |= {
        "text_encoder.text_encoder.layers.0.attn.Wqkv.weight": torch.zeros(6, 2),
        "text_encoder.text_encoder.embeddings.tok_embeddings.weight": torch.zeros(3, 2),
        "text_projection.projection.weight": torch.zeros(4, 2),
    }
    content["model"] = {f"module.{key}": tensor for key, tensor in model.items()}
    content["config"]["model"]["text_encoder"] = {"name": "answerdotai/ModernBERT-base", "pooling": "eos"}
    torch.save(content, tmp_path / "Mammo-FM_CLIP.tar")
    head = {
        "classifier.classification_head.weight": torch.arange(4.0 * 2048).reshape(4, 2048),
        "classifier.classification_head.bias": torch.arange(4.0),
    }
    torch.save({"model": head, "epoch": 3}, tmp_path / "density_lp.pth")
    found = load_mammo_clip(tmp_path / "Mammo-FM_CLIP.tar", tmp_path / "density_lp.pth")
    assert (found.architecture, found.num_features, found.n_class) == ("tf_efficientnet_b5", 2048, 4)
    assert (found.layer_aliases["layer_39"], found.source["variant"]) == ("bn2", "b5")
    assert torch.equal(found.classifier.weight, head["classifier.classification_head.weight"])
    original = fixture_state_dict("b5")
    assert torch.equal(found.conv_stem.weight, original["_conv_stem.weight"])
    assert torch.equal(found.get_parameter("blocks.6.2.conv_pwl.weight"), original["_blocks.38._project_conv.weight"])
    assert torch.equal(found.get_buffer("blocks.6.2.bn3.running_var"), original["_blocks.38._bn2.running_var"])


def test_a_linear_probe_keeps_the_pretrained_encoder_and_a_fine_tuned_file_brings_its_own(
    b2_checkpoint: Path, tmp_path: Path
) -> None:
    def tuned(model: dict[str, Any]) -> None:
        model["image_encoder._conv_head.weight"] = model["image_encoder._conv_head.weight"] * 2

    content = fixture_downstream("b2", n_class=3)
    torch.save(content, tmp_path / "birads_lp_seed_10.pth")
    changed(content, tuned, tmp_path / "birads_ft_seed_10.pth")
    probe, fine = (load_mammo_clip(b2_checkpoint, tmp_path / f"birads_{kind}_seed_10.pth") for kind in ("lp", "ft"))
    pretrained = load_mammo_clip(b2_checkpoint)
    assert torch.equal(probe.conv_head.weight, pretrained.conv_head.weight)
    assert torch.equal(fine.conv_head.weight, 2 * pretrained.conv_head.weight)
    assert (probe.n_class, fine.n_class) == (3, 3)
    assert torch.equal(probe.classifier.weight, fine.classifier.weight)


def test_a_downstream_file_wins_over_the_pretraining_file_with_encoder_and_head(
    b2_checkpoint: Path, b2_downstream: Path, tmp_path: Path
) -> None:
    def other_encoder(model: dict[str, Any]) -> None:
        model["image_encoder._conv_head.weight"] = model["image_encoder._conv_head.weight"] + 1

    path = changed(fixture_checkpoint("b2"), other_encoder, tmp_path / "other.tar")
    alone, both = load_mammo_clip(b2_downstream), load_mammo_clip(path, b2_downstream)
    assert both.source["files"] == ["other.tar", "b2_ft_mass.pth"]
    for name, tensor in alone.state_dict().items():
        assert torch.equal(both.state_dict()[name], tensor), name


def test_a_downstream_file_without_encoder_takes_the_pretraining_files(b2_checkpoint: Path, tmp_path: Path) -> None:
    content = fixture_downstream("b2", n_class=4)
    head = {key: tensor for key, tensor in content["model"].items() if key.startswith("classifier.")}
    torch.save({**content, "model": head}, tmp_path / "head.pth")
    model = load_mammo_clip(b2_checkpoint, tmp_path / "head.pth")
    assert model.n_class == 4
    assert torch.equal(model.conv_head.weight, fixture_state_dict("b2")["_conv_head.weight"])
    assert "no image encoder" in refusal(tmp_path / "head.pth")


@pytest.mark.parametrize("n_class", [3, 4])
def test_the_number_of_classes_is_read_from_the_head(n_class: int, tmp_path: Path) -> None:
    content = fixture_downstream("b2", n_class=n_class)
    torch.save(content, tmp_path / "birads.pth")
    model = load_mammo_clip(tmp_path / "birads.pth")
    assert model.n_class == n_class
    assert torch.equal(model.classifier.weight, content["model"]["classifier.classification_head.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_prefixes_of_wrappers_and_missing_batch_norm_counters_are_tolerated(
    b2_downstream: Path, tmp_path: Path, prefix: str
) -> None:
    content = fixture_downstream("b2", prefix=prefix)
    content["model"] = {key: tensor for key, tensor in content["model"].items() if "num_batches_tracked" not in key}
    torch.save(content, tmp_path / "parallel.pth")
    expected, found = (
        load_mammo_clip(b2_downstream).state_dict(),
        load_mammo_clip(tmp_path / "parallel.pth").state_dict(),
    )
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_loading_leaves_the_global_random_state_alone(b2_downstream: Path) -> None:
    before = torch.get_rng_state()
    load_mammo_clip(b2_downstream)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    content = fixture_downstream("b2")
    content["model"] = {key: t.half() if t.is_floating_point() else t for key, t in content["model"].items()}
    torch.save(content, tmp_path / "half.pth")
    assert {p.dtype for p in load_mammo_clip(tmp_path / "half.pth").parameters()} == {torch.float32}


def test_the_state_dict_and_module_paths_are_timms(b2_downstream: Path) -> None:
    model = load_mammo_clip(b2_downstream)
    network = timm.create_model("tf_efficientnet_b2", num_classes=1)
    assert [(k, v.shape) for k, v in model.state_dict().items()] == [
        (k, v.shape) for k, v in network.state_dict().items()
    ]
    assert [name for name, _ in model.named_modules()] == [name for name, _ in network.named_modules()]


@pytest.mark.parametrize(("architecture", "last"), [("tf_efficientnet_b5", 39), ("tf_efficientnet_b2", 23)])
def test_layer_aliases_count_the_blocks_and_end_with_the_final_map(architecture: str, last: int) -> None:
    aliases = new_classifier(architecture, 0, seed=0).layer_aliases
    assert list(aliases) == [f"layer_{i}" for i in range(last + 1)]
    assert aliases["layer_0"] == "blocks.0.0"
    assert aliases[f"layer_{last}"] == "bn2"
    if last == 39:  # B5's stages have 3, 5, 5, 7, 7, 9 and 3 blocks
        assert (aliases["layer_3"], aliases["layer_38"]) == ("blocks.1.0", "blocks.6.2")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_keys_are_named_and_counted(tmp_path: Path) -> None:
    def damage(model: dict[str, Any]) -> None:
        for number in range(4):
            del model[f"image_encoder._blocks.{number}._project_conv.weight"]
        model["image_encoder._fc.weight"] = torch.zeros(2)
        model["image_encoder._blocks.5._bn1.weight"] = torch.zeros(7)

    message = refusal(changed(fixture_checkpoint("b2"), damage, tmp_path / "damaged.tar"))
    assert "4 missing (_blocks.0._project_conv.weight, _blocks.1._project_conv.weight, " in message
    assert "1 unexpected (_fc.weight)" in message
    assert "1 of another shape (_blocks.5._bn1.weight (7,) instead of (144,))" in message


def test_a_classifier_with_other_layers_than_a_linear_head_is_refused(tmp_path: Path) -> None:
    def hidden_layer(model: dict[str, Any]) -> None:
        model["classifier.hidden.weight"] = torch.zeros(4, 4)

    def wrong_bias(model: dict[str, Any]) -> None:
        model["classifier.classification_head.bias"] = torch.zeros(5)

    def wrong_width(model: dict[str, Any]) -> None:
        model["classifier.classification_head.weight"] = torch.zeros(1, 2048)

    def convolution(model: dict[str, Any]) -> None:
        model["classifier.classification_head.weight"] = torch.zeros(1, 1408, 1, 1)

    content = fixture_downstream("b2")
    assert "classifier.hidden.weight" in refusal(changed(content, hidden_layer, tmp_path / "a.pth"))
    assert "bias (5,) instead of (1,)" in refusal(changed(content, wrong_bias, tmp_path / "b.pth"))
    assert "weight (1, 2048) instead of (1, 1408)" in refusal(changed(content, wrong_width, tmp_path / "c.pth"))
    assert "not a linear layer" in refusal(changed(content, convolution, tmp_path / "d.pth"))


@pytest.mark.parametrize(
    ("stem", "head", "said"), [(32, 1280, "b0 or b1"), (40, 1536, "b3"), (64, 2560, "b7"), (33, 99, "stem width 33")]
)
def test_another_efficientnet_is_named(stem: int, head: int, said: str, tmp_path: Path) -> None:
    model = {
        "image_encoder._conv_stem.weight": torch.zeros(stem, 3, 3, 3),
        "image_encoder._conv_head.weight": torch.zeros(head, 8, 1, 1),
    }
    torch.save({"model": model, "config": {"model": {"image_encoder": {"name": "some-name"}}}}, tmp_path / "other.tar")
    message = refusal(tmp_path / "other.tar")
    assert said in message
    assert "'some-name'" in message


def test_an_encoder_that_is_no_efficientnet_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"image_encoder.layer1.0.conv1.weight": torch.zeros(2)}}, tmp_path / "resnet.tar")
    assert "another architecture" in refusal(tmp_path / "resnet.tar")


def test_weights_that_contradict_the_configuration_are_refused(tmp_path: Path) -> None:
    for name, said in (("tf_efficientnet_b5_ns-detect", "b5"), ("tf_efficientnet_b3", "b3")):
        content = fixture_checkpoint("b2")
        content["config"] = {"model": {"image_encoder": {"name": name}}}
        torch.save(content, tmp_path / "contradiction.tar")
        message = refusal(tmp_path / "contradiction.tar")
        assert f"its weights are an EfficientNet b2, its configuration says {said}" in message


def test_a_classifier_of_another_variant_than_the_checkpoint_is_refused(b2_checkpoint: Path, tmp_path: Path) -> None:
    model = {
        "image_encoder._conv_stem.weight": torch.zeros(48, 3, 3, 3),
        "image_encoder._conv_head.weight": torch.zeros(2048, 8, 1, 1),
        "classifier.classification_head.weight": torch.zeros(1, 2048),
    }
    torch.save({"model": model}, tmp_path / "b5.pth")
    assert "give two files of one variant" in refusal(b2_checkpoint, tmp_path / "b5.pth")


def test_text_only_and_foreign_checkpoints_are_refused(b2_checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"model": {"text_encoder.weight": torch.zeros(2)}}, tmp_path / "text.tar")
    assert "no image encoder (image_encoder.*): its model holds text_encoder" in refusal(tmp_path / "text.tar")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "foreign.pt")
    assert "no entry 'model', it holds state_dict, epoch" in refusal(tmp_path / "foreign.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    assert "it holds a Tensor" in refusal(tmp_path / "tensor.pt")
    assert "give a downstream classifier file" in refusal(b2_checkpoint, b2_checkpoint)


def test_missing_files_and_malicious_files_are_refused(b2_checkpoint: Path, tmp_path: Path) -> None:
    assert "missing.tar cannot be read" in refusal(tmp_path / "missing.tar", error_type=InputError)
    torch.save({"model": print}, tmp_path / "evil.pth")
    assert "print" in refusal(b2_checkpoint, tmp_path / "evil.pth", error_type=UnsafeCheckpointError)


# -- our own classifiers -----------------------------------------------------------------------------------------------


def test_new_classifiers_are_equal_for_equal_seeds_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (new_classifier("tinynet_e", 1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv_stem.weight, other.conv_stem.weight)
    assert (first.architecture, first.n_class, first.static_padding) == ("tinynet_e", 1, {})


def test_a_new_classifier_computes_what_timms_network_computes() -> None:
    model = new_classifier("tinynet_e", 2, seed=0)
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), timm_model(model)(images), rtol=1e-4, atol=1e-5)


def test_new_classifiers_of_another_family_or_with_a_misspelt_name_are_refused() -> None:
    with pytest.raises(InputError, match=r"'tinynet_f' is not an EfficientNet .* did you mean tinynet_e"):
        new_classifier("tinynet_f", 1, seed=0)
    with pytest.raises(InputError, match="not an EfficientNet"):
        new_classifier("resnet18", 1, seed=0)
    with pytest.raises(InputError, match="0 or more"):
        new_classifier("tinynet_e", -1, seed=0)


@pytest.mark.parametrize("n_class", [0, 1, 4])
def test_a_saved_classifier_comes_back_bit_for_bit(n_class: int, tmp_path: Path) -> None:
    model = new_classifier("tinynet_e", n_class, seed=0)
    metadata = {"concept": "mass", "classes": [0, 1], "preprocessing": {"mean": 0.3089279}}
    save_classifier(model, tmp_path / "mass.safetensors", metadata=metadata)
    found = load_mammo_clip(tmp_path / "mass.safetensors")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found(images), model(images))
    assert (found.architecture, found.n_class, found.training) == ("tinynet_e", n_class, False)
    assert found.source["kind"] == "saved_classifier"
    assert found.source["files"] == ["mass.safetensors"]
    assert found.source["metadata"] == metadata
    assert found.source["trained_from"] == {"kind": "random", "seed": 0}


def test_a_saved_mammo_clip_classifier_keeps_its_static_padding(b2_downstream: Path, tmp_path: Path) -> None:
    model = load_mammo_clip(b2_downstream)
    save_classifier(model, tmp_path / "tuned.safetensors", metadata={})
    found = load_mammo_clip(tmp_path / "tuned.safetensors")
    assert found.static_padding == model.static_padding == {
        "conv_stem": (0, 1, 0, 1),
        "blocks.1.0.conv_dw": (0, 1, 0, 1),
        "blocks.2.0.conv_dw": (2, 2, 2, 2),
        "blocks.3.0.conv_dw": (1, 1, 1, 1),
        "blocks.5.0.conv_dw": (2, 2, 2, 2),
    }  # fmt: skip
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found(images), model(images))


def test_metadata_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = new_classifier("tinynet_e", 1, seed=0)
    for bad in (np.float32(1), float("nan")):
        with pytest.raises(InputError, match="not plain JSON"):
            save_classifier(model, tmp_path / "bad.safetensors", metadata={"auroc": bad})
    assert list(tmp_path.iterdir()) == []


def test_saved_classifiers_that_are_damaged_foreign_or_newer_are_refused(tmp_path: Path, b2_checkpoint: Path) -> None:
    path = tmp_path / "mass.safetensors"
    save_classifier(new_classifier("tinynet_e", 1, seed=0), path, metadata={})
    assert "give it alone" in refusal(path, b2_checkpoint, error_type=InputError)
    assert "give it alone" in refusal(b2_checkpoint, path, error_type=InputError)

    content = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal(tmp_path / "cut.safetensors")
    (tmp_path / "newer.safetensors").write_bytes(content.replace(b'version\\": 1', b'version\\": 9', 1))
    assert "format version 9" in refusal(tmp_path / "newer.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    assert "not one that save_classifier wrote" in refusal(tmp_path / "foreign.safetensors")

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    save_file(tensors, tmp_path / "header.safetensors", {"mammosae_classifier": '{"format_version": 1}'})
    assert "damaged header" in refusal(tmp_path / "header.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, tmp_path / "headless.safetensors", header)
    assert "1 missing (classifier.bias)" in refusal(tmp_path / "headless.safetensors")


def test_a_copied_classifier_can_be_trained_and_the_original_stays(b2_downstream: Path) -> None:
    model = new_classifier("tinynet_e", 1, seed=0)
    trained = copy.deepcopy(model).train()
    before = model.conv_stem.weight.clone()
    trained(torch.randn(2, 3, 64, 64)).sum().backward()
    torch.optim.SGD(trained.parameters(), lr=0.1).step()
    assert torch.equal(model.conv_stem.weight, before)
    assert not torch.equal(trained.conv_stem.weight, before)
