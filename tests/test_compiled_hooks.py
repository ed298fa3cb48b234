"""Hooks and SAEs that come or go after torch.compile."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.errors import InputError


class Network(nn.Module):
    """Two convolutions, pooling and a linear head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 8, 3, stride=2)
        self.head = nn.Linear(8, 1)

    def forward(self, images):
        return self.head(self.second(self.first(images).relu()).relu().mean((2, 3)))


def _compiled(model, what):
    if what == "the wrapper":
        return torch.compile(model, backend="eager")
    if what == "the model inside":
        return torch.compile(model.model, backend="eager")
    (model if what == "the wrapper in place" else model.model).compile(backend="eager")
    return model


WAYS = ["the wrapper", "the model inside", "the wrapper in place", "the model inside in place"]


@pytest.mark.parametrize("what", WAYS)
def test_hooks_and_saes_count_that_come_or_go_after_the_first_compiled_run(what):
    torch.compiler.reset()
    images = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    model, other = (HookedVisionModel(Network(), ["first", "second"]).eval() for _ in range(2))
    sae = StandardSAE(StandardSAEConfig(d_in=8, d_sae=16, metadata=SAEMetadata(hook_name="second.hook_out")))
    twin = StandardSAE.from_dict(sae.cfg.to_dict())
    twin.load_state_dict(sae.state_dict())
    fast = _compiled(model, what)
    with torch.no_grad():
        plain = other(images)
        assert torch.equal(fast(images), plain)
        model.add_hook("second", lambda value, hook: value * 0)
        assert torch.equal(fast(images), model.model.head.bias.expand(2, 1))
        model.reset_hooks()
        assert torch.equal(fast(images), plain)
        model.add_sae(sae)
        other.add_sae(twin)
        assert torch.equal(fast(images), other(images))
        model.reset_saes()
        assert torch.equal(fast(images), plain)
        assert torch.equal(
            model.run_with_cache(images)[1]["second.hook_out"],
            other.run_with_cache(images)[1]["second.hook_out.hook_sae_input"],
        )


@pytest.mark.parametrize("what", WAYS)
def test_every_verb_reads_the_compiled_network_as_the_plain_one(what):
    torch.compiler.reset()
    images = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    model, plain = (HookedVisionModel(Network(), ["first", "second"]).eval() for _ in range(2))
    fast = _compiled(model, what)
    with torch.no_grad():
        fast(images)
        for found, expected in zip(model.read(images, "second"), plain.read(images, "second"), strict=True):
            assert torch.equal(found, expected)
        assert model.grid("second", (20, 20)) == plain.grid("second", (20, 20))
        raw = plain.read(images, "first").raw
        for rest in (model.rest_from("first", (20, 20)), plain.rest_from("first", (20, 20))):
            assert torch.allclose(rest(raw), plain(images), atol=1e-6)


def test_a_network_that_was_compiled_before_it_is_wrapped_is_refused():
    for compiled in (torch.compile(Network(), backend="eager"), Network()):
        if isinstance(compiled, Network):
            compiled.second.compile(backend="eager")
        with pytest.raises(InputError, match="compiled.* does not run hooks that come later; .*wrap"):
            HookedVisionModel(compiled, ["first"])
