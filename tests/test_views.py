"""Models that read several views of an exam, and inputs beside the images: hook points, stores, tables."""

import copy

import numpy as np
import pytest
import torch
from helpers_study import random_sae
from torch import nn

from mammosae_plugin.activations import extract_activations, extract_together
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.views import by_view
from mammosae_plugin.datasets import as_images, by_exam
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_latents

V, SIZE = 4, (32, 48)


def encoder():
    """A small network of single views: (B, 3, H, W) -> (B, 12, h, w)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(inplace=True),
    )  # fmt: skip


class Exams(nn.Module):
    """A Siamese network: `loop` runs the encoder once per view, `stages` its parts, `flat` it on all at once."""

    def __init__(self, kind, *, age=False):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.encoder = kind, encoder()
        self.head = nn.Linear(12 * V + age, 2)

    def vector(self, x, v):
        if self.kind == "stages":
            x = self.encoder[2](self.encoder[1](self.encoder[0](x[:, v])))
            return self.encoder[4](self.encoder[3](x)).mean((2, 3))
        if self.kind == "normalised":
            x = x - x.mean()
        if self.kind == "written":
            x = self.encoder[2](self.encoder[1](self.encoder[0](x[:, v])))
            return self.encoder[4](self.encoder[3](x.mul_(0.5))).mean((2, 3))
        return self.encoder(x[:, v]).mean((2, 3))

    def forward(self, x, age=None):
        if self.kind == "flat":
            found = self.encoder(x.flatten(0, 1)).mean((2, 3)).unflatten(0, (-1, V)).flatten(1)
        else:
            found = torch.cat([self.vector(x, v) for v in range(V)], 1)
        return self.head(found if age is None else torch.cat([found, age[:, None]], 1))


class FourImages(Exams):
    """The same with an argument for each view."""

    def forward(self, a, b, c, d):
        return super().forward(torch.stack([a, b, c, d], 1))


def exams(n, seed=0):
    return torch.randn(n, V, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def example(kind, age):
    if kind == "four":
        return {name: exams(1)[:, v] for v, name in enumerate("abcd")}
    return {"x": exams(1), "age": torch.tensor([50.0])} if age else exams(1)


KINDS = [("flat", False), ("loop", False), ("stages", False), ("loop", True), ("four", False)]


@pytest.mark.parametrize(("kind", "age"), KINDS)
def test_hook_points_see_the_views_of_every_exam_and_the_output_is_the_models(kind, age):
    network = (FourImages("loop") if kind == "four" else Exams(kind, age=age)).eval()
    alone, x = copy.deepcopy(network.encoder), exams(3, seed=1)
    given = tuple(x.unbind(1)) if kind == "four" else (x, torch.tensor([40.0, 50.0, 60.0])) if age else (x,)
    plain, classes = network(*given), [type(module) for module in network.modules()]
    with HookedVisionModel(network, ["encoder.4", "encoder.0"], example_input=example(kind, age)) as model:
        assert model.n_views == V and model.hook_shapes["encoder.4.hook_out"] == (4, 6, 12)
        output, cache = model.run_with_cache(*given)
        assert torch.equal(output, plain) if kind == "flat" else torch.allclose(output, plain, atol=1e-6)
        for path, last in (("encoder.4", 5), ("encoder.0", 1)):
            shown = by_view(cache[f"{path}.hook_out"], V)
            own = torch.stack([alone[:last](x[:, v]).permute(0, 2, 3, 1) for v in range(V)], 1)
            torch.testing.assert_close(shown, own, atol=1e-6, rtol=1e-5)
        sae = random_sae(12, 24, hook_name="encoder.4.hook_out")
        spliced = model.run_with_saes(*given, saes=[sae], use_error_term=False)
        decoded = [sae(alone(x[:, v]).permute(0, 2, 3, 1)).mean((1, 2)) for v in range(V)]
        by_hand = torch.cat([*decoded, *([given[1][:, None]] if age else [])], 1)
        torch.testing.assert_close(spliced, network.head(by_hand), atol=1e-5, rtol=1e-4)
        assert torch.allclose(model.run_with_saes(*given, saes=[sae], use_error_term=True), plain, atol=1e-5)
    assert [type(module) for module in network.modules()] == classes and torch.equal(network(*given), plain)


def stored_means(store):
    """(n_images, C): the mean over the rows of every image."""
    rows = torch.cat([rows for rows, _, _ in store.shards()])
    return rows.reshape(len(store.manifest["image_ids"]), -1, rows.shape[1]).mean(1).numpy()


@pytest.mark.parametrize("kind", ["flat", "loop"])
def test_rows_of_the_table_are_those_of_the_encoder_on_each_image(kind, tmp_path):
    network, x = Exams(kind).eval(), exams(5, seed=2)
    own = network.encoder(x.flatten(0, 1)).flatten(2).mean(2).detach().numpy()
    with HookedVisionModel(network, ["encoder.4"], example_input=exams(1)) as model:
        sae = random_sae(12, 24, hook_name="encoder.4.hook_out")
        data = as_images(x, labels={"ill": [0, 1, 1, 0, 1]})
        table = encode_latents(model, sae, data, tmp_path / "table", heads={}, batch_size=3)
        np.testing.assert_allclose(table.mean_channels, own, rtol=1e-4, atol=1e-6)
        assert table.images["exam_id"].tolist() == [f"{n:06d}" for n in range(5) for _ in range(V)]
        assert table.images["view"].tolist() == list("0123") * 5 and table.images["ill"].tolist()[4:8] == [1] * 4
        assert table.provenance["inputs"]["views"] == V
        with pytest.raises(InputError, match="heads read the views of an exam.*give heads={}"):
            encode_latents(model, sae, data, tmp_path / "heads", heads={"ill": nn.Linear(48, 1)})


def test_single_images_are_put_exam_by_exam_and_inputs_beside_them_read_of_a_column(tmp_path):
    network, x, years = Exams("loop", age=True).eval(), exams(5, seed=2), [40.0, 50.0, 60.0, 45.0, 55.0]
    own = network.encoder(x.flatten(0, 1)).flatten(2).mean(2).detach().numpy()
    whole = as_images(x, covariates={"years": years})
    order = torch.randperm(5 * V, generator=torch.Generator().manual_seed(0)).tolist()
    rows = whole.images.iloc[order]
    known = {name: rows[name].tolist() for name in ("exam_id", "view", "years")}
    mixed = as_images(x.flatten(0, 1)[order], ids=rows["image_id"].tolist(), covariates=known)
    with HookedVisionModel(network, ["encoder.4"], example_input=example("loop", True)) as model:
        with pytest.raises(InputError, match=r"no column 'age': name its column, model.inputs.columns\['age'\]"):
            extract_activations(model, mixed, tmp_path / "store")
        model.inputs.columns["age"] = "years"
        store = extract_activations(model, mixed, tmp_path / "store", batch_size=3)
        ids = store.manifest["image_ids"]
        assert {one[:6] for one in ids[:V]} == {ids[0][:6]} and [one[-1] for one in ids[:V]] == list("0123")
        places = whole.images.reset_index().set_index("image_id").loc[ids, "index"]
        np.testing.assert_allclose(stored_means(store), own[places], rtol=1e-4, atol=1e-6)
        lacking = mixed.select(exclude=ids[:1])
        with pytest.raises(InputError, match=r"1 of 5 exams \(such as 0.*by_exam\(dataset, 4, incomplete='leave out'"):
            extract_activations(model, lacking, tmp_path / "lacking")
        assert len(by_exam(lacking, 4, incomplete="leave out")) == 4 * V


def test_an_age_beside_single_images_is_read_of_the_dataset(tmp_path):
    class WithAge(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.scale = encoder(), nn.Linear(1, 3)

        def forward(self, images, age):
            return self.encoder(images * self.scale(age[:, None])[..., None, None])

    torch.manual_seed(1)
    network, images, ages = WithAge().eval(), exams(1)[0], torch.tensor([40.0, 50.0, 60.0, 70.0])
    with HookedVisionModel(network, ["encoder.4"], example_input=(images[:1], ages[:1])) as model:
        store = extract_activations(model, as_images(images, covariates={"age": ages.tolist()}), tmp_path)
        own = network(images, ages).flatten(2).mean(2).detach().numpy()
        np.testing.assert_allclose(stored_means(store), own, rtol=1e-4, atol=1e-6)
        with pytest.raises(InputError, match="the model takes age beside the images: give that too"):
            model(images)
        assert model(images, ages).shape == (4, 12, 4, 6)


class MeanOfViews(Exams):
    """A network that takes exams of any number of views."""

    def forward(self, x):
        return torch.stack([self.vector(x, v) for v in range(x.shape[1])]).mean(0)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_exams_of_another_number_of_views_are_refused_and_not_mixed(n):
    network, others = MeanOfViews("loop").eval(), exams(6).repeat(1, 2, 1, 1, 1)[:, :n]
    plain = network(others)
    with HookedVisionModel(network, ["encoder.4"], example_input=exams(1)) as model:
        with pytest.raises(InputError, match=f"have {n} views, .* hooked for 4: .* an example_input of {n}"):
            model(others)
        assert torch.allclose(model(exams(2)), network(exams(2)), atol=1e-6)
    with HookedVisionModel(network, ["encoder.4"], example_input=others[:1]) as model:  # as the message says
        assert torch.allclose(model(others), plain, atol=1e-6)


def test_what_is_said_of_tables_and_images_of_exams_can_be_done(tmp_path):
    network, x = Exams("loop").eval(), exams(3)
    with HookedVisionModel(network, ["encoder.4"], example_input=exams(1)) as model:
        sae = random_sae(12, 24, hook_name="encoder.4.hook_out")
        table = encode_latents(model, sae, as_images(x, labels={"ill": [0, 1, 0]}), tmp_path / "table", heads={})
        with pytest.raises(InputError, match="reads several views, .* HookedVisionModel.run_with_hooks_with_saes$"):
            table.logits("ill")

        def without(latents, hook):
            return latents.index_fill(-1, torch.tensor([3]), 0)

        point = "encoder.4.hook_out.hook_sae_acts_post"
        found = model.run_with_hooks_with_saes(x, saes=[sae], fwd_hooks=[(point, without)])
        assert not torch.allclose(found, model.run_with_saes(x, saes=[sae]))
        with pytest.raises(InputError, match=r"have 3 views \(0, 1, 2\), and the network takes 4 .*: give images of"):
            encode_latents(model, sae, as_images(x[:, :3]), tmp_path / "other", heads={})


def test_single_images_beside_an_age_are_no_exams_and_exams_are():
    network, x, ages = Exams("loop", age=True).eval(), exams(2), torch.tensor([40.0, 50.0])
    with HookedVisionModel(network, ["encoder.4"], example_input=example("loop", True)) as model:
        with pytest.raises(InputError, match=r"have 1 views, .* give images \(B, 4, C, H, W\)"):
            model(x.flatten(0, 1), ages)
        assert torch.allclose(model(x, ages), network(x, ages), atol=1e-6)


def test_models_of_different_views_are_extracted_one_after_the_other(tmp_path):
    pair = MeanOfViews("loop").eval()
    with (
        HookedVisionModel(Exams("loop").eval(), ["encoder.4"], example_input=exams(1)) as four,
        HookedVisionModel(pair, ["encoder.4"], example_input=exams(1)[:, :2]) as two,
    ):
        sources = {"four": (four, "encoder.4"), "two": (two, "encoder.4")}
        with pytest.raises(InputError, match="take 4 and 2 views of an exam; run one after the other"):
            extract_together(sources, as_images(exams(2)), tmp_path / "both")
        for name, x in (("four", exams(2)), ("two", exams(2)[:, :2])):
            stores = extract_together({name: sources[name]}, as_images(x), tmp_path / "each")
            assert len(stores[name].image_ids) == x.shape[0] * x.shape[1]


@pytest.mark.parametrize("kind", ["normalised", "written"])
def test_a_loop_over_something_else_than_the_views_is_refused(kind):
    network = Exams(kind).eval()
    classes, path = [type(module) for module in network.modules()], "encoder.4"
    with pytest.raises(InputError, match="runs once per view on something else than the plain views"):
        HookedVisionModel(network, [path], example_input=exams(1))
    assert [type(module) for module in network.modules()] == classes
    network.kind = "flat"  # as the message says: forward flattens the views
    with HookedVisionModel(network, [path], example_input=exams(1)) as model:
        assert len(model.run_with_cache(exams(2))[1][f"{path}.hook_out"]) == 2 * V
        with pytest.raises(InputError, match="3 images are no whole exams"):
            model(exams(1)[0, :3])
    with pytest.raises(InputError, match="no inputs that are images of exams"):
        HookedVisionModel(network, [path], example_input={"x": torch.zeros(3)})


@pytest.mark.parametrize(
    ("kind", "example_input", "said", "followed"),
    [
        ("loop", "exams", "give images, a tuple of forward's arguments, or a dict of them by name", None),
        ("loop", {"x": torch.zeros(3)}, r"give one \(B, views, C, H, W\), or", exams(1)),
        ("four", (exams(1), exams(1)), r"or \(B, C, H, W\) for each view", tuple(exams(1).unbind(1))),
        ("age", {"x": exams(2), "age": 50.0}, "a row for each of the 2 exams", {"x": exams(2), "age": torch.ones(2)}),
    ],
)
def test_an_example_is_given_as_its_refusal_says(kind, example_input, said, followed):
    network = (FourImages("loop") if kind == "four" else Exams("loop", age=kind == "age")).eval()
    with pytest.raises(InputError, match=said):
        HookedVisionModel(network, ["encoder.4"], example_input=example_input)
    for given in (exams(1), (exams(1),), {"x": exams(1)}) if followed is None else (followed,):
        with HookedVisionModel(network, ["encoder.4"], example_input=given) as model:
            # without anything beside them, images may be the views of each exam, in order
            images = (exams(2), torch.ones(2)) if kind == "age" else (exams(2).flatten(0, 1),)
            assert model.n_views == V and model(*images).shape == (2, 2)


@pytest.mark.parametrize("why", ["no number", "several values"])
def test_an_exam_without_what_stands_beside_it_is_left_out(why, tmp_path):
    network, x = Exams("loop", age=True).eval(), exams(3)
    years = [float("nan") if why == "no number" else 41.0, *[40.0] * (3 * V - 1)]
    of_images = {"exam_id": [n // V for n in range(3 * V)], "view": list(range(V)) * 3, "age": years}
    data = as_images(x.flatten(0, 1), covariates=of_images)
    with HookedVisionModel(network, ["encoder.4"], example_input=example("loop", True)) as model:
        with pytest.raises(InputError, match=f"has {why}; leave its exam out"):
            extract_activations(model, data, tmp_path / "no")
        store = extract_activations(model, data.select(exclude=data.images["image_id"][:V]), tmp_path / "store")
        assert len(store.manifest["image_ids"]) == 2 * V
