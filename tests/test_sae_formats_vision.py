"""SAEs of saev, ViT-Prisma, OpenAI, PatchSAE and MSAE: latents and reconstructions are those of their own code.

The files were made by those repositories at the commits that tests/data/sae_formats/make_vision.py names.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_adapters import DATA
from sae_lens import SAE
from safetensors.torch import load_file

from mammosae_plugin.adapters import inspect_checkpoint, load_sae
from mammosae_plugin.adapters.checkpoints import CheckpointFormatError, UnsafeCheckpointError, read_torch_checkpoint
from mammosae_plugin.errors import InputError

FILES = DATA / "sae_formats"
MSAE = "16_8_{}_False_False_0.0_cc3m_ViT-L~14_train_image_100_8"
CASES = [
    ("saev-0-relu", "saev", "standard"),
    ("saev-1a-relu", "saev", "standard"),
    ("saev-1a-topk", "saev", "signed_topk"),
    ("saev-1b-topk", "saev", "signed_topk"),
    ("saev-2-relu", "saev", "standard"),
    ("saev-3-topk", "saev", "signed_topk"),
    ("saev-4-relu", "saev", "standard"),
    ("saev-5-relu", "saev", "standard"),
    ("saev-5-topk", "saev", "signed_topk"),
    ("saev-5-batchtopk", "saev", "jumprelu"),
    ("prisma-standard", "vit-prisma", "standard"),
    ("prisma-norm", "vit-prisma", "standard"),
    ("prisma-rescale", "vit-prisma", "standard"),
    ("prisma-topk", "vit-prisma", "topk"),
    ("prisma-gated", "vit-prisma", "gated"),
    ("openai-relu", "openai", "standard"),
    ("openai-tied", "openai", "standard"),
    ("openai-topk", "openai", "topk"),
    ("openai-signed", "openai", "signed_topk"),
    ("patchsae", "patchsae", "standard"),
    (MSAE.format("ReLU_03"), "msae", "standard"),
    (MSAE.format("TopKReLU_3"), "msae", "topk"),
    (MSAE.format("TopKReLU_3_UW"), "msae", "standard"),
    (MSAE.format("BatchTopKReLU_3"), "msae", "standard"),
]


def place(name: str) -> Path:
    """A folder of this name, or the file of it."""
    return FILES / name if (FILES / name).is_dir() else next(FILES.glob(f"{name}.pt*"))


@torch.no_grad()
def assert_as_its_own_code(sae: SAE[Any], name: str) -> None:
    expected = load_file(FILES / f"{name}.expected.safetensors")
    latents = sae.encode(expected["rows"])
    torch.testing.assert_close(latents, expected["latents"], rtol=1e-6, atol=2e-6)
    assert torch.equal(latents != 0, expected["latents"] != 0)
    torch.testing.assert_close(sae.decode(latents), expected["reconstruction"], rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize(("name", "source", "architecture"), CASES, ids=[case[0] for case in CASES])
def test_latents_and_reconstructions_are_those_of_the_library(name: str, source: str, architecture: str) -> None:
    sae = load_sae(place(name))
    assert (sae.cfg.metadata.source_format, sae.cfg.architecture()) == (source, architecture)
    assert sae.cfg.metadata.source_sha256 is not None
    assert_as_its_own_code(sae, name)


@pytest.mark.parametrize("name", ["saev-5-topk", "prisma-norm", "openai-topk", "patchsae", MSAE.format("ReLU_03")])
def test_an_sae_saved_by_saelens_is_still_the_same(name: str, tmp_path: Path) -> None:
    load_sae(place(name)).save_model(tmp_path)
    assert_as_its_own_code(SAE.load_from_disk(tmp_path), name)


@pytest.mark.parametrize(("name", "source", "architecture"), CASES, ids=[case[0] for case in CASES])
def test_each_is_named_by_inspect(name: str, source: str, architecture: str) -> None:
    found = inspect_checkpoint(place(name))
    assert (found.kind, found.architecture, found.loads_with) == (source, architecture, "load_sae")
    assert (found.d_in, found.d_sae) == (8, 16)


def test_what_the_files_say_of_layer_and_network_is_in_the_metadata() -> None:
    prisma = load_sae(place("prisma-topk")).cfg.metadata
    assert prisma.model_name == "open_clip:hf-hub:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"
    assert (prisma.hook_name, prisma.trained_on) == ("transformer.resblocks.9.hook_out", "class_token")
    patchsae = load_sae(place("patchsae")).cfg.metadata
    assert (patchsae.model_name, patchsae.source_layer) == ("openai/clip-vit-base-patch16", 10)  # -2 of 12 blocks
    assert load_sae(place("saev-4-relu")).cfg.metadata.saev_schema == 4
    assert load_sae(place(MSAE.format("TopKReLU_3_UW"))).cfg.metadata.model_name == "open_clip:ViT-L-14/openai"


# -- what cannot be expressed ------------------------------------------------------------------------------------------


def header_said(path: Path, to: Path, **changes: Any) -> Path:
    """A file of saev with another header."""
    line, _, behind = path.read_bytes().partition(b"\n")
    to.write_bytes(json.dumps(json.loads(line) | changes).encode() + b"\n" + behind)
    return to


def settings_said(name: str, to: Path, **changes: Any) -> Path:
    """A file of ViT-Prisma with a config.json beside it that says something else."""
    shutil.copy(place(name), to / "n_images_100.pt")
    (to / "config.json").write_text(json.dumps(changes))
    return to / "n_images_100.pt"


def renamed(name: str, to: Path) -> Path:
    return Path(shutil.copy(place(MSAE.format("TopKReLU_3")), to / name))


def with_tensors(name: str, to: Path, **tensors: Any) -> Path:
    torch.save(read_torch_checkpoint(place(name)) | tensors, to / "sae.pt")
    return to / "sae.pt"


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (lambda _: place("saev-2-batchtopk"), "without a threshold, as saev wrote them before"),
    (lambda to: header_said(place("saev-5-relu"), to / "sae.pt", schema=6), "is of saev's schema 6; this version"),
    (lambda to: settings_said("prisma-standard", to, is_transcoder=True), "is a transcoder of ViT-Prisma"),
    (lambda to: settings_said("prisma-gated", to, activation_fn_str="topk"), "the activation 'topk'"),
    (lambda to: settings_said("prisma-standard", to, activation_fn_str="tanh-relu"), "the activation 'tanh-relu'"),
    (lambda to: settings_said("prisma-standard", to, normalize_activations=None), "do not say how rows are normalised"),
    (lambda to: with_tensors("openai-relu", to, activation="Identity"), "the activation Identity"),
    (lambda to: renamed("msae.pth", to), "under another name than its own"),
    (lambda to: renamed("16_8_TopKReLU_3_False_False_30.0_cc3m.pth", to), "caps its latents by a tanh"),
    (lambda to: renamed("16_8_TopKReLU_3_False_True_0.0_cc3m.pth", to), "normalises rows after centring them"),
    (lambda to: renamed("16_8_TopKabsReLU_3_False_False_0.0_cc3m.pth", to), "MSAE's activation TopKabsReLU"),
    (lambda to: renamed("32_8_TopKReLU_3_False_False_0.0_cc3m.pth", to), "8 x 32 by its name"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_no_sae_of_saelens_does_is_refused_in_one_line(
    make: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(CheckpointFormatError) as caught:
        load_sae(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert reason in str(inspect_checkpoint(path).problem)


def test_the_hint_of_a_refusal_is_the_way_out(tmp_path: Path) -> None:
    file = settings_said("prisma-standard", tmp_path, normalize_activations=None)
    (tmp_path / "config.json").write_text(json.dumps({"normalize_activations": "none"}))
    assert_as_its_own_code(load_sae(file), "prisma-standard")
    file = renamed("16_8_TopKReLU_3_False_False_0.0_cc3m.pth", tmp_path)
    assert_as_its_own_code(load_sae(file), MSAE.format("TopKReLU_3"))


@pytest.mark.parametrize("k", [True, 7.5, None, 0])
def test_a_k_that_is_no_number_of_latents_is_refused_and_one_that_is_helps(k: Any, tmp_path: Path) -> None:
    file = settings_said("prisma-topk", tmp_path, activation_fn_kwargs={"k": k})
    with pytest.raises(CheckpointFormatError, match=rf'has k {k!r} for 16.*{{"activation_fn_kwargs": {{"k": 32}}}}'):
        load_sae(file)
    own = load_sae(place("prisma-topk")).cfg.k
    (tmp_path / "config.json").write_text(json.dumps({"activation_fn_kwargs": {"k": own}}))
    assert_as_its_own_code(load_sae(file), "prisma-topk")
    line = json.loads(place("saev-5-topk").read_bytes().partition(b"\n")[0])
    own = line["cfg"]["activation"]["params"]["top_k"]
    for params in ({"top_k": k}, [own], "top_k", None):
        cfg = {**line["cfg"], "activation": {"cls": "TopK", "params": params}}
        file = header_said(place("saev-5-topk"), tmp_path / "sae.pt", cfg=cfg)
        with pytest.raises(
            CheckpointFormatError, match="has top_k .* for 16 latents; write the number into the params"
        ):
            load_sae(file)
    cfg["activation"]["params"] = {"top_k": own}
    assert_as_its_own_code(load_sae(header_said(file, tmp_path / "again.pt", cfg=cfg)), "saev-5-topk")
    said = read_torch_checkpoint(place("openai-topk"))["activation_state_dict"]
    file = with_tensors("openai-topk", tmp_path, activation_state_dict={**said, "k": k})
    with pytest.raises(CheckpointFormatError, match=f"has k {k!r} for 16 latents; write the number into"):
        load_sae(file)
    assert_as_its_own_code(load_sae(with_tensors("openai-topk", tmp_path, activation_state_dict=said)), "openai-topk")


def test_prisma_normalises_as_its_own_code_where_that_has_no_value_or_does_nothing(tmp_path: Path) -> None:
    """`constant_norm_rescale` divides a row by its length, 0 too; of names that it does not know it does nothing."""
    rescaled = load_sae(place("prisma-rescale"))
    with torch.no_grad():
        latents = rescaled.encode(torch.stack([torch.zeros(8), torch.ones(8)]))
    assert latents[0].isnan().all() and latents[1].isfinite().all()
    rows = load_file(FILES / "prisma-standard.expected.safetensors")["rows"]
    for name in ("expected_average_only_in", "anything"):
        found = load_sae(settings_said("prisma-standard", tmp_path, normalize_activations=name))
        plain = load_sae(settings_said("prisma-standard", tmp_path, normalize_activations="none"))
        assert torch.equal(found.encode(rows), plain.encode(rows))


def test_a_threshold_that_is_not_positive_is_a_relu(tmp_path: Path) -> None:
    """saev's BatchTopK does so in use: before its training has set the threshold, what is positive fires."""
    line, _, behind = place("saev-5-batchtopk").read_bytes().partition(b"\n")
    (tmp_path / "behind.pt").write_bytes(behind)
    weights = torch.load(tmp_path / "behind.pt", weights_only=True) | {"activation.threshold": torch.tensor(0.0)}
    with (tmp_path / "sae.pt").open("wb") as file:
        file.write(line + b"\n")
        torch.save(weights, file)
    sae = load_sae(tmp_path / "sae.pt")
    assert sae.cfg.architecture() == "standard"
    rows = load_file(FILES / "saev-5-relu.expected.safetensors")["rows"]
    assert torch.equal(sae.encode(rows), (rows @ weights["W_enc"] + weights["b_enc"]).relu())


# -- objects of settings, and code -------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("run"),))


def test_code_beside_the_settings_or_behind_a_header_is_refused(tmp_path: Path) -> None:
    content = torch.load(place("openai-relu"), weights_only=True)
    torch.save({"cfg": Payload(), "state_dict": content}, tmp_path / "sae.pt")
    with pytest.raises(UnsafeCheckpointError):
        load_sae(tmp_path / "sae.pt")
    with (tmp_path / "saev.pt").open("wb") as file:
        file.write(b'{"schema": 5, "cfg": {}}\n')
        torch.save({"W_enc": Payload()}, file)
    with pytest.raises(UnsafeCheckpointError, match="asks for"):
        load_sae(tmp_path / "saev.pt")
    (tmp_path / "cut.pt").write_bytes(place("saev-5-relu").read_bytes()[:900])
    with pytest.raises(InputError, match="damaged or truncated behind its first line"):
        load_sae(tmp_path / "cut.pt")
    assert not Path("run").exists()


@pytest.mark.parametrize("odd", [{"mean_center": None}, {"mean_center": torch.zeros(3)}, {"scaling_factor": 0.0}])
def test_an_sae_of_msae_without_its_scale_is_read_once_that_is_written_into_it(
    odd: dict[str, Any], tmp_path: Path
) -> None:
    own = place(MSAE.format("TopKReLU_3"))
    content, file = torch.load(own, weights_only=True), tmp_path / own.name
    torch.save(content | odd, file)
    with pytest.raises(CheckpointFormatError, match="write mean_center .* and scaling_factor .* into it, zeros and 1"):
        load_sae(file)
    torch.save(content | {name: content[name] for name in odd}, file)
    assert_as_its_own_code(load_sae(file), MSAE.format("TopKReLU_3"))
    torch.save(content | {"mean_center": torch.zeros(8), "scaling_factor": 1.0}, file)  # where they were not
    assert torch.equal(load_sae(file).W_enc, content["model"]["encoder"])
