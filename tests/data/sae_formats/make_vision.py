"""Make the files of SAEs of saev, ViT-Prisma, OpenAI's sparse_autoencoder, PatchSAE and MSAE, by their own code.

Each is saved as that repository saves it, tiny and with random weights; beside it `<name>.expected.safetensors` holds
rows, and the latents and reconstructions that the repository's own forward pass gives of them in float32. Run with the
repositories checked out at the commits below, each in a process of its own, since saev has one name at six ages:

    python make_vision.py saev-0 path/to/saev      # the folder that holds the package
    python make_vision.py prisma path/to/ViT-Prisma/src

| what | repository | commit |
|---|---|---|
| saev-0 | OSU-NLP-Group/saev | 97b00d9 (header without schema) |
| saev-1a | OSU-NLP-Group/saev | d991de3 (schema 1, named by the class of the activation) |
| saev-1b | OSU-NLP-Group/saev | 8d38c23, whose reader knows a second form of schema 1; no commit writes it |
| saev-2 | OSU-NLP-Group/saev | 8d38c23 (schema 2) |
| saev-3 | OSU-NLP-Group/saev | c3dd0ae (schema 3) |
| saev-4 | OSU-NLP-Group/saev | 513cd52 (schema 4) |
| saev-5 | OSU-NLP-Group/saev | 3d73f1f (schema 5) |
| prisma | Prisma-Multimodal/ViT-Prisma | aa5ff6a |
| openai | openai/sparse_autoencoder | 4965b94 |
| patchsae | dynamical-inference/patchsae | 763eceb |
| msae | WolodjaZ/MSAE | c0bf439 |

torch 2.14, numpy 2, Python 3.11. Packages that no forward pass needs are replaced by empty ones.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
D_IN, FACTOR, K = 8, 2, 3


class _Root(torch.nn.Module):
    def setup(self) -> None:
        """TransformerLens names the hook points here, of which none is used."""


def stub(*names: str) -> None:
    """Empty modules under names that are imported for other ends; whatever is asked of them is a decorator."""
    for name in names:
        module = types.ModuleType(name)
        module.__getattr__ = lambda attribute: lambda first=None, *_, **__: first  # type: ignore[method-assign]
        module.__path__ = []
        sys.modules[name] = module


def keep(name: str, rows: torch.Tensor, latents: torch.Tensor, reconstruction: torch.Tensor) -> None:
    tensors = {"rows": rows, "latents": latents, "reconstruction": reconstruction}
    file = HERE / f"{name}.expected.safetensors"
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, file)
    file.chmod(0o644)


def drawn(module: torch.nn.Module) -> torch.Tensor:
    """Random weights and biases that all matter, and rows off centre."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    return torch.randn(6, D_IN) + 0.5


def saev(age: str) -> None:
    modeling = importlib.import_module("saev.nn" if age == "0" else "saev.nn.modeling")
    config = importlib.import_module("saev.config") if age in ("0", "1a") else modeling
    sizes = {"d_vit" if age in ("0", "1a", "1b", "2") else "d_model": D_IN}
    sizes |= {"d_sae": D_IN * FACTOR} if age in ("4", "5") else {"exp_factor": FACTOR}
    kinds = {
        "0": ["SparseAutoencoder"], "1a": ["Relu", "TopK"], "1b": ["TopK"], "2": ["Relu", "BatchTopK"],
        "3": ["TopK"], "4": ["Relu"], "5": ["Relu", "TopK", "BatchTopK"],
    }  # fmt: skip
    for kind in kinds[age]:
        k = {} if kind in ("SparseAutoencoder", "Relu") else {"top_k": K}
        if age in ("0", "1a"):
            cfg = getattr(config, kind)(**sizes, **k)
        else:
            cfg = config.SparseAutoencoderConfig(**sizes, activation=getattr(config, kind)(**k))
        sae = modeling.SparseAutoencoder(cfg)
        rows = drawn(sae)
        if "activation.threshold" in sae.state_dict():
            sae.activation.threshold.fill_(0.7)
        sae.eval()
        name = f"saev-{age}-{'relu' if kind == 'SparseAutoencoder' else kind.lower()}"
        modeling.dump(str(HERE / f"{name}.pt"), sae)
        if age == "1b":
            line, _, behind = (HERE / f"{name}.pt").read_bytes().partition(b"\n")
            header = json.loads(line) | {"schema": 1, "cls": "SparseAutoencoderConfig"}
            (HERE / f"{name}.pt").write_bytes(json.dumps(header).encode() + b"\n" + behind)
        sae = modeling.load(str(HERE / f"{name}.pt")).eval()
        out = sae(rows)
        x_hat, latents = (out.x_hats, out.f_x) if age == "5" else out[:2]
        keep(name, rows, latents, x_hat if x_hat.dim() == 2 else x_hat[:, -1])


def prisma() -> None:
    stub("line_profiler", "vit_prisma.sae.train_sae", "vit_prisma.sae.evals")
    for package in ("vit_prisma", "vit_prisma.sae", "vit_prisma.sae.training", "vit_prisma.prisma_tools"):
        module = types.ModuleType(package)  # without what its __init__ imports
        module.__path__ = [str(Path(sys.argv[2]) / package.replace(".", "/"))]
        sys.modules[package] = module
    saes = importlib.import_module("vit_prisma.sae.sae")
    config = importlib.import_module("vit_prisma.sae.config")
    for name, kind, said in (
        ("standard", "StandardSparseAutoencoder", {"activation_fn_str": "relu", "normalize_activations": "none"}),
        ("norm", "StandardSparseAutoencoder", {"activation_fn_str": "relu", "normalize_activations": "layer_norm"}),
        ("rescale", "StandardSparseAutoencoder",
         {"activation_fn_str": "relu", "normalize_activations": "constant_norm_rescale"}),
        ("topk", "StandardSparseAutoencoder",
         {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "cls_token_only": True}),
        ("gated", "GatedSparseAutoencoder",
         {"activation_fn_str": "relu", "normalize_activations": "none", "architecture": "gated"}),
    ):  # fmt: skip
        cfg = config.VisionModelSAERunnerConfig(
            d_in=D_IN, expansion_factor=FACTOR, _device="cpu", layer_subtype="hook_resid_post", checkpoint_path="out",
            dataset_path="images", dataset_train_path="train", dataset_val_path="val", **said,
        )  # fmt: skip
        sae = getattr(saes, kind)(cfg).eval()
        rows = drawn(sae)
        _, latents = sae.encode(rows)
        keep(f"prisma-{name}", rows, latents, sae.decode(latents))
        if name == "norm":  # as the Hub has them: weights.pt with config.json beside
            folder = HERE / "prisma-norm"
            folder.mkdir(exist_ok=True)
            torch.save(sae.state_dict(), folder / "weights.pt")
            cfg.save_config(str(folder / "config.json"))
        else:
            sae.save_model(str(HERE / f"prisma-{name}.pt"))


def openai() -> None:
    stub("blobfile")
    model = importlib.import_module("sparse_autoencoder.model")
    for name, activation, more in (
        ("relu", torch.nn.ReLU(), {}),
        ("topk", model.TopK(K), {"normalize": True}),
        ("signed", model.TopK(K, postact_fn=torch.nn.Identity()), {"normalize": True}),
        ("tied", torch.nn.ReLU(), {"tied": True}),
    ):
        sae = model.Autoencoder(D_IN * FACTOR, D_IN, activation=activation, **more).eval()
        rows = drawn(sae)
        _, latents, reconstruction = sae(rows)
        keep(f"openai-{name}", rows, latents, reconstruction)
        torch.save(sae.state_dict(), HERE / f"openai-{name}.pt")


def patchsae() -> None:
    stub("wandb", "geom_median", "geom_median.torch", "transformer_lens")
    points = types.ModuleType("transformer_lens.hook_points")
    points.HookPoint, points.HookedRootModule = torch.nn.Identity, _Root  # type: ignore[attr-defined]
    sys.modules[points.__name__] = points
    sys.modules["wandb"].util = types.SimpleNamespace(generate_id=lambda: "id")  # type: ignore[attr-defined]
    saes = importlib.import_module("src.sae_training.sparse_autoencoder")
    config = importlib.import_module("src.sae_training.config")
    cfg = config.ViTSAERunnerConfig(
        d_in=D_IN, expansion_factor=FACTOR, model_name="openai/clip-vit-base-patch16", block_layer=-2,
        use_ghost_grads=False,
    )  # fmt: skip
    sae = saes.SparseAutoencoder(cfg, torch.device("cpu")).eval()
    rows = drawn(sae)
    reconstruction, latents, _ = sae(rows)
    keep("patchsae", rows, latents, reconstruction)
    sae.save_model(str(HERE / "patchsae.pt"))


def msae() -> None:
    saes = importlib.import_module("sae")
    d_sae, mean = D_IN * FACTOR, torch.linspace(-0.2, 0.3, D_IN)
    for name, activation, more in (
        ("ReLU_03_False_False_0.0", "ReLU", {}),
        (f"TopKReLU_{K}_False_False_0.0", f"TopKReLU_{K}", {}),
        (f"TopKReLU_{K}_UW_False_False_0.0", "TopKReLU", {"nesting_list": [K, 6, d_sae]}),
        (f"BatchTopKReLU_{K}_False_False_0.0", f"BatchTopKReLU_{K}", {}),
    ):
        kind = saes.MatryoshkaAutoencoder if more else saes.Autoencoder
        sae = kind(d_sae, D_IN, activation=activation, latent_soft_cap=0.0, **more).eval()
        rows = drawn(sae)
        file = HERE / f"{d_sae}_{D_IN}_{name}_cc3m_ViT-L~14_train_image_100_{D_IN}.pth"
        content = {"model": sae.state_dict(), "mean_center": mean, "scaling_factor": 1.7, "target_norm": D_IN**0.5}
        torch.save(content, file)
        wrapped = saes.SAE(str(file)).eval()  # what it is in use
        sparse, full = wrapped.encode(rows)
        latents = sparse if name.startswith("TopKReLU") and not more else full
        keep(file.name.removesuffix(".pth"), rows, latents, wrapped.decode(latents))


if __name__ == "__main__":
    what, where = sys.argv[1:]
    sys.path.insert(0, where)
    if what.startswith("saev-"):
        stub("submitit")
        saev(what.removeprefix("saev-"))
    else:
        {"prisma": prisma, "openai": openai, "patchsae": patchsae, "msae": msae}[what]()
