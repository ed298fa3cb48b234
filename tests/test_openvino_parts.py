"""Parts of a network that OpenVINO runs, against the eager network."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers_adapters import calibrated_classifier
from helpers_backbones import FAMILIES
from torch import nn

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel, openvino_parts
from mammosae_plugin.adapters.fast_inference import compiled
from mammosae_plugin.adapters.openvino_parts import OpenVINOForward, require_openvino
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.errors import InputError

openvino = pytest.importorskip("openvino", reason="the extra [openvino] is absent")


@pytest.fixture
def eager_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the classes whose stand-ins ran eagerly."""
    found: list[str] = []
    init = OpenVINOForward.__init__

    def counting(self: OpenVINOForward, part: nn.Module) -> None:
        init(self, part)
        own = self.eager

        def eager(*args: Any, **kwargs: Any) -> Any:
            found.append(type(part).__name__)
            return own(*args, **kwargs)

        self.eager = eager

    monkeypatch.setattr(OpenVINOForward, "__init__", counting)
    return found


def images(n: int, size: tuple[int, int] = (96, 64)) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["efficientnet", "swin", "vit_registers", "torch_cnn"])
def test_every_kind_of_network_has_the_values_of_the_eager_network(family: str, eager_runs: list[str]) -> None:
    network, size, inner, final = FAMILIES[family]()
    batch = images(2, size)
    with HookedVisionModel(network, [inner, final], example_input=batch) as model, torch.inference_mode():
        logits, cache = model.run_with_cache(batch)
        with compiled(model, batch, backend="openvino") as errors:
            assert model.compiled == "openvino"
            assert errors.keys() == cache.keys()
            assert 0 < max(errors.values()) < 1e-5  # it computes differently, so it was OpenVINO
            fast, found = model.run_with_cache(batch)
            assert model.grid(final, size) == model.hook_shapes[f"{final}.hook_out"][:2]  # sees single calls: eager
        assert torch.allclose(fast, logits, rtol=1e-4, atol=1e-4)
        for name, value in cache.items():
            assert float((found[name] - value).norm() / value.norm()) < 1e-5
        assert model.compiled is None
        assert torch.equal(model(batch), logits)


def test_hooks_between_the_parts_change_what_comes_behind() -> None:
    def halve(value: torch.Tensor, hook: object) -> torch.Tensor:
        return value / 2

    network, size, inner, _ = FAMILIES["torch_cnn"]()
    with HookedVisionModel(network, [inner], example_input=images(1, size)) as model, torch.inference_mode():
        hooks = {"fwd_hooks": [(inner, halve)]}
        expected = model.run_with_hooks(images(2, size), **hooks)
        with compiled(model, images(1, size), backend="openvino"):
            found = model.run_with_hooks(images(2, size), **hooks)  # another batch than the example's, too
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, model(images(2, size)), rtol=1e-3, atol=1e-3)


def small_part() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1)).eval()


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_two_results_share_memory_whatever_the_order_of_the_input(channels_last: bool) -> None:
    part = small_part()
    one = images(2).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    forward = OpenVINOForward(part)
    with torch.inference_mode():
        first, second = forward(one), forward(one + 1)
        assert torch.allclose(first, part(one), atol=1e-5)
        assert torch.allclose(second, part(one + 1), atol=1e-5)
    assert [key[1] for key in forward.converted] == [channels_last]


def test_what_openvino_cannot_do_the_same_runs_eagerly(eager_runs: list[str]) -> None:
    part = small_part()
    forward = OpenVINOForward(part)
    with torch.inference_mode():
        forward(images(1))
        eager_runs.clear()  # the conversion ran it once
        forward(images(1))
        assert not eager_runs
        with torch.autocast("cpu", torch.bfloat16):
            assert forward(images(1)).dtype == torch.bfloat16
    inputs = images(1).requires_grad_()
    forward(inputs).sum().backward()
    assert float(inputs.grad.norm()) > 0
    seen: list[torch.Tensor] = []
    handle = part[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        forward(images(1))
    handle.remove()
    assert len(seen) == 1
    part.train()
    with torch.inference_mode():
        forward(images(1))
    assert len(eager_runs) == 4


class SeveralOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        return y, y.mean((2, 3))


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.mul_(2))


@pytest.mark.parametrize("kind", [SeveralOutputs, Overwriting])
def test_parts_with_other_results_than_one_tensor_stay_eager(kind: type[nn.Module], eager_runs: list[str]) -> None:
    part = kind().eval()
    forward = OpenVINOForward(part)
    with torch.inference_mode():
        expected, given = part(images(1)), images(1)
        found = forward(given)
    assert eager_runs == [kind.__name__] * 2  # at the conversion, and then
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(given, images(1) * 2) == (kind is Overwriting)


def test_a_network_that_it_cannot_run_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    network = calibrated_classifier(1).double()
    with pytest.raises(InputError, match="float32 on the CPU, and this one is float64 on cpu; compile it with"):
        require_openvino(network)

    def failing(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no rule for aten::strange\n\nlong story")

    monkeypatch.setattr(openvino, "convert_model", failing)
    with HookedVisionModel(calibrated_classifier(1), ["bn2"]) as model:
        refused = pytest.raises(
            InputError, match=r"^openvino cannot convert Sequential here; .* \(no rule for aten::strange\)$"
        )
        with refused, compiled(model, images(1), backend="openvino"):
            pass
        assert model.compiled is None and "forward" not in vars(model.model.blocks)


def test_values_that_change_by_more_than_rounding_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    call = OpenVINOForward.__call__
    monkeypatch.setattr(OpenVINOForward, "__call__", lambda self, x: call(self, x) * 1.01)
    network, size, inner, _ = FAMILIES["torch_cnn"]()
    with HookedVisionModel(network, [inner], example_input=images(1, size)) as model:
        refused = pytest.raises(InputError, match=r"^openvino changes \S+ by .*, more than rounding; run the network")
        with refused, compiled(model, images(1, size), backend="openvino"):
            pass


def test_without_openvino_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"^openvino is not installed; run: pip install '.*\[openvino\]'$"):
        require_openvino(calibrated_classifier(1))


def test_openvino_is_used_without_its_telemetry(tmp_path: Any) -> None:
    """It would write an id into the home folder and send events to an analytics service."""
    code = (
        "import sys; from mammosae_plugin.adapters import openvino_parts as parts; parts._openvino(); "
        "print(sys.modules['openvino_telemetry'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "None\n"
    assert list(tmp_path.rglob("*openvino*")) == []


def test_autocast_beside_it_is_refused(tmp_path: Any, phantom_root: Any) -> None:
    dataset = VinDrMammo(phantom_root, image_size=(96, 64))
    with HookedVisionModel(calibrated_classifier(1), ["bn2"]) as model:
        model.compiled = "openvino"
        with pytest.raises(InputError, match="float32 on the CPU, not on cpu nor under autocast; leave one of"):
            extract_activations(model, dataset, tmp_path / "store", hook_name="bn2", autocast="bfloat16")
    assert not (tmp_path / "store").exists()


def test_what_is_taken_for_granted_about_openvino() -> None:
    """A failure here names a cause elsewhere."""
    changed = "upstream changed: "
    exported = torch.export.export(small_part(), (images(1),), strict=False)
    network = openvino.convert_model(exported)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    run = openvino.Core().compile_model(network, "CPU", settings)
    assert "f32" in str(run.get_property("INFERENCE_PRECISION_HINT")) or "float" in str(
        run.get_property("INFERENCE_PRECISION_HINT")
    ), changed + "the precision that is asked for"
    first = run(images(1).numpy())[0]
    kept = first.copy()
    run((images(1) + 1).numpy())
    assert (first == kept).all(), changed + "the next call overwrites what the last one gave"
    assert openvino_parts._TELEMETRY == "openvino_telemetry"
