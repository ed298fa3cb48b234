"""SAEs and checkpoints from the Hub, by release, repo and URL, against a Hub on this machine."""

import dataclasses
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_adapters import DATA, fixture_checkpoint, fixture_downstream
from helpers_hub import LoopbackHub, run_on_hub
from sae_lens.loading import pretrained_sae_loaders, pretrained_saes_directory
from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup, get_pretrained_saes_directory
from typer.testing import CliRunner

from mammosae_plugin.adapters import load_mammo_clip, load_sae, load_vision_sae
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.hub import RELEASES, Release, register_releases
from mammosae_plugin.hub_requests import REPOSITORY
from mammosae_plugin.training import save_sae

CHANGED = "upstream changed: "
TINY = DATA / "vision_sae_tiny.pt"
PRETRAINING = "Pre-trained-checkpoints/b2-model-best-epoch-10.tar"
DOWNSTREAM = "Downstream-checkpoints/b2_ft_mass.pth"
FORMS = [  # one of each of these libraries
    "openai-topk.pt",
    "patchsae.pt",
    "prisma-norm/weights.pt",
    "saev-5-topk.pt",
    "dictionary_learning_batchtopk/ae.pt",
    "sparsify_topk/layers.3.mlp",
]
BESIDE = ["prisma-norm/config.json", "dictionary_learning_batchtopk/config.json"]
OF_A_FOLDER = ["sparsify_topk/layers.3.mlp/cfg.json", "sparsify_topk/layers.3.mlp/sae.safetensors"]
NAMED = [  # the releases whose file stands in the table, each with what lies under its name here
    ("sail-dinov3-vitl16", "matryoshka", "pwesp/sail", "dinov3_sae.ckpt", "sail/sae/last.ckpt", "sail"),
    ("sail-biomedparse", "matryoshka", "pwesp/sail", "biomedparse_sae.ckpt", "sail/sae/last.ckpt", "sail"),
    ("msae-clip-vitl14-cc3m", "matryoshka_rw", "WolodjaZ/MSAE", None, None, "msae"),
    *(
        (name, layer, repo, file, f"sae_formats/saev-{schema}-relu.pt", "saev")
        for name, layer, repo, file, schema in (
            ("saev-bioclip-vitb16-inat21", "layer_10", "osunlp/SAE_BioCLIP_24K_ViT-B-16_iNat21", "sae.pt", "1a"),
            ("saev-dinov2-vitb14-in1k", "layer_10", "osunlp/SAE_DINOv2_24K_ViT-B-14_IN1K", "sae.pt", 2),
            ("saev-dinov3-vitl16-in1k", "layer_23/lnleoyf6", "osunlp/SAE_DINOv3_ViT-L-16_IN1K",
             "layer_23/lnleoyf6/sae.pt", 4),
        )
    ),
]  # fmt: skip
PRISMA = "Prisma-Multimodal/sparse-autoencoder-clip-b-32-sae-vanilla-x64-layer-9-hook_mlp_out-l1-1e-05"
PATCHES = "Prisma-Multimodal/imagenet-sweep-vanilla-x64-Spatial_max_3-hook_resid_post-935.601989746094-99"

PROGRAM = """
import sys, warnings
import mammosae_plugin.hub
import huggingface_hub.constants
from functools import partial
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from mammosae_plugin.adapters import (
    inspect_checkpoint, load_mammo_clip, load_sae, load_vision_sae, vision_sae_huggingface_loader
)
from mammosae_plugin.adapters.sae_formats.loading import load_found
from mammosae_plugin.adapters.sae_formats.table import LAYOUTS
from mammosae_plugin.study.inputs import existing
from mammosae_plugin.hub import Release, register_releases

warnings.simplefilter("ignore")
first, second, local = sys.argv[1:]
RELEASE, REPO, FILE = ("mammo-sae-b5-vindr", "layer_39"), "KKNakka/MammoSAE", "sparse_autoencoder_final.pt"
CLIP = "shawn24/Mammo-CLIP"
PRETRAINING, DOWNSTREAM = "Pre-trained-checkpoints/b2-model-best-epoch-10.tar", "Downstream-checkpoints/b2_ft_mass.pth"

FORMS = {forms!r}

def facts(sae):
    return {"class": type(sae).__name__, "sum": float(sae.W_enc.detach().double().sum()), **sae.cfg.metadata.to_dict()}

seen = {"before": attempt(lambda: facts(SAE.from_pretrained(*RELEASE)))}
converter = partial(vision_sae_huggingface_loader, revision="v1")
seen["converter"] = facts(SAE.from_pretrained(REPO, FILE, converter=converter))

seen["registered"] = register_releases()
directory = dict(get_pretrained_saes_directory())
seen["again"] = register_releases() == seen["registered"] and get_pretrained_saes_directory() == directory
seen["release"] = facts(SAE.from_pretrained(*RELEASE))
seen["config"] = load_sae_config_from_huggingface(*RELEASE)
seen["saev"] = facts(SAE.from_pretrained("saev-clip-vitb16-in1k", "layer_10"))
seen["prisma"] = facts(SAE.from_pretrained("prisma-clip-vitb32-all-tokens", "blocks.9.hook_mlp_out"))
two = ("prisma-clip-vitb32-patches", "blocks.3.hook_resid_post")
seen["prisma of many"] = attempt(lambda: facts(SAE.from_pretrained(*two)))
files = {file.split("/")[0].removesuffix(".pt"): file for file in FORMS}
register_releases([Release("forms", "someone/forms", "a network", files, foreign=True)])
for name, sae_id in {named!r}:
    seen[name] = facts(SAE.from_pretrained(name, sae_id))
for name in files:
    seen[name] = facts(SAE.from_pretrained("forms", name))
register_releases([Release("ours", "someone/saes", "mammo_clip_b5", {"final": "layer_39"})])
seen["own format"] = facts(SAE.from_pretrained("ours", "final"))

seen["repo"] = facts(load_vision_sae(REPO))
seen["repo at tag"] = facts(load_vision_sae(REPO, revision="v1"))
seen["url at tag"] = facts(load_vision_sae(f"hub://{REPO}@v1/{FILE}"))
seen["url at commit"] = facts(load_vision_sae(f"hf://{REPO}@{first}/{FILE}"))
seen["url at pull request"] = facts(load_vision_sae(f"hf://{REPO}@refs%2Fpr%2F1/{FILE}"))
peers = "hub://someone/peers/trainer_0"
seen["peer's folder"] = facts(load_sae("someone/peers", filename="trainer_0"))
seen["peer's file"] = facts(load_sae(f"{peers}/ae.pt"))
seen["peer's file in a study"] = facts(load_found(existing(f"{peers}/ae.pt", LAYOUTS)))
seen["url of folder"] = facts(load_vision_sae("hub://someone/saes/layer_39"))

seen["classifier"] = load_mammo_clip(CLIP, filename=PRETRAINING, classifier_filename=DOWNSTREAM, revision="v1").source
seen["mixed"] = load_mammo_clip(local, f"hf://{CLIP}/{DOWNSTREAM}").source
seen["inspected"] = inspect_checkpoint(f"hf://{CLIP}@v1/{DOWNSTREAM}").as_dict()
seen["inspected folder"] = inspect_checkpoint("hf://someone/saes/layer_39").as_dict()

def refusal(*arguments, **options):
    return attempt(lambda: load_mammo_clip(*arguments, **options).source)

seen["no repo"] = refusal("hf://someone/nothing/a.tar")
seen["no repo or path"] = refusal("runs/model", filename="a.tar")
seen["no file"] = refusal(CLIP, filename="b2-model-best-epoch-10.tar")
seen["misspelt file"] = refusal(CLIP, filename="Downstream-checkpoints/b2_ft_maas.pth")
seen["no revision"] = refusal(CLIP, filename=PRETRAINING, revision="v9")
seen["gated"] = refusal("hf://batmanLab/Mammo-FM/model.tar")
seen["page"] = refusal("hf://someone/saes/page.pt")

huggingface_hub.constants.HF_HUB_OFFLINE = True
seen["offline and cached"] = facts(load_vision_sae(REPO))
seen["offline release"] = facts(SAE.from_pretrained("prisma-clip-vitb32-all-tokens", "blocks.9.hook_mlp_out"))
seen["offline and not cached"] = refusal(CLIP, filename="another.tar")
"""


@dataclasses.dataclass
class Visit:
    """What one process saw of the Hub, and what was on it."""

    seen: dict[str, Any]
    first: str
    second: str
    clip: str
    folder: Path


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    folder = tmp_path_factory.mktemp("hub")
    torch.save(fixture_checkpoint("b2"), folder / "pretraining.tar")
    torch.save(fixture_downstream("b2"), folder / "downstream.pth")
    other = {key: tensor + 1 for key, tensor in torch.load(TINY, weights_only=True).items()}
    torch.save(other, folder / "other.pt")
    save_sae(load_vision_sae(TINY), folder / "sae", metadata={"hook_name": "blocks.6.hook_out"})
    with LoopbackHub() as hub:
        first = hub.commit("KKNakka/MammoSAE", {"sparse_autoencoder_final.pt": folder / "other.pt"}, tag="v1")
        hub.repos["model", "KKNakka/MammoSAE"].refs["refs/pr/1"] = first
        second = hub.commit("KKNakka/MammoSAE", {"sparse_autoencoder_final.pt": TINY})
        files = {f"layer_39/{path.name}": path for path in (folder / "sae").iterdir()}
        hub.commit("someone/saes", {**files, "page.pt": b"<html>Sign in</html>"})
        clip = hub.commit(
            "shawn24/Mammo-CLIP",
            {PRETRAINING: folder / "pretraining.tar", DOWNSTREAM: folder / "downstream.pth"},
            tag="v1",
        )
        forms = DATA / "sae_formats"
        hub.commit("osunlp/SAE_CLIP_24K_ViT-B-16_IN1K", {"sae.pt": forms / "saev-0-relu.pt"})
        norm = {name: forms / "prisma-norm" / name for name in ("config.json", "weights.pt")}
        hub.commit(PRISMA, {"config.json": norm["config.json"], "n_images_2600058.pt": norm["weights.pt"]})
        hub.commit(PATCHES, {"a.pt": norm["weights.pt"], "b.pt": norm["weights.pt"]})
        files = {name: forms / name for name in (*FORMS, *BESIDE, *OF_A_FOLDER) if (forms / name).is_file()}
        hub.commit("someone/forms", files)
        for _, _, repo, file, fixture, _ in NAMED:
            if fixture is not None:
                hub.commit(repo, {file: DATA / fixture})
        torch.save(msae_of_the_width_in_its_name(), folder / "msae.pth")
        hub.commit("WolodjaZ/MSAE", {one_release("msae-clip-vitl14-cc3m").saes["matryoshka_rw"]: folder / "msae.pth"})
        peer = forms / "dictionary_learning_topk"
        hub.commit("someone/peers", {f"trainer_0/{name}": peer / name for name in ("config.json", "ae.pt")})
        hub.commit("batmanLab/Mammo-FM", {"model.tar": b"secret"}, gated=True)
        seen = run_on_hub(
            hub,
            folder / "home",
            PROGRAM.replace("{forms!r}", repr(FORMS)).replace("{named!r}", repr([each[:2] for each in NAMED])),
            first,
            second,
            folder / "pretraining.tar",
        )
        yield Visit(seen, first, second, clip, folder)


def one_release(name: str) -> Release:
    return next(release for release in RELEASES if release.name == name)


def msae_of_the_width_in_its_name() -> dict[str, Any]:
    """One number repeated: as wide as the published file, and a few hundred bytes."""
    shapes = {"pre_bias": (768,), "latent_bias": (6144,), "encoder": (768, 6144), "decoder": (6144, 768)}
    weights = {name: torch.full((1,), 0.5).expand(shape) for name, shape in shapes.items()}
    return {"model": weights, "mean_center": torch.zeros(768), "scaling_factor": 2.0}


def total(path: Path) -> float:
    return float(load_vision_sae(path).W_enc.detach().double().sum())


# -- releases ----------------------------------------------------------------------------------------------------------


def test_nothing_is_registered_at_import(visit: Visit) -> None:
    assert visit.seen["before"]["error"] == "ValueError"
    assert "not found in pretrained SAEs directory" in visit.seen["before"]["message"]


def test_the_converter_route_works_without_registering_and_takes_a_revision(visit: Visit) -> None:
    found = visit.seen["converter"]
    assert found["sum"] == pytest.approx(total(visit.folder / "other.pt"), abs=1e-9)
    assert (found["source_revision"], found["source_commit"]) == ("v1", visit.first)


def test_a_registered_release_loads_the_foreign_file_by_its_name(visit: Visit) -> None:
    assert visit.seen["registered"] == [release.name for release in RELEASES]
    found = visit.seen["release"]
    assert found["class"] == "StandardSAE"
    assert found["sum"] == pytest.approx(total(TINY), abs=1e-9)
    assert (found["hook_name"], found["layout"]) == ("bn2.hook_out", "channels_last")
    assert (found["source_repo"], found["source_file"]) == ("KKNakka/MammoSAE", "sparse_autoencoder_final.pt")
    assert (found["source_commit"], found["source_sha256"]) == (visit.second, sha256_of_file(TINY))


def test_registering_twice_changes_nothing(visit: Visit) -> None:
    assert visit.seen["again"] is True


def test_saelens_reads_the_config_of_a_registered_release_without_the_weights(visit: Visit) -> None:
    config = visit.seen["config"]
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("standard", 64, 512)
    assert config["apply_b_dec_to_input"] is True
    assert config["metadata"]["hook_name"] == "bn2.hook_out"


def test_a_release_in_saelens_own_format_needs_no_loader_of_ours(visit: Visit) -> None:
    assert visit.seen["own format"]["hook_name"] == "blocks.6.hook_out"
    assert visit.seen["own format"]["sum"] == pytest.approx(total(TINY), abs=1e-5)  # norms were folded when saved


# -- repos and URLs ----------------------------------------------------------------------------------------------------


def test_a_repo_is_read_at_its_default_branch_or_at_a_revision_and_the_commit_is_recorded(visit: Visit) -> None:
    default, tagged = visit.seen["repo"], visit.seen["repo at tag"]
    assert (default["source_revision"], default["source_commit"]) == (None, visit.second)
    assert default["sum"] == pytest.approx(total(TINY), abs=1e-9)
    assert (tagged["source_revision"], tagged["source_commit"]) == ("v1", visit.first)
    assert tagged["sum"] == pytest.approx(total(visit.folder / "other.pt"), abs=1e-9)


def test_a_url_names_repo_revision_and_file(visit: Visit) -> None:
    for name, revision in (("tag", "v1"), ("commit", visit.first), ("pull request", "refs/pr/1")):
        found = visit.seen[f"url at {name}"]
        assert (found["source_revision"], found["source_commit"]) == (revision, visit.first)
        assert found["sum"] == pytest.approx(total(visit.folder / "other.pt"), abs=1e-9)


def test_a_url_of_a_folder_in_saelens_format_loads_the_sae_in_it(visit: Visit) -> None:
    assert visit.seen["url of folder"]["hook_name"] == "blocks.6.hook_out"


def test_an_sae_whose_settings_lie_beside_it_brings_them_from_the_hub(visit: Visit) -> None:
    places = ("peer's folder", "peer's file", "peer's file in a study")
    found = [visit.seen[place] for place in places]
    assert {(one["class"], one["sum"], one["dictionary_class"]) for one in found} == {
        (
            "TopKSAE",
            float(load_sae(DATA / "sae_formats/dictionary_learning_topk").W_enc.detach().double().sum()),
            "AutoEncoderTopK",
        )
    }
    assert [one["source_file"] for one in found] == ["trainer_0", "trainer_0/ae.pt", "trainer_0/ae.pt"]
    assert {one["source_repo"] for one in found} == {"someone/peers"}


def test_a_classifier_from_the_hub_records_repo_revision_commit_files_and_hashes(visit: Visit) -> None:
    files = [visit.folder / name for name in ("pretraining.tar", "downstream.pth")]
    record = {"repo": "shawn24/Mammo-CLIP", "revision": "v1", "commit": visit.clip}
    assert visit.seen["classifier"] == {
        "kind": "classifier",
        "variant": "b2",
        "files": [PRETRAINING, DOWNSTREAM],
        "sha256": [sha256_of_file(file) for file in files],
        "hub": [record, record],
    }
    assert visit.seen["mixed"]["files"] == ["pretraining.tar", DOWNSTREAM]
    assert visit.seen["mixed"]["hub"] == [None, {**record, "revision": None}]


def test_files_and_folders_on_the_hub_can_be_inspected(visit: Visit) -> None:
    found = visit.seen["inspected"]
    assert (found["kind"], found["variant"], found["training"]) == ("downstream classifier", "b2", "fine-tuned")
    assert (found["repo"], found["revision"], found["commit"]) == ("shawn24/Mammo-CLIP", "v1", visit.clip)
    assert found["files"][0]["sha256"] == sha256_of_file(visit.folder / "downstream.pth")
    assert visit.seen["inspected folder"]["kind"] == "saelens folder"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no repo", "the Hub has no repo someone/nothing, or it is private"),
        ("no repo or path", "runs/model is no local path, and the Hub has no repo runs/model"),
        ("no file", f"has no file b2-model-best-epoch-10.tar; did you mean {PRETRAINING}?"),
        ("misspelt file", f"did you mean {DOWNSTREAM}"),
        ("no revision", "the Hub's repo shawn24/Mammo-CLIP has no revision v9"),
        ("gated", "asks for its terms to be accepted"),
        ("offline and not cached", "another.tar of shawn24/Mammo-CLIP is not in the cache and the Hub cannot be"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_one_line(visit: Visit, case: str, reason: str) -> None:
    assert visit.seen[case]["error"] == "InputError"
    assert reason in visit.seen[case]["message"]
    assert "\n" not in visit.seen[case]["message"]


def test_a_web_page_in_a_repo_is_told(visit: Visit) -> None:
    assert visit.seen["page"]["error"] == "CheckpointFormatError"
    assert "is a web page" in visit.seen["page"]["message"]


def test_a_cached_file_is_read_offline_with_its_commit(visit: Visit) -> None:
    assert visit.seen["offline and cached"] == visit.seen["repo"]


# -- arguments that contradict each other, without a Hub ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "reason"),
    [
        (("hf://owner/name@v1/a.pt",), {"revision": "v2"}, "names the revision v1"),
        (("hf://owner/name/a.pt",), {"filename": "b.pt"}, "names the file a.pt"),
        (("hf://owner/name@v1",), {}, "names a repo but no file in it"),
        (("hf://owner",), {}, "not of the form hub://owner/name"),
        (("hf://datasets/owner/name/a.pt",), {}, "of a model repo"),
        (("owner/name",), {}, "owner/name does not exist; name a file of a Hugging Face repo as hub://owner/name/"),
        (("runs/model.tar",), {}, "runs/model.tar does not exist"),
        (("nothing.tar",), {}, "does not exist, and is no name of a Hugging Face repo"),
        ((TINY,), {"revision": "main"}, "means nothing for local files"),
        ((TINY,), {"filename": "a.pt"}, "is a file, in which 'a.pt' cannot lie"),
        ((Path("owner/name"),), {"filename": "a.pt"}, "owner/name/a.pt cannot be read"),
    ],
)
def test_sources_that_contradict_themselves_are_refused_before_anything_is_asked(
    arguments: tuple[Any, ...], options: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*args: Any, **kwargs: Any) -> str:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("mammosae_plugin.adapters.sources.hf_hub_download", must_not_run)
    with pytest.raises(InputError) as caught:
        load_mammo_clip(*arguments, **options)
    assert reason in str(caught.value)


def test_a_revision_is_for_the_file_from_the_hub_when_the_other_is_local(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(fixture_checkpoint("b2"), tmp_path / "b2.tar")
    torch.save(fixture_downstream("b2", n_class=3), tmp_path / "birads.pth")
    asked = []

    def download(repo: str, name: str, *, revision: str | None, force_download: bool) -> str:
        asked.append((repo, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr("mammosae_plugin.adapters.sources.hf_hub_download", download)
    model = load_mammo_clip(tmp_path / "b2.tar", "owner/name", classifier_filename="birads.pth", revision="v1")
    assert model.n_class == 3
    assert asked == [("owner/name", "birads.pth", "v1")]
    assert model.source["hub"] == [None, {"repo": "owner/name", "revision": "v1", "commit": None}]


def test_a_local_folder_with_file_names_is_read_like_a_repo(tmp_path: Path) -> None:
    torch.save(fixture_checkpoint("b2"), tmp_path / "b2.tar")
    torch.save(fixture_downstream("b2", n_class=4), tmp_path / "density.pth")
    model = load_mammo_clip(tmp_path, filename="b2.tar", classifier_filename="density.pth")
    assert (model.n_class, model.source["files"]) == (4, ["b2.tar", "density.pth"])
    assert "hub" not in model.source


# -- the table of public SAEs ------------------------------------------------------------------------------------------


def test_releases_of_other_libraries_load_by_name_and_the_table_adds_what_their_files_do_not_say(visit: Visit) -> None:
    saev = visit.seen["saev"]
    assert (saev["source_format"], saev["source_repo"]) == ("saev", "osunlp/SAE_CLIP_24K_ViT-B-16_IN1K")
    assert (saev["model_name"], saev["hook_name"]) == ("open_clip:ViT-B-16/openai", "transformer.resblocks.10.hook_out")
    prisma = visit.seen["prisma"]
    assert (prisma["source_repo"], prisma["source_file"]) == (PRISMA, "n_images_2600058.pt")  # the one file in its repo
    assert prisma["prisma_hook_point"] == "blocks.9.hook_resid_post", "what the file says counts"


@pytest.mark.parametrize(("name", "sae_id", "repo", "file", "fixture", "library"), NAMED)
def test_every_release_with_a_file_of_its_own_loads_by_its_name(
    visit: Visit, name: str, sae_id: str, repo: str, file: str | None, fixture: str | None, library: str
) -> None:
    found, release = visit.seen[name], one_release(name)
    assert (found["source_format"], found["source_repo"]) == (library, repo)
    assert found["source_file"] == release.saes[sae_id] == (file or release.saes[sae_id])
    assert found["model_name"] == release.model
    expected = 768 * 6144 * 0.5 * 2.0 if fixture is None else total_of(DATA / fixture)
    assert found["sum"] == pytest.approx(expected, abs=1e-9)


def test_a_release_in_the_cache_loads_offline_whichever_name_its_weights_have(visit: Visit) -> None:
    assert visit.seen["offline release"]["source_file"] == "n_images_2600058.pt"


@pytest.mark.parametrize("name", FORMS)
def test_one_sae_of_each_library_loads_through_a_release(visit: Visit, name: str) -> None:
    found = visit.seen[name.split("/")[0].removesuffix(".pt")]
    assert found["source_file"] == name
    assert found["sum"] == pytest.approx(total_of(DATA / "sae_formats" / name), abs=1e-9)


def total_of(path: Path) -> float:
    return float(load_sae(path).W_enc.detach().double().sum())


def test_a_repo_with_several_files_of_weights_says_how_to_load_one(visit: Visit) -> None:
    assert visit.seen["prisma of many"]["error"] == "InputError"
    said = visit.seen["prisma of many"]["message"]
    assert "holds 2 files of weights, of which none is weights.pt or n_images_2600058.pt: a.pt, b.pt" in said
    assert "; load one with load_sae(" in said


def test_every_release_says_where_its_facts_are_from_and_where_its_saes_belong() -> None:
    assert len({release.name for release in RELEASES}) == len(RELEASES)
    for release in RELEASES:
        assert release.source and release.source.startswith("https://")
        assert release.trained_on in {"map", "image", "patches", "class_token", "class_token_and_patches"}
        assert release.saes.keys() == release.facts.keys()
        for sae_id, facts in release.facts.items():
            is_vector = release.trained_on == "image"
            assert is_vector or "hook_name" in facts or "source_layer" in facts, (release.name, sae_id)
            place = release.saes[sae_id]
            assert place.startswith("hub://") or REPOSITORY.fullmatch(release.repo), (release.name, sae_id)


def test_the_command_lists_releases_and_what_is_known_of_one() -> None:
    result = CliRunner().invoke(app, ["releases"])
    assert result.exit_code == 0
    assert all(release.name in result.output for release in RELEASES)
    one = CliRunner().invoke(app, ["releases", "saev-dinov2-vitb14-in1k"])
    assert "sae.pt" in one.output and "blocks.10.hook_out" in one.output and "note" in one.output
    as_json = json.loads(CliRunner().invoke(app, ["releases", "sail-biomedparse", "--json"]).output)
    assert [found["saes"] for found in as_json] == [{"matryoshka": "biomedparse_sae.ckpt"}]
    unknown = CliRunner().invoke(app, ["releases", "nothing"])
    assert unknown.exit_code == 2


# -- registering, in this process --------------------------------------------------------------------------------------


@pytest.fixture
def tables() -> Iterator[list[dict[str, Any]]]:
    """SAELens's three tables, put back afterwards."""
    found: list[dict[str, Any]] = [
        get_pretrained_saes_directory(),
        pretrained_sae_loaders.NAMED_PRETRAINED_SAE_LOADERS,
        pretrained_sae_loaders.NAMED_PRETRAINED_SAE_CONFIG_GETTERS,
    ]
    before = [dict(table) for table in found]
    yield found
    for table, entries in zip(found, before, strict=True):
        table.clear()
        table.update(entries)


def test_someone_elses_entry_is_left_alone_and_nothing_else_is_changed(tables: list[dict[str, Any]]) -> None:
    theirs = dataclasses.replace(next(iter(tables[0].values())), repo_id="someone/else")
    for table, name, entry in (
        (tables[0], "mammo-sae-b5-vindr", theirs),
        (tables[1], "mammosae_vision_sae", print),
        (tables[2], "mammosae_vision_sae", print),
    ):
        table[name] = entry
        before = [dict(found) for found in tables]
        with pytest.raises(InputError, match=f"something else under the name '{name}'"):
            register_releases()
        assert tables == before
        del table[name]
    register_releases()
    assert tables[0]["mammo-sae-b5-vindr"].repo_id == "KKNakka/MammoSAE"


def test_a_release_dropped_by_a_cleared_cache_can_be_registered_again(tables: list[dict[str, Any]]) -> None:
    names = set(register_releases())
    assert names == {release.name for release in RELEASES}
    get_pretrained_saes_directory.cache_clear()
    assert not names & set(get_pretrained_saes_directory()), "SAELens itself has a release of one of our names now"
    register_releases()
    assert names <= set(get_pretrained_saes_directory())
    get_pretrained_saes_directory.cache_clear()


# -- what is taken for granted about SAELens ---------------------------------------------------------------------------


def test_a_lookup_has_the_fields_that_we_fill() -> None:
    names = [field.name for field in dataclasses.fields(PretrainedSAELookup)]
    assert names == [
        "release", "repo_id", "model", "conversion_func", "saes_map", "expected_var_explained", "expected_l0",
        "neuronpedia_id", "norm_scaling_factor", "config_overrides",
    ], CHANGED + "PretrainedSAELookup has other fields; see hub/releases.py::_lookup"  # fmt: skip


def test_the_directory_is_one_dictionary_that_stays(tables: list[dict[str, Any]]) -> None:
    assert get_pretrained_saes_directory() is get_pretrained_saes_directory(), (
        CHANGED + "get_pretrained_saes_directory gives a new dictionary each time: registering has no effect"
    )
    assert isinstance(get_pretrained_saes_directory(), dict), CHANGED + "the directory is no dictionary"
    register_releases([Release("canary", "a/b", "m", {"x": "y"})])
    assert pretrained_saes_directory.get_repo_id_and_folder_name("canary", "x") == ("a/b", "y"), (
        CHANGED + "SAELens looks releases up elsewhere than in the directory"
    )


def test_the_tables_of_loaders_are_there_and_are_asked(tables: list[dict[str, Any]]) -> None:
    for table in tables[1:]:
        assert "sae_lens" in table, CHANGED + "a table of loaders no longer knows SAELens's own format by 'sae_lens'"
    register_releases()
    name = pretrained_sae_loaders.get_conversion_loader_name("mammo-sae-b5-vindr")
    assert name in pretrained_sae_loaders.NAMED_PRETRAINED_SAE_LOADERS, (
        CHANGED + "a release's conversion_func is no longer the name of its loader"
    )


def test_saelens_calls_loaders_with_the_arguments_that_ours_take() -> None:
    for protocol in ("PretrainedSaeHuggingfaceLoader", "PretrainedSaeConfigHuggingfaceLoader"):
        arguments = list(inspect.signature(getattr(pretrained_sae_loaders, protocol).__call__).parameters)
        assert arguments == ["self", "repo_id", "folder_name", "device", "force_download", "cfg_overrides"], (
            CHANGED + f"{protocol} has other arguments"
        )
