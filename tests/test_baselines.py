import sys

import pytest
import torch
from helpers_layers import layer_of

from mammosae_plugin.analysis.localization import localize_baselines
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.latents import gradcam as baselines
from mammosae_plugin.latents.gradcam import GradCam

pytest.importorskip("captum", reason="Grad-CAM is an extra")

FAMILIES = ("efficientnet", "resnet", "convnext", "swin", "vit", "vit_registers", "torch_cnn")


def one_logit(layer, *, seed=3):
    """A head with one output for what the model's own head reads."""
    torch.manual_seed(seed)
    return torch.nn.Linear(layer.head.in_features, 1)


def grad_cam_by_autograd(layer, head):
    """Grad-CAM written out: gradient at the hook point in a pass of the whole network, mean over positions, ReLU."""
    kept = {}

    def keep(value, hook):
        kept["value"] = value.detach().requires_grad_()
        return kept["value"]

    with layer.model.head_input() as read:
        layer.model.run_with_hooks(layer.images, fwd_hooks=[(layer.hook_name, keep)])
    gradient = torch.autograd.grad(head(read[0]).sum(), kept["value"])[0]
    weights = gradient.mean((1, 2), keepdim=True)
    return (weights * kept["value"]).sum(-1).relu().detach().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_grad_cam_at_an_inner_layer_equals_autograd_through_the_whole_network(family, tmp_path):
    with layer_of(family, tmp_path) as layer:
        head = one_logit(layer)
        expected = grad_cam_by_autograd(layer, head)
        cam = GradCam(layer.model.rest_from(layer.hook_name, layer.dataset.image_size), head)
        with torch.inference_mode():  # as the table is made
            reading = layer.model.read(layer.images, layer.hook_name)
            found = cam(reading.raw, reading.value).numpy()
    assert found.shape == expected.shape
    assert found == pytest.approx(expected, abs=1e-4 * float(expected.max()))
    assert expected.max() > 0
    assert (expected == 0).any()  # the ReLU matters


@pytest.mark.parametrize("family", ["efficientnet", "swin"])
def test_grad_cam_at_a_linear_readout_equals_the_closed_form(family, tmp_path):
    with layer_of(family, tmp_path, final=True) as layer:
        head = one_logit(layer)
        with torch.inference_mode():
            reading = layer.model.read(layer.images, layer.hook_name)
            n_positions = reading.value.shape[1] * reading.value.shape[2]
            expected = (reading.value.double() @ head.weight[0].double()).relu().numpy() / n_positions
            found = GradCam(layer.model.rest_from(layer.hook_name, layer.dataset.image_size), head)(
                reading.raw, reading.value
            ).numpy()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6 * float(expected.max()))
    assert expected.max() > 0


def test_the_table_keeps_grad_cam_of_findings_with_one_logit_for_images_with_a_box(tmp_path):
    with layer_of("resnet", tmp_path) as layer:
        heads = {"Mass": one_logit(layer), "Suspicious_Calcification": layer.head, "density": one_logit(layer)}
        expected = grad_cam_by_autograd(layer, heads["Mass"])
        table = encode_latents(
            layer.model, layer.sae, layer.dataset, tmp_path / "table", heads=heads, gradcam=True, batch_size=4
        )
    assert table.gradcam_heads == ("Mass",)  # two logits are no finding's class 1, and density has no boxes
    rows = {image_id: row for row, image_id in enumerate(table.images["image_id"])}
    for image_id in ("c1.png", "d1.png"):
        found = table.gradcam("Mass", rows[image_id])
        assert found.shape == table.grid
        assert found == pytest.approx(expected[rows[image_id]], abs=1e-4 * float(expected.max()))
    for image_id in ("c2.png", "a2.png"):
        with pytest.raises(InputError, match="has no box or is in another split"):
            table.gradcam("Mass", rows[image_id])
    with pytest.raises(InputError, match="keeps no Grad-CAM of 'density'"):
        table.gradcam("density", rows["c1.png"])
    assert len(table.map_latents(rows["c1.png"])) == 0
    assert localize_baselines(table, "Mass", channels=[]).rows["method"].tolist() == ["grad_cam"]


def test_a_network_that_is_watched_by_grad_cam_gives_the_same_logits_afterwards(tmp_path):
    with layer_of("torch_cnn", tmp_path) as layer:
        with torch.inference_mode():
            before = layer.model(layer.images)
            reading = layer.model.read(layer.images, layer.hook_name)
        GradCam(layer.model.rest_from(layer.hook_name, layer.dataset.image_size), one_logit(layer))(
            reading.raw, reading.value
        )
        with torch.inference_mode():
            assert torch.equal(layer.model(layer.images), before)
        assert all(parameter.grad is None for parameter in layer.model.parameters())


def test_grad_cam_without_captum_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    with (
        layer_of("torch_cnn", tmp_path) as layer,
        pytest.raises(InputError, match=r"pip install 'mammosae-plugin\[gradcam\]', or leave Grad-CAM out"),
    ):
        encode_latents(
            layer.model, layer.sae, layer.dataset, tmp_path / "table", heads={"Mass": one_logit(layer)}, gradcam=True
        )
    assert not (tmp_path / "table").exists()
