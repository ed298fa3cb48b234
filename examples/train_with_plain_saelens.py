"""Train an SAE on exported activations with plain SAELens; nothing of this package is imported for that.

    python examples/train_with_plain_saelens.py [DATASET] [--output FOLDER]

DATASET is a folder of cached activations, as `mammosae_plugin.activations.write_saelens_dataset(store, folder)` writes
them of positions of a map or of one vector per image, and as SAELens's own `CacheActivationsRunner` does. Without one
it is made: pooled vectors of a small vision transformer with random weights, of phantoms.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from datasets import load_from_disk
from sae_lens import SAE, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer

BATCH = 32


def main() -> None:
    """Read the arguments, train, save, and load what was saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="a folder of cached activations")
    parser.add_argument("--output", default="plain-sae", help="where the SAE goes")
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--k", type=float, default=4, help="latents that fire per row")
    parser.add_argument("--rows", type=int, default=20_000, help="rows to train on, those that come again included")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = arguments.dataset or exported(Path(scratch))
        train(dataset, arguments)


def train(dataset: str, arguments: argparse.Namespace) -> None:
    """SAELens's store of the dataset, its trainer, and its form for use."""
    (hook_name, shape), *_ = [
        (name, feature.shape) for name, feature in load_from_disk(dataset).features.items() if hasattr(feature, "shape")
    ]
    context_size, d_in = shape  # rows per image and their width
    store = ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        hook_name=hook_name,
        hook_head_index=None,
        context_size=context_size,
        d_in=d_in,
        n_batches_in_buffer=-(-16 * BATCH // context_size),  # images whose rows are mixed
        total_training_tokens=arguments.rows,
        store_batch_size_prompts=8,
        train_batch_size_tokens=BATCH,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=dataset,
    )
    # "matryoshka_independent" too, in a process that has imported mammosae_plugin.training
    sae = TrainingSAE.from_dict(
        {
            "architecture": "batchtopk",
            "d_in": d_in,
            "d_sae": arguments.latents,
            "k": arguments.k,
            "normalize_activations": "expected_average_only_in",
            "metadata": {"hook_name": hook_name},
        }
    )
    config = SAETrainerConfig(
        total_training_samples=arguments.rows,
        train_batch_size_samples=BATCH,
        lr=1e-3,
        lr_end=1e-4,
        lr_decay_steps=arguments.rows // BATCH // 5,
        dead_feature_window=100,
    )
    SAETrainer(config, sae, store).fit()
    sae.save_inference_model(arguments.output)

    loaded = SAE.load_from_disk(arguments.output)
    rows = next(iter(store))
    with torch.no_grad():
        latents = loaded.encode(rows)
        error = (loaded.decode(latents) - rows).square().sum() / (rows - rows.mean(0)).square().sum()
    print(f"{arguments.output}: a {loaded.cfg.architecture()} SAE of {d_in} x {loaded.cfg.d_sae} at {hook_name}")
    print(
        f"{float((latents != 0).sum(1).float().mean()):.1f} latents fire per row, {1 - float(error):.3f} is explained"
    )


def exported(folder: Path) -> str:
    """Cached activations of phantoms: what this package is for, and all that it does here."""
    from timm.models.vision_transformer import VisionTransformer

    from mammosae_plugin.activations import extract_activations, write_saelens_dataset
    from mammosae_plugin.adapters import HookedVisionModel
    from mammosae_plugin.datasets import VinDrMammo, make_phantoms

    make_phantoms(folder / "phantoms", n_patients=16, images_per_patient=2, image_size=(96, 64))
    images = VinDrMammo(folder / "phantoms", image_size=(96, 64))
    network = VisionTransformer(
        img_size=(96, 64), patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=0, global_pool="avg"
    )
    with HookedVisionModel(network, ["fc_norm"]) as model:
        rows = extract_activations(model, images, folder / "rows", hook_name="fc_norm", batch_size=16)
    write_saelens_dataset(rows, folder / "dataset")
    return str(folder / "dataset")


if __name__ == "__main__":
    main()
