"""Decoding through the latents that fire, against the SAE's own."""

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from mammosae_plugin.latents.decoding import Decoder
from mammosae_plugin.sparse_products import Places

D_IN, D_SAE, ROWS = 12, 96, 40
KINDS = {
    "standard": lambda: StandardSAE(StandardSAEConfig(D_IN, D_SAE)),
    "topk": lambda: TopKSAE(TopKSAEConfig(D_IN, D_SAE, k=3)),
    "topk, by norms": lambda: TopKSAE(TopKSAEConfig(D_IN, D_SAE, k=3, rescale_acts_by_decoder_norm=True)),
    "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(D_IN, D_SAE)),
}


def random_sae(kind: str):
    torch.manual_seed(0)
    sae = KINDS[kind]()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    return sae.eval()


def codes(share: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(ROWS, D_SAE, generator=generator)
    return values * (torch.rand(ROWS, D_SAE, generator=generator) < share)


@pytest.mark.parametrize("share", [0.0, 0.04, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_sae_decodes(kind, share, monkeypatch):
    sae, latents, sparse = random_sae(kind), codes(share), []
    times = Places.times
    monkeypatch.setattr(Places, "times", lambda *given: sparse.append(None) or times(*given))
    with torch.inference_mode():
        found = Decoder(sae)(latents)
        torch.testing.assert_close(found, sae.decode(latents), rtol=1e-5, atol=1e-5)
    # Its decoder divides by norms, which the rows of W_dec do not show; or too many latents fire.
    assert bool(sparse) == (kind != "topk, by norms" and share < 0.5)


def test_what_hangs_at_a_hook_of_the_sae_acts():
    sae, latents = random_sae("standard"), codes(0.04)
    sae.hook_sae_recons.add_hook(lambda value, hook: 2 * value)
    with torch.inference_mode():
        assert torch.equal(Decoder(sae)(latents), sae.decode(latents))


def test_products_are_those_of_the_dense_matrix_also_where_rows_and_columns_are_empty():
    matrix = codes(0.02).double()
    matrix[5:9] = 0
    matrix[:, 20:90] = 0
    places = Places.of(matrix)
    values = matrix[places.rows, places.latents]
    decoder, rows = torch.randn(D_SAE, D_IN).double(), torch.randn(ROWS, D_IN).double()
    torch.testing.assert_close(places.times(values, decoder), matrix @ decoder)
    torch.testing.assert_close(places.transposed_times(values, rows), matrix.T @ rows)
    torch.testing.assert_close(places.transposed_times(values, rows, columns=True), (matrix.T @ rows).T)
    torch.testing.assert_close(places.dots(rows, decoder), (rows @ decoder.T)[places.rows, places.latents])
