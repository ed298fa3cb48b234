"""The fixtures of sparsify and overcomplete, made by the packages themselves: eai-sparsify 1.3.3, overcomplete 0.3.0.

    python make_sparsify_and_overcomplete.py

Made with torch 2.15.0. The config.json of overcomplete's is ours: its state dicts do not say of which class they are.
"""

import json
import os
from pathlib import Path

import matplotlib
import matplotlib.cm
import torch
from safetensors.torch import save_file

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap  # which overcomplete imports, and matplotlib no longer has

from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, TopKSAE  # noqa: E402
from sparsify import SparseCoder, SparseCoderConfig  # noqa: E402

HERE = Path(__file__).parent
D_IN, D_SAE = 8, 20


def rows() -> torch.Tensor:
    """12 rows: of ordinary size, a zero row, a large one, two alike."""
    made = torch.randn(12, D_IN, generator=torch.Generator().manual_seed(1)) * 3 + 0.5
    made[3], made[5], made[7] = 0, made[5] * 100, made[6]
    return made


def fill(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.4)


def keep(folder: Path, latents: torch.Tensor, reconstructions: torch.Tensor) -> None:
    expected = {"rows": rows(), "latents": latents, "reconstructions": reconstructions}
    save_file({key: value.detach().contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
    (folder / "expected.safetensors").chmod(0o644)


def sparsify() -> None:
    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=4))
    fill(coder, 20)
    with torch.no_grad():  # ties: two latents alike in all
        coder.encoder.weight[5], coder.encoder.bias[5] = coder.encoder.weight[2], coder.encoder.bias[2]
    folder = HERE / "sparsify_topk" / "layers.3.mlp"
    coder.save_to_disk(folder)
    (folder / "sae.safetensors").chmod(0o644)
    with torch.no_grad():
        values, places, _ = coder.encode(rows())
        keep(folder, torch.zeros(12, D_SAE).scatter(1, places, values), coder.decode(values, places))


def overcomplete() -> None:
    classes = {
        "standard": (SAE, {}, {"sae_class": "SAE"}),
        "batchnorm": (SAE, {"encoder_module": "mlp_bn_1"}, {"sae_class": "SAE"}),
        "tied": (SAE, {}, {"sae_class": "SAE"}),
        "topk": (TopKSAE, {"top_k": 4}, {"sae_class": "TopKSAE", "top_k": 4}),
        "batchtopk": (BatchTopKSAE, {"top_k": 40}, {"sae_class": "BatchTopKSAE"}),
        "jump": (JumpSAE, {"dictionary_params": {"normalization": "max_l1", "use_multiplier": True}}, None),
    }
    for number, (name, (kind, settings, config)) in enumerate(classes.items()):
        sae = kind(D_IN, D_SAE, **settings)
        if name == "tied":
            sae.tied(bias=True)
        fill(sae, 30 + number)
        sae.train()
        sae(rows())  # running statistics and thresholds
        folder = HERE / f"overcomplete_{name}"
        folder.mkdir(exist_ok=True)
        config = {"sae_class": "JumpSAE", "normalization": "max_l1"} if config is None else config
        if name == "batchtopk":
            config["running_threshold"] = float(sae.running_threshold)
        torch.save(sae.state_dict(), folder / "sae.pth")
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        sae.eval()
        with torch.no_grad():
            _, latents, reconstructions = sae(rows())
        keep(folder, latents, reconstructions)


if __name__ == "__main__":
    sparsify()
    overcomplete()
