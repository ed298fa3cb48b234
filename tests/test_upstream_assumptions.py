"""What the adapters take for granted about other packages, one canary each: a failure here names a cause elsewhere."""

import dataclasses
import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sae_lens import SAE, HookedSAETransformer, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

CHANGED = "upstream changed: "


class TinyRoot(HookedRootModule):
    def __init__(self) -> None:
        super().__init__()
        self.point = HookPoint()
        self.setup()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.point(x)


def build_sae(**metadata: Any) -> StandardSAE:
    return StandardSAE(StandardSAEConfig(d_in=4, d_sae=8, metadata=SAEMetadata(**metadata)))


# -- torch -------------------------------------------------------------------------------------------------------------


def test_safe_globals_takes_functions_with_the_name_they_have_in_the_file() -> None:
    with torch.serialization.safe_globals([(np.dtype, "some.where.dtype")]):
        assert (np.dtype, "some.where.dtype") in torch.serialization.get_safe_globals(), (
            CHANGED + "safe_globals and get_safe_globals no longer hold (object, name) pairs"
        )


def test_numpy_scalars_and_arrays_still_pickle_through_two_functions_of_multiarray() -> None:
    for value, name in ((np.float64(0), "scalar"), (np.empty(0), "_reconstruct")):
        function: Any = value.__reduce__()[0]
        assert function.__name__ == name, CHANGED + f"numpy pickles {type(value).__name__} through {function}"
        assert function.__module__.endswith(".multiarray"), CHANGED + f"{name} moved to {function.__module__}"


def test_the_refused_global_is_named_in_torchs_message(tmp_path: Path) -> None:
    torch.save(print, tmp_path / "refused.pt")
    with pytest.raises(Exception, match="GLOBAL print was not an allowed global"):
        torch.load(tmp_path / "refused.pt", weights_only=True)


def test_tensors_count_writes_in_place_and_views_share_the_count() -> None:
    tensor = torch.zeros(1, 2, 3, 4)
    before = tensor._version
    tensor.permute(0, 2, 3, 1).add_(1)
    assert tensor._version > before, CHANGED + "Tensor._version no longer tells writes in place, through views too"


# -- timm --------------------------------------------------------------------------------------------------------------


def test_timms_efficientnet_has_the_children_that_our_classifier_adopts() -> None:
    network = timm.create_model("tf_efficientnet_b2", num_classes=3)
    children = ["conv_stem", "bn1", "blocks", "conv_head", "bn2", "global_pool", "classifier"]
    assert [name for name, _ in network.named_children()] == children, (
        CHANGED + "timm's EfficientNet has other children"
    )
    for name in ("num_features", "num_classes", "drop_rate", "default_cfg", "feature_info"):
        assert hasattr(network, name), CHANGED + f"timm's EfficientNet has no {name}"


def test_timm_still_pads_for_the_image_where_mammo_clip_pads_statically() -> None:
    for name in ("tf_efficientnet_b5", "tf_efficientnet_b2"):
        dynamic = [path for path, m in timm.create_model(name).named_modules() if type(m).__name__ == "Conv2dSame"]
        expected = ["conv_stem", "blocks.1.0.conv_dw", "blocks.2.0.conv_dw", "blocks.3.0.conv_dw", "blocks.5.0.conv_dw"]
        assert dynamic == expected, CHANGED + f"in {name} other convolutions pad for the image than those we replace"


def test_timms_efficientnet_has_the_batch_norm_epsilon_of_the_original() -> None:
    norms = {m.eps for m in timm.create_model("tf_efficientnet_b2").modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms == {1e-3}, CHANGED + f"batch norm eps is {norms}"


def test_timms_activations_still_write_in_place_before_bn_drop_and_not_after_blocks() -> None:
    network = timm.create_model("tinynet_e").eval()
    assert network.bn1.act.inplace, CHANGED + "timm's SiLU is not in place any more; bn.drop could be hooked then"


def test_timm_lists_efficientnets_by_their_module() -> None:
    names = timm.list_models(module="efficientnet")
    assert {"tinynet_e", "tf_efficientnet_b5"} <= set(names), CHANGED + "timm.list_models(module=) lists other models"
    assert "resnet18" not in names, CHANGED + "timm.list_models(module=) ignores the module"


# -- transformer_lens --------------------------------------------------------------------------------------------------


def test_subclassing_hooked_root_module_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TinyRoot()


def test_hooked_root_module_has_the_methods_we_call_and_override() -> None:
    expected = {
        "setup": ["self"],
        "hooks": ["self", "fwd_hooks", "bwd_hooks", "reset_hooks_end", "clear_contexts"],
        "get_caching_hooks": ["self", "names_filter"],
        "add_caching_hooks": ["self", "names_filter"],
        "add_hook": ["self", "name", "hook"],
        "run_with_cache": ["self", "model_args", "names_filter"],
        "run_with_hooks": ["self", "model_args", "fwd_hooks", "bwd_hooks"],
        "reset_hooks": ["self"],
    }
    for name, parameters in expected.items():
        found = list(inspect.signature(getattr(HookedRootModule, name)).parameters)
        assert found[: len(parameters)] == parameters, CHANGED + f"HookedRootModule.{name} takes {found}"


def test_run_with_cache_and_run_with_hooks_go_through_the_methods_we_override() -> None:
    called = []

    class Root(TinyRoot):
        def hooks(self, *args: Any, **kwargs: Any) -> Any:
            called.append("hooks")
            return super().hooks(*args, **kwargs)

        def get_caching_hooks(self, *args: Any, **kwargs: Any) -> Any:
            called.append("get_caching_hooks")
            return super().get_caching_hooks(*args, **kwargs)

    Root().run_with_cache(torch.zeros(1))
    assert called == ["get_caching_hooks", "hooks"], CHANGED + f"run_with_cache calls {called}"
    Root().run_with_hooks(torch.zeros(1))
    assert called[2:] == ["hooks"], CHANGED + f"run_with_hooks calls {called[2:]}"


def test_setup_collects_hook_points_by_path_and_names_them() -> None:
    root = TinyRoot()
    assert list(root.hook_dict) == ["point"], CHANGED + "HookedRootModule.hook_dict is not {path: HookPoint}"
    assert root.point.name == "point", CHANGED + "setup() does not name hook points"


def test_hook_points_tell_whether_they_have_hooks() -> None:
    point = HookPoint()
    assert not point.has_hooks(), CHANGED + "HookPoint.has_hooks"
    point.add_hook(lambda activation, hook: activation + hook.missing)
    assert point.has_hooks(), CHANGED + "HookPoint.has_hooks does not see a hook that add_hook added"


# -- sae_lens ----------------------------------------------------------------------------------------------------------


def test_saes_have_exactly_the_hook_points_that_an_attached_sae_takes_over() -> None:
    names = {f"hook_sae_{name}" for name in ("input", "acts_pre", "acts_post", "recons", "error", "output")}
    found = set(build_sae().hook_dict)
    assert found == names, CHANGED + f"SAE hook points are {found}"


def test_encode_and_decode_take_any_leading_dimensions_and_call_the_hooks_of_the_sae_object() -> None:
    sae, seen = build_sae(), []
    sae.hook_sae_acts_post.add_hook(lambda acts, hook: seen.append((hook.name, acts.shape)))
    assert sae.decode(sae.encode(torch.zeros(2, 3, 5, 4))).shape == (2, 3, 5, 4), (
        CHANGED + "SAE.encode wants other shapes"
    )
    assert seen == [("hook_sae_acts_post", (2, 3, 5, 8))], CHANGED + "SAE.encode does not go through hook_sae_acts_post"


def test_sae_metadata_gives_none_for_what_is_not_there() -> None:
    assert build_sae().cfg.metadata.layout is None, CHANGED + "SAEMetadata raises for missing attributes"


def test_hooked_sae_transformer_has_the_verbs_and_argument_names_of_our_wrapper() -> None:
    expected = {
        "add_sae": {"sae", "use_error_term"},
        "reset_saes": {"act_names"},
        "saes": {"saes", "reset_saes_end", "use_error_term"},
        "run_with_saes": {"saes", "reset_saes_end", "use_error_term"},
        "run_with_cache_with_saes": {"saes", "reset_saes_end", "use_error_term"},
        "run_with_hooks_with_saes": {"saes", "reset_saes_end"},
    }
    for name, arguments in expected.items():
        found = set(inspect.signature(getattr(HookedSAETransformer, name)).parameters)
        assert arguments <= found, CHANGED + f"HookedSAETransformer.{name} takes {found}"


def test_the_standard_config_has_the_fields_that_our_converter_writes() -> None:
    fields = {field.name for field in dataclasses.fields(StandardSAEConfig)}
    written = {"d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations", "metadata"}
    assert written <= fields, CHANGED + f"StandardSAEConfig has no {written - fields}"


def test_the_standard_state_dict_has_the_names_and_shapes_that_our_converter_writes() -> None:
    found = {name: tuple(tensor.shape) for name, tensor in build_sae().state_dict().items()}
    expected = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,)}
    assert found == expected, CHANGED + f"a StandardSAE's state dict is {found}"


def test_the_standard_formula_is_the_releases() -> None:
    sae, x = build_sae(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_dec += 0.3
        sae.b_enc += 0.1
        latents = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
        torch.testing.assert_close(sae.encode(x), latents, msg=CHANGED + "StandardSAE.encode")
        torch.testing.assert_close(
            sae.decode(latents), latents @ sae.W_dec + sae.b_dec, msg=CHANGED + "StandardSAE.decode"
        )


def test_free_metadata_survives_saving_and_loading(tmp_path: Path) -> None:
    build_sae(hook_name="bn2.hook_out", layout="channels_last", nested={"mean": [0.3]}).save_model(tmp_path)
    metadata = SAE.load_from_disk(tmp_path).cfg.metadata
    assert (metadata.layout, metadata.nested) == ("channels_last", {"mean": [0.3]}), (
        CHANGED + "metadata keys are dropped"
    )


def test_converters_are_called_with_the_arguments_that_ours_take() -> None:
    calls: list[Any] = []

    def from_hub(**kwargs: Any) -> Any:
        calls.append(set(kwargs))
        raise StopAsyncIteration

    def from_disk(*args: Any, **kwargs: Any) -> Any:
        calls.append((len(args), set(kwargs)))
        raise StopAsyncIteration

    with pytest.raises(StopAsyncIteration):
        SAE.from_pretrained("owner/repo", "file.pt", converter=from_hub)
    with pytest.raises(StopAsyncIteration):
        SAE.load_from_disk("file.pt", converter=from_disk)
    expected = [{"repo_id", "folder_name", "device", "force_download", "cfg_overrides"}, (2, {"cfg_overrides"})]
    assert calls == expected, CHANGED + f"SAELens calls converters with {calls}"


# -- safetensors -------------------------------------------------------------------------------------------------------


def test_safetensors_begins_with_a_length_and_a_json_object_and_keeps_string_metadata(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "file.safetensors", {"key": '{"a": 1}'})
    head = (tmp_path / "file.safetensors").read_bytes()[:9]
    assert head[8:] == b"{", CHANGED + "a safetensors file does not begin with 8 bytes of length and a JSON object"
    with safe_open(tmp_path / "file.safetensors", framework="pt") as file:
        assert file.metadata()["key"] == '{"a": 1}', CHANGED + "safetensors metadata"
