"""Ablate the ten best latents of a finding inside an nnsight trace, and find the latents table's logits again.

    pip install 'mammosae-plugin[nnsight]'
    python examples/ablate_with_nnsight.py

It draws phantoms and takes random weights, so that it runs anywhere in seconds. With your own files, the network is
`load_mammo_clip("b5-model-best-epoch-7.tar", "classifier.pth")` and the SAE
`load_vision_sae("sparse_autoencoder_final.pt")`; the rest stays as it is.
"""

import tempfile
from pathlib import Path

import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import nn

from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.intervention import intervene
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.probing import class_mean_latents, rank_latents

CONCEPT = "Mass"
SIZE = (96, 64)


def main(folder: Path) -> None:
    """Make data, a network and an SAE, encode the latents table, and compare one of its logits with a trace's."""
    make_phantoms(folder / "phantoms", n_patients=12, images_per_patient=2, image_size=SIZE, mass_share=0.5)
    dataset = VinDrMammo(folder / "phantoms", image_size=SIZE)

    torch.manual_seed(0)
    network = new_classifier("tinynet_e", n_class=1, seed=0)
    give_batch_norms_their_statistics(network, torch.stack([dataset[i]["image"] for i in range(8)]))
    metadata = SAEMetadata(hook_name="bn2.hook_out", layout="channels_last")
    sae = StandardSAE(StandardSAEConfig(d_in=network.num_features, d_sae=256, metadata=metadata))

    with HookedVisionModel(network, ["bn2"]) as model:
        # What the table says: one pass over all images, then no network.
        table = encode_latents(model, sae, dataset, folder / "table", heads={CONCEPT: network.classifier})
        ranking = rank_latents(class_mean_latents(table, CONCEPT))
        ten_best = ranking.indices[1, :10]
        row = int(table.rows(CONCEPT, split="test").image_rows[0])
        own = table.logits_with_sae(CONCEPT)[row, 0]
        from_table = intervene(table, ten_best, mode="deactivate", head=CONCEPT)[row, 0]

        # What the network says, with the same latents set to zero while it runs.
        number = dataset.images["image_id"].tolist().index(table.images["image_id"][row])
        image = dataset[number]["image"][None]
        model.add_sae(sae)
        n = model.nnsight()
        with torch.no_grad(), n.trace(image):
            latents = n.bn2.hook_out.hook_sae_acts_post.output  # (1, h, w, d_sae)
            latents[..., ten_best] = 0
            from_trace = n.output[0, 0].save()

    print(f"latents set to zero:             {', '.join(map(str, ten_best))}")
    print(f"logit with the SAE, all latents: {own:.6f}")
    print(f"without the ten, from the table: {from_table:.6f}")
    print(f"without the ten, in the trace:   {from_trace.item():.6f}")
    assert abs(from_trace.item() - from_table) <= 1e-4
    assert abs(from_table - own) > 1e-3


def give_batch_norms_their_statistics(network: nn.Module, images: torch.Tensor) -> None:
    """One pass in training mode; with a fresh network's statistics the final map would be nearly zero."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average over the batches seen, here one
    with torch.no_grad():
        network.train()(images)
    network.eval()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
