"""The fixtures of dictionary_learning: its own classes, run unmodified from a checkout, on rows that meet the corners.

    git clone https://github.com/saprmarks/dictionary_learning && python make_dictionary_learning.py dictionary_learning

Made with commit 60ec6bf, torch 2.15.0. Only the modules of the classes are imported; their neighbours need packages
that are not used here.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
D_IN, D_SAE = 8, 20


def modules(checkout: Path) -> dict[str, types.ModuleType]:
    """The modules of the classes, without what the package's own __init__ imports."""
    root = checkout / "dictionary_learning"
    for name, folder in (("dictionary_learning", root), ("dictionary_learning.trainers", root / "trainers")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    names = ("dictionary", "trainers.top_k", "trainers.batch_top_k", "trainers.matryoshka_batch_top_k")
    return {name: importlib.import_module(f"dictionary_learning.{name}") for name in names}


def rows() -> torch.Tensor:
    """12 rows: of ordinary size, a zero row, a large one, two alike."""
    made = torch.randn(12, D_IN, generator=torch.Generator().manual_seed(1)) * 3 + 0.5
    made[3], made[5], made[7] = 0, made[5] * 100, made[6]
    return made


def main(checkout: Path) -> None:
    found = modules(checkout)
    plain = found["dictionary"]
    made = {
        "standard": (plain.AutoEncoder(D_IN, D_SAE), {"dict_class": "AutoEncoder", "trainer_class": "StandardTrainer"}),
        "new": (plain.AutoEncoderNew(D_IN, D_SAE), {"dict_class": "AutoEncoderNew"}),
        "gated": (plain.GatedAutoEncoder(D_IN, D_SAE), {"dict_class": "GatedAutoEncoder"}),
        "jumprelu": (plain.JumpReluAutoEncoder(D_IN, D_SAE), {"dict_class": "JumpReluAutoEncoder"}),
        "topk": (found["trainers.top_k"].AutoEncoderTopK(D_IN, D_SAE, 4), {"dict_class": "AutoEncoderTopK", "k": 4}),
        "batchtopk": (
            found["trainers.batch_top_k"].BatchTopKSAE(D_IN, D_SAE, 4),
            {"dict_class": "BatchTopKSAE", "k": 4},
        ),
        "matryoshka": (
            found["trainers.matryoshka_batch_top_k"].MatryoshkaBatchTopKSAE(D_IN, D_SAE, 4, [3, 7, 10]),
            {"dict_class": "MatryoshkaBatchTopKSAE", "k": 4, "group_sizes": [3, 7, 10]},
        ),
    }
    x = rows()
    for number, (name, (sae, trainer)) in enumerate(made.items()):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for value in sae.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.4)
            if name == "jumprelu":
                sae.threshold.abs_()
            if name in ("batchtopk", "matryoshka"):
                sae.threshold.fill_(0.7)
            if name == "topk":  # ties: two latents alike in all
                sae.encoder.weight[5], sae.encoder.bias[5] = sae.encoder.weight[2], sae.encoder.bias[2]
        folder = HERE / f"dictionary_learning_{name}"
        folder.mkdir(exist_ok=True)
        torch.save(sae.state_dict(), folder / "ae.pt")
        trainer = {"layer": 3, "lm_name": "some/vit", "submodule_name": "resid_post_layer_3", **trainer}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}, indent=1) + "\n")
        if name == "standard":  # its own loading makes the decoder's columns of length 1
            sae.normalize_decoder()
        with torch.no_grad():
            latents = sae.encode(x)
            expected = {"rows": x, "latents": latents, "reconstructions": sae.decode(latents)}
        save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
