"""Measures of rows that SAELens has too, on the same rows."""

import numpy as np
import pytest
import torch
from helpers_study import random_sae
from sae_lens.evals import get_sparsity_and_variance_metrics
from sae_lens.synthetic.evals import DeadLatentsCalculator, L0Calculator
from sae_lens.training.activation_scaler import ActivationScaler

from mammosae_plugin.analysis import firing_density_of
from mammosae_plugin.measures.reconstruction import measure

D_IN, D_SAE = 12, 32


@pytest.fixture(scope="module")
def rows():
    return torch.randn(6, 50, D_IN, generator=torch.Generator().manual_seed(0)) + 2


class Rows:
    """A model and a store of prompts whose activations are rows (n, d) at once."""

    def __init__(self, rows):
        self.left = list(rows)

    def get_batch_tokens(self, _):
        return torch.zeros(1, len(self.left[0]), dtype=torch.long)

    def run_with_cache(self, *_, names_filter, **__):
        return None, {names_filter[0]: self.left.pop(0)[None]}


def test_what_saelens_measures_of_rows_is_what_we_do(rows):
    sae = random_sae(D_IN, D_SAE, hook_name="blocks.0.hook_out")
    given = Rows(rows)
    theirs, of_latents = get_sparsity_and_variance_metrics(
        sae,
        given,
        given,
        ActivationScaler(),
        n_batches=len(rows),
        compute_l2_norms=False,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        eval_batch_size_prompts=1,
        model_kwargs={},
    )
    ours = measure(lambda batch: (sae.encode(batch), sae(batch)), list(rows), D_IN, D_SAE, "cpu")
    assert theirs["explained_variance"] == pytest.approx(ours["explained_variance"], abs=1e-5)
    assert theirs["l0"] == pytest.approx(ours["l0"])
    assert theirs["mse"] == pytest.approx(D_IN * ours["mse"], rel=1e-5)
    every = rows.flatten(0, 1)
    codes = sae.encode(every).detach()
    density = firing_density_of(codes.numpy(), np.arange(len(every)), n_bootstrap=0)
    np.testing.assert_allclose(density.latents["rate"], of_latents["feature_density"], atol=1e-6)
    assert density.histogram == ours["density"]
    assert density.dead_share == pytest.approx(ours["dead_share"])

    counted, dead = L0Calculator(), DeadLatentsCalculator(D_SAE)
    counted.add_batch(codes)
    dead.add_batch(codes)
    assert counted.compute() == pytest.approx(ours["l0"])
    assert dead.compute() == round(D_SAE * ours["dead_share"]) > 0
