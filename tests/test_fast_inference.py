import copy

import pytest
import torch
from helpers_adapters import calibrated_classifier
from helpers_backbones import FAMILIES
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.adapters.fast_inference import FoldedNorm, compiled, fold_batch_norms
from mammosae_plugin.errors import InputError


@pytest.mark.parametrize("family", ["efficientnet", "resnet", "torch_cnn"])
def test_a_folded_network_gives_the_same_output_without_its_batch_norms(family: str) -> None:
    network, size, inner, final = FAMILIES[family]()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    folded, error = fold_batch_norms(network, images[:1])
    assert error < 1e-4
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, FoldedNorm) for module in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded(images), network(images), rtol=1e-4, atol=1e-4)
    with HookedVisionModel(folded, [inner, final], example_input=images) as fast, torch.no_grad():
        with HookedVisionModel(network, [inner, final], example_input=images) as slow:
            ours, theirs = fast.run_with_cache(images)[1], slow.run_with_cache(images)[1]
        for name, value in theirs.items():
            assert float((ours[name] - value).norm() / value.norm()) < 1e-4  # behind the norms hook points keep values


def test_folding_agrees_with_the_formula_in_float64() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4, eps=1e-3)).eval().double()
    nn.init.normal_(network[1].running_mean)
    nn.init.uniform_(network[1].running_var, 0.1, 2.0)
    nn.init.normal_(network[1].weight)
    nn.init.normal_(network[1].bias)
    conv, norm = network
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    folded, error = fold_batch_norms(network, torch.randn(1, 3, 9, 9, dtype=torch.float64))
    assert error < 1e-14
    assert torch.allclose(folded[0].weight, conv.weight * factor[:, None, None, None])
    assert torch.allclose(folded[0].bias, (conv.bias - norm.running_mean) * factor + norm.bias)


class SharedConvolution(nn.Module):
    """A convolution whose output a batch norm and a shortcut read: it must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images)
        return self.norm(x) + self.other(x)


def test_a_batch_norm_stays_where_its_convolution_has_other_readers() -> None:
    torch.manual_seed(0)
    network = SharedConvolution().eval()
    nn.init.uniform_(network.norm.running_var, 0.1, 2.0)
    folded, error = fold_batch_norms(network, torch.randn(1, 3, 8, 8))
    assert isinstance(folded.norm, nn.BatchNorm2d) and error == 0


class Shortcut(SharedConvolution):
    """The same with a reader that is no module."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images)
        return self.norm(x) + x


def test_a_reader_that_is_no_module_is_noticed_in_the_output() -> None:
    torch.manual_seed(0)
    network = Shortcut().eval()
    nn.init.uniform_(network.norm.running_var, 0.1, 2.0)
    with pytest.raises(InputError, match="something else reads"):
        fold_batch_norms(network, torch.randn(1, 3, 8, 8))


def test_the_original_is_left_alone_and_a_hooked_one_is_refused() -> None:
    model = calibrated_classifier(1)
    before = copy.deepcopy(model.state_dict())
    images = torch.zeros(1, 3, 96, 64)
    fold_batch_norms(model, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with HookedVisionModel(model, ["bn2"]), pytest.raises(InputError, match=r"close\(\) its HookedVisionModel"):
        fold_batch_norms(model, images)


def test_compiled_parts_lie_between_the_hook_points_and_give_the_same_values() -> None:
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    network = new_classifier("tinynet_e", 1, seed=0)
    with HookedVisionModel(network, ["layer_6", "bn2"]) as model, torch.inference_mode():
        logits, cache = model.run_with_cache(images)
        seen: list[torch.Tensor] = []
        with compiled(model, images[:1], backend="aot_eager") as errors:
            assert model.compiled and errors.keys() == cache.keys() and max(errors.values()) < 1e-5
            ours = {path for path, module in network.named_modules() if "forward" in vars(module)}
            assert {
                "blocks.3",
                "blocks.4.1",
                "blocks.5",
                "bn2",
            } <= ours  # blocks.4.1 is layer_6, hooked inside blocks.4
            assert ours.isdisjoint({"", "blocks", "blocks.4", "conv_stem", "blocks.3.0"})
            fast, found = model.run_with_cache(images)
            assert model.grid("bn2", (128, 96)) == (4, 3)  # which looks at the network's calls one by one
            model.run_with_hooks(images, fwd_hooks=[("layer_6", lambda value, hook: seen.append(value))])
        assert torch.allclose(fast, logits, atol=1e-5)
        assert all(torch.allclose(found[name], value, atol=1e-4) for name, value in cache.items())
        assert len(seen) == 1
        assert not model.compiled and not any("forward" in vars(module) for module in network.modules())
        assert torch.equal(model(images), logits)


def test_every_one_of_many_parts_of_one_class_is_compiled() -> None:
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    n_graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: object) -> object:
        nonlocal n_graphs
        n_graphs += 1
        return graph.forward

    torch._dynamo.reset()
    with HookedVisionModel(new_classifier("tinynet_e", 1, seed=0)) as model, torch.inference_mode():
        with compiled(model, images, backend=count):
            n_seen = n_graphs
            model(images)
        assert n_seen > 8 + 2 and n_graphs == n_seen  # dynamo gives up a class after 8 of its own accord


def test_a_compiler_that_fails_or_changes_values_is_one_line() -> None:
    images = torch.randn(1, 3, 96, 64)

    def failing(graph: torch.fx.GraphModule, _inputs: object) -> object:
        raise OSError("no C++ compiler")

    def wrong(graph: torch.fx.GraphModule, _inputs: object) -> object:
        return lambda *values: [value * 1.01 for value in graph.forward(*values)]

    torch._dynamo.reset()
    with HookedVisionModel(new_classifier("tinynet_e", 1, seed=0), ["bn2"]) as model:
        cannot = pytest.raises(InputError, match=r"^torch.compile cannot compile the network here.*no C\+\+ compiler")
        with cannot, compiled(model, images, backend=failing):
            pass
        torch._dynamo.reset()
        changes = pytest.raises(InputError, match=r"torch.compile changes bn2.hook_out by .*more than rounding")
        with changes, compiled(model, images, backend=wrong):
            pass
        assert not model.compiled


def test_compiling_leaves_a_modules_own_forward_where_it_was() -> None:
    """nnsight, for one, sets a forward on each module."""
    images = torch.randn(1, 3, 96, 64)
    network = calibrated_classifier(1)
    part = network.blocks
    plain = part.forward
    part.forward = lambda x: plain(x) * 2
    with HookedVisionModel(network, ["bn2"]) as model, torch.inference_mode():
        expected = network(images)
        with compiled(model, images, backend="aot_eager"):
            assert torch.allclose(network(images), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(network(images), expected)


def test_a_difference_behind_the_last_hook_point_is_refused() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.mean((2, 3)))

    def wrong(graph: torch.fx.GraphModule, _inputs: object) -> object:
        return lambda *values: [value * 1.01 for value in graph.forward(*values)]

    torch._dynamo.reset()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Head()).eval()
    images = torch.randn(1, 3, 16, 16)
    with HookedVisionModel(network, ["0"], example_input=images) as model:
        changes = pytest.raises(InputError, match="^torch.compile changes the output by .*more than rounding")
        with changes, compiled(model, images, backend=wrong):
            pass


def test_blocks_that_cannot_work_are_refused_when_they_are_entered() -> None:
    images = torch.randn(1, 3, 96, 64)
    with HookedVisionModel(calibrated_classifier(1), ["bn2"]) as model:
        unknown = pytest.raises(InputError, match="cannot compile the network here.*inductr")
        with unknown, compiled(model, images, backend="inductr"):
            pass
        with compiled(model, images, backend="aot_eager"):
            with pytest.raises(InputError, match="compiled already"), compiled(model, images, backend="aot_eager"):
                pass
            assert model.compiled
        model.model.train()
        statistics = model.model.state_dict()["bn1.running_mean"].clone()
        with pytest.raises(InputError, match=r"in training mode.*model\.eval\(\)"), compiled(model, images):
            pass
        assert torch.equal(model.model.state_dict()["bn1.running_mean"], statistics)
        assert not model.compiled
