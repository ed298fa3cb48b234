"""Train an SAE, see exactly what would be published of it, publish it, and load it with plain SAELens.

    python examples/publish_your_own_sae.py YOUR-NAME/your-saes             # shows what would go out
    python examples/publish_your_own_sae.py YOUR-NAME/your-saes --confirm   # sends it

`hf auth login` first. The repository is private until you make it public. So that it runs anywhere, the data are
phantoms and the network a small one that is trained on them; with your own, all after `train_sae` stays as it is.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from sae_lens import SAE

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.hub import prepare_sae
from mammosae_plugin.privacy.guard import PrivacyContext
from mammosae_plugin.training import ClassifierTraining, SAETraining, train_classifier, train_sae

SIZE = (96, 64)
SAE_ID = "final_map"


def main() -> None:
    """Train, publish, and compare what the Hub gives back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", help="owner/name on the Hub")
    parser.add_argument("--confirm", action="store_true", help="send it")
    parser.add_argument("--folder", type=Path, help="where data, network and SAE stay; made if need be")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())

    make_phantoms(folder / "phantoms", n_patients=12, images_per_patient=2, image_size=SIZE, mass_share=0.5)
    dataset = VinDrMammo(folder / "phantoms", image_size=SIZE)
    training = dataset.select(split="training")
    how = ClassifierTraining(kind="finetuned", epochs=2, batch_size=8, lr=1e-3)
    encoder = new_classifier("tinynet_e", n_class=0, seed=0)
    classifier = train_classifier(encoder, training, "Mass", folder / "network.safetensors", how)
    with HookedVisionModel(classifier, ["bn2"]) as model:
        rows = extract_activations(model, training, folder / "rows", hook_name="bn2")
    sae = train_sae(rows, folder / "sae", SAETraining(d_sae=256, epochs=20, batch_size=32))

    # The context knows every id of the data: none of them may occur in any byte that goes out.
    publication = prepare_sae(
        folder / "sae",
        arguments.repo,
        sae_id=SAE_ID,
        licence="mit",
        context=PrivacyContext.of_dataset(dataset),
        tag="v1",
    )
    if not arguments.confirm:
        print(publication.describe())
        print("Nothing was sent. Add --confirm to send it.")
        return
    print(publication.send().as_text())

    again = SAE.from_pretrained(arguments.repo, SAE_ID)  # plain SAELens, as anybody would
    some = torch.randn(8, sae.cfg.d_in)
    assert torch.allclose(again.encode(some), sae.encode(some), atol=1e-6)
    print(f"SAE.from_pretrained({arguments.repo!r}, {SAE_ID!r}) gives the same latents")


if __name__ == "__main__":
    main()
