"""Open a published SAIL SAE, in three lines, and see how many latents of each level fire on embeddings.

    python examples/open_a_sail_sae.py [FILE] [--embeddings EMBEDDINGS.npy]

FILE is a checkpoint of SAIL's trainer; without one it is `dinov3_sae.ckpt` of `pwesp/sail` on the Hub. Without
embeddings of the SAE's own network, (n, d) float32, noise takes their place: that shows the steps, and no more.
"""

import argparse

import numpy as np
import torch

from mammosae_plugin.adapters import load_vision_sae
from mammosae_plugin.adapters.input_normalization import normalized


def main() -> None:
    """Read the arguments, open the SAE, and encode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="a checkpoint of SAIL's trainer")
    parser.add_argument("--embeddings", help="an .npy file of vectors, one row per image")
    arguments = parser.parse_args()

    sae = (
        load_vision_sae(arguments.file) if arguments.file else load_vision_sae("pwesp/sail", filename="dinov3_sae.ckpt")
    )
    about = sae.cfg.metadata
    print(f"{sae.cfg.d_in} x {sae.cfg.d_sae}, levels {about.levels}, trained with k {about.k}")

    if arguments.embeddings:
        rows = torch.from_numpy(np.load(arguments.embeddings).astype(np.float32))
    else:
        rows = torch.randn(64, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows_of_length_1, _ = normalized(sae, rows)  # as the metadata say; plain SAELens does not do it
        latents = sae.encode(rows_of_length_1)
        for level in about.levels or [sae.cfg.d_sae]:  # a level is a prefix
            reconstruction = latents[:, :level] @ sae.W_dec[:level] + sae.b_dec
            error = (reconstruction - rows_of_length_1).square().mean()
            fires = (latents[:, :level] > 0).sum(1).float().mean()
            print(
                f"level of {level:5d}: {float(fires):7.1f} latents fire per row, mean squared error {float(error):.3g}"
            )


if __name__ == "__main__":
    main()
