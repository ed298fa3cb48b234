"""ViSAEBench: SAEs there and back, and its numbers beside ours, equal where they are right."""

import json

import numpy as np
import pytest
import torch
from helpers_study import random_sae
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.adapters.checkpoints import CheckpointFormatError
from mammosae_plugin.adapters.visaebench import (
    for_visaebench,
    load_visaebench_sae,
    save_visaebench_sae,
    visaebench_results,
)
from mammosae_plugin.analysis import activation_similarity_of, moran_of, probe_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.reconstruction import measure

D_IN, D_SAE = 12, 24
needs_numpy_2 = pytest.mark.skipif(not hasattr(np, "trapezoid"), reason="its probes call numpy.trapezoid")


def an_sae(kind, **metadata):
    generator = torch.Generator().manual_seed(1)
    named = SAEMetadata(**metadata)
    sae = {
        "topk": lambda: TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, metadata=named)),
        "topk, by decoder norms": lambda: TopKSAE(
            TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=True)
        ),
        "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, metadata=named)),
        "standard": lambda: random_sae(D_IN, D_SAE),
    }[kind]()
    state = {name: torch.randn(value.shape, generator=generator) / 3 for name, value in sae.state_dict().items()}
    sae.load_state_dict({**state, **({"threshold": state["threshold"].abs()} if "threshold" in state else {})})
    return sae


@pytest.fixture(scope="module")
def rows():
    return torch.randn(200, D_IN, generator=torch.Generator().manual_seed(2)) + 0.5


KINDS = ("topk", "topk, by decoder norms", "jumprelu", "standard")


@pytest.mark.parametrize("kind", KINDS)
def test_an_sae_goes_there_and_back(kind, rows, tmp_path):
    sae = an_sae(kind)
    back = load_visaebench_sae(save_visaebench_sae(sae, tmp_path / "sae"), hook_name="bn2.hook_out")
    assert back.cfg.metadata.hook_name == "bn2.hook_out"
    torch.testing.assert_close(back(rows), sae(rows))
    assert ((back.encode(rows) != 0) == (sae.encode(rows) != 0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_visaebench_computes_the_same_with_it(kind, rows, tmp_path):
    hub = pytest.importorskip("visaebench.hub", reason="the extra [visaebench] is absent")
    sae = an_sae(kind)
    theirs = hub.load_sae(str(save_visaebench_sae(sae, tmp_path / "sae")), device="cpu")
    torch.testing.assert_close(theirs.decode(theirs.encode(rows)), sae(rows))


def checkpoint(kind, generator, *, overcomplete=False):
    encoder, decoder = torch.randn(2, D_SAE, D_IN, generator=generator)
    bias = torch.randn(D_SAE, generator=generator)
    if overcomplete:
        names = ("encoder.final_block.0.weight", "encoder.final_block.0.bias", "dictionary._weights")
        more = {"dictionary.multiplier": torch.tensor(0.3)}
    else:
        names = ("encoder.weight", "encoder.bias", "decoder.weight")
        more = {"decoder.bias": torch.randn(D_IN, generator=generator)}
    config = {"activation": kind, "k": 4, "input_dim": D_IN, "hidden_dim": D_SAE}
    if kind == "batchtopk":
        # A value that a latent reaches exactly, which is kept.
        config["threshold"] = float((torch.ones(D_IN) @ encoder.T + bias).max())
    if kind == "jumprelu":
        more["jump_thresholds"] = torch.rand(D_SAE, generator=generator)
    return config, {**dict(zip(names, (encoder, bias, decoder), strict=True)), **more}


@pytest.mark.parametrize("overcomplete", [False, True], ids=["simple", "overcomplete"])
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_its_checkpoints_are_read_as_it_reads_them(kind, overcomplete, rows, tmp_path):
    hub = pytest.importorskip("visaebench.hub", reason="the extra [visaebench] is absent")
    config, tensors = checkpoint(kind, torch.Generator().manual_seed(3), overcomplete=overcomplete)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / "sae.pt")
    theirs, ours = hub.load_sae(str(tmp_path), device="cpu"), load_visaebench_sae(tmp_path)
    given = torch.cat([rows, torch.ones(1, D_IN)])
    torch.testing.assert_close(ours.encode(given), theirs.encode(given))
    torch.testing.assert_close(ours(given), theirs.decode(theirs.encode(given)))
    mean, std = rows.mean(0), float(rows.std())
    folded = load_visaebench_sae(tmp_path, mean=mean, std=std)
    normed = (rows - mean) / std
    if kind != "batchtopk":  # whose exact tie is another's after folding
        torch.testing.assert_close(folded.encode(rows), theirs.encode(normed), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(folded(rows), theirs(normed)[1] * std + mean, rtol=1e-3, atol=1e-3)


def test_what_is_no_such_sae_is_said(tmp_path):
    with pytest.raises(CheckpointFormatError, match="needs one of sae.pt"):
        load_visaebench_sae(tmp_path)
    config, tensors = checkpoint("topk", torch.Generator().manual_seed(3))
    for changed, dropped, words in (
        ({"activation": "gelu"}, None, "'gelu' is none of"),
        ({"k": None}, None, "k is None"),
        ({}, "encoder.bias", "needs encoder.weight"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
        torch.save({name: value for name, value in tensors.items() if name != dropped}, tmp_path / "sae.pt")
        with pytest.raises(CheckpointFormatError, match=words) as error:
            load_visaebench_sae(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / "sae.pt")
    with pytest.raises(InputError, match="mean and std together"):
        load_visaebench_sae(tmp_path, std=2.0)
    with pytest.raises(InputError, match="normalised one by one"):
        save_visaebench_sae(an_sae("topk", input_normalization="unit_l2"), tmp_path / "out")


def test_rows_are_normalised_for_it_as_the_metadata_say(rows):
    sae = an_sae("topk", input_normalization="unit_l2")
    ours = for_visaebench(sae)
    lengths = rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours.encode(rows), sae.encode(rows / lengths))
    torch.testing.assert_close(ours.decode(ours.encode(rows)), sae(rows / lengths) * lengths)
    assert not ours.encode(rows).requires_grad


# Its numbers beside ours


class AsGiven:
    """An SAE whose codes are the rows themselves."""

    def encode(self, x):
        return x

    def decode(self, z):
        return z


@pytest.fixture(scope="module")
def metrics():
    return pytest.importorskip("visaebench.metrics", reason="the extra [visaebench] is absent").METRIC_REGISTRY


def test_explained_variance_is_ours_where_channels_have_mean_0_and_wrong_elsewhere(metrics, rows):
    sae = AsGiven()

    def both(given):
        theirs = metrics["fvu"]().compute(sae, given, device="cpu", dict_size=D_SAE)
        ours = measure(lambda batch: ((codes := sae.encode(batch)), sae.decode(codes)), [given], D_IN, D_SAE, "cpu")
        return theirs, ours

    centred = rows - rows.mean(0)
    whole = an_sae("topk")
    sae.encode, off = whole.encode, (centred - whole(centred)).mean(0)
    sae.decode = lambda codes: whole.decode(codes) + off  # then the residuals have mean 0 too
    theirs, ours = both(centred)
    assert theirs.metadata["explained_variance"] == pytest.approx(ours["explained_variance"], abs=1e-4)
    assert theirs.metadata["l0"] == pytest.approx(ours["l0"])
    assert theirs.metadata["dead_pct"] == pytest.approx(100 * ours["dead_share"])
    theirs, ours = both(rows + 3)
    found = visaebench_results([theirs]).iloc[0]
    assert not found["trusted"]
    assert not abs(theirs.metadata["explained_variance"] - ours["explained_variance"]) < 0.1  # it may be infinite


class Embedded:
    """An evaluating backbone whose images are their embeddings."""

    def extract_activations(self, images, **_):
        return torch.stack(list(images))[:, None]


def test_the_label_free_score_is_ours_over_all_images(metrics):
    generator = torch.Generator().manual_seed(4)
    codes = torch.rand(40, 1, 6, generator=generator) * (torch.rand(40, 1, 6, generator=generator) < 0.6)
    embeddings = torch.randn(40, 5, generator=generator)
    found = metrics["monosemanticity"](top_k_images=40).compute(
        AsGiven(), codes, device="cpu", images=list(embeddings), evaluator_backbone=Embedded()
    )
    expected = activation_similarity_of(codes[:, 0].numpy(), embeddings.numpy())
    np.testing.assert_allclose(found.metadata["ms_distribution"], expected, atol=1e-5)
    assert visaebench_results([found])["trusted"].tolist() == [True]


def test_morans_i_is_ours_and_nothing_scored_is_said(metrics):
    maps = torch.rand(50, 30, 3, generator=torch.Generator().manual_seed(5))
    maps[:, :4] = 0
    found = metrics["localization"](grid_size=(6, 5)).compute(AsGiven(), maps, device="cpu")
    values = [moran_of(maps[:, :, latent].reshape(50, 6, 5).numpy(), n_permutations=1)[0].mean() for latent in range(3)]
    np.testing.assert_allclose(found.metadata["per_feature_scores"], values, atol=1e-5)
    few = metrics["localization"](grid_size=(6, 5)).compute(AsGiven(), maps[:10], device="cpu")
    assert few.value == 0  # too few images for any latent
    assert visaebench_results([found, few])["value"].isna().tolist() == [False, True]


@needs_numpy_2
def test_its_probes_tell_random_labels_and_ours_do_not(metrics):
    generator = torch.Generator().manual_seed(6)
    codes = torch.randn(300, 1, 2000, generator=generator)
    labels = torch.randint(0, 2, (300,), generator=generator).numpy()
    theirs = metrics["sparse_probing"](k_values=[20, 100]).compute(AsGiven(), codes, device="cpu", labels=labels)
    ours = probe_of(codes[:, 0].numpy(), labels, np.arange(300), ks=(20, 100), n_bootstrap=0, strengths=(1.0,))
    assert theirs.metadata["k_accuracies"][100] > 0.75
    assert (ours["auroc"] < 0.65).all()
    assert not visaebench_results([theirs])["trusted"].iloc[0]


@needs_numpy_2
def test_a_whole_evaluation_runs_with_our_sae_and_no_network(metrics, rows):
    import visaebench

    activations = rows[:180].reshape(30, 6, D_IN)
    found = visaebench.evaluate(
        for_visaebench(an_sae("topk")),
        activations=activations,
        labels=np.arange(30) % 2,
        grid_size=(2, 3),
        ood_datasets={},
        metrics=["fvu", "sparse_probing", "localization"],
        device="cpu",
    )
    table = visaebench_results(found)
    assert table["metric"].tolist() == ["fvu", "sparse_probing_auc", "feature_localization"]
    assert table["note"].ne("not looked at").all()
