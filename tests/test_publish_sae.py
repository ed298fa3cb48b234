"""SAEs of every architecture published on a Hub on this machine, loaded by plain SAELens, by ours, and by the commands.

Two processes visit the Hub: one publishes, the other imports sae_lens and nothing of ours.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_hub import LoopbackHub, run_on_hub
from helpers_training import ARCHITECTURES, rows_store, small_training
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.activations.store import MANIFEST
from mammosae_plugin.adapters import load_vision_sae
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sealed, sha256_of_file, write_json, write_text
from mammosae_plugin.hub.guard import PrivacyContext, check_staged
from mammosae_plugin.hub.plain_sae_lens import check_with_sae_lens
from mammosae_plugin.hub.portable import portable
from mammosae_plugin.hub.saes import datasets_of, origin_of, origins_of, publish_sae, stage_saes
from mammosae_plugin.provenance import tensors_fingerprint
from mammosae_plugin.training import save_sae, train_sae, train_saes

REPO = "someone/saes"
PUBLISHER = """
import json, shutil, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner
from mammosae_plugin.adapters import load_vision_sae
from mammosae_plugin.cli import app
from mammosae_plugin.files import sha256_of_file
from mammosae_plugin.hub import publish_sae
from mammosae_plugin.training import save_sae

root = Path(sys.argv[1])
rows = load_file(root / "rows.safetensors")["rows"]
trained = {folder.name: folder for folder in sorted((root / "trained").iterdir())}
REPO = "someone/saes"

publication = publish_sae(trained, REPO, licence="mit", datasets=["toy"], tag="v1", dry_run=True,
                          evaluation={"topk": {"explained_variance": 0.75, "l0": 4.0}}, staging=root / "staged")
seen = {"described": publication.describe(), "before": hub()["repos"]}
seen["published"] = publication.send().as_text()
seen["state"] = hub()["repos"][f"model {REPO}"]
seen["files"] = {file.path: file.sha256 for file in publication.files}

def latents(place, **options):
    sae = load_vision_sae(place, **options)
    with torch.no_grad():
        return {"sum": float(sae.encode(rows).double().sum()), "architecture": sae.cfg.architecture()}

seen["ours by url"] = {name: latents(f"hub://{REPO}@v1/{name}") for name in trained}
seen["ours at revision"] = latents(REPO, filename="topk", revision="v1")
seen["ours at no revision"] = attempt(lambda: latents(REPO, filename="topk", revision="v9"))

# from here on without the process that checks with sae_lens, which takes its time
import mammosae_plugin.hub.saes
mammosae_plugin.hub.saes.check_with_sae_lens = lambda *arguments: None

# an SAE object beside them: the card changes, so that replace is needed; what is there stays
extra = load_vision_sae(trained["standard"])
with torch.no_grad():
    extra.b_dec += 1
extra.cfg.metadata.dataset_path = "/scratch/somewhere/rows"
arguments = dict(sae_id="shifted", licence="mit", datasets=["toy"], tag="v2")
seen["in the way"] = attempt(lambda: publish_sae(extra, REPO, **arguments))
seen["added"] = publish_sae(extra, REPO, **arguments, replace=True).as_text()
seen["state with both"] = hub()["repos"][f"model {REPO}"]

# an SAE of phantoms whose confounders a study named; others join it
from mammosae_plugin.privacy.guard import PrivacyContext
from mammosae_plugin.hub.publishing import prepare
from mammosae_plugin.hub.saes import origin_of, stage_saes
staged = root / "of phantoms"
stage_saes({"first": origin_of(trained["standard"])}, staged, licence="mit", datasets=["phantom"],
           base_model="owner/first", confounders=[{"sae_id": "first", "latent": 20, "follows": "the edge"}])
(staged / "README.md").write_text("---\\nlicense: mit\\n---\\n")
prepare(staged, "someone/joined", kind="model", contents="sae", context=PrivacyContext()).send()
hub(commit={"name": "someone/joined", "files": {"figures/old.png": "x"}, "private": True})
third = dict(sae_id="third", datasets=["vindr"], base_model="owner/third", replace=True)
seen["another licence"] = attempt(
    lambda: publish_sae(trained["topk"], "someone/joined", licence="cc-by-nc-sa-4.0", **third))
publish_sae(trained["topk"], "someone/joined", licence="mit", **third)
publish_sae(trained["gated"], "someone/joined", sae_id="fourth", licence="mit", replace=True)

for option in ({}, {"dry_run": True}):
    seen[f"no such licence {option}"] = attempt(
        lambda: publish_sae(trained["topk"], "someone/nonsense", sae_id="x", licence="nonsense", **option))
seen["repository of no licence"] = "model someone/nonsense" in hub()["repos"]

run = CliRunner().invoke
def command(*arguments):
    done = run(app, [str(part) for part in arguments])
    return {"code": done.exit_code, "out": done.stdout, "err": done.stderr}
folder = ("publish", "sae", trained["gated"], "someone/gated", "--licence", "mit")
seen["dry command"] = command(*folder, "--tag", "v1", "--dataset", "toy")
seen["after the dry command"] = "model someone/gated" in hub()["repos"]
seen["command"] = command(*folder, "--tag", "v1", "--dataset", "toy", "--confirm", "--public")
seen["state of the command"] = hub()["repos"]["model someone/gated"]
seen["command without an id"] = command(*folder, "--also", "b=c")
seen["command with a bad pair"] = command(*folder, "--id", "a", "--also", "c")
seen["command without a folder"] = command("publish", "sae", "nothing", "someone/gated", "--licence", "mit")
seen["command without a licence"] = command(*folder[:-2])
"""

PLAIN = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE

root = Path(sys.argv[1])
rows = load_file(root / "rows.safetensors")["rows"]
found, seen = {}, {"architecture": {}}
for name in sys.argv[2:]:
    sae = SAE.from_pretrained("someone/saes", name)
    seen["architecture"][name] = sae.cfg.architecture()
    with torch.no_grad():
        found[f"{name}.latents"] = sae.encode(rows).contiguous()
        found[f"{name}.reconstruction"] = sae(rows).contiguous()
save_file(found, root / "found.safetensors")
seen["ours"] = [name for name in sys.modules if name.startswith("mammosae")]
"""


@dataclass
class Visit:
    """What the two processes saw, and where the SAEs were trained."""

    seen: dict[str, Any]
    plain: dict[str, Any]
    root: Path
    hub: LoopbackHub


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained/<architecture>` for every architecture, and `rows.safetensors`."""
    root = tmp_path_factory.mktemp("saes")
    store = rows_store(root / "rows", n_images=12)
    settings = {name: small_training(architecture=name, d_sae=64, epochs=2.4) for name in ARCHITECTURES}
    settings["matryoshka_independent"] = small_training(
        architecture="matryoshka_independent", d_sae=64, epochs=2.4, normalize_activations="unit_l2"
    )
    train_saes(store, root / "trained", settings)
    save_file({"rows": store.rows_of(range(4)).contiguous()}, root / "rows.safetensors")
    return root


@pytest.fixture(scope="module")
def visit(root: Path) -> Iterator[Visit]:
    with LoopbackHub() as hub:
        seen = run_on_hub(hub, root / "publisher", PUBLISHER, root)
        plain = run_on_hub(hub, root / "plain", PLAIN, root, *ARCHITECTURES, "shifted")
        yield Visit(seen, plain, root, hub)


def latents_of(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_vision_sae(folder).encode(rows)


# -- what is published ---------------------------------------------------------------------------------------------


def test_a_dry_run_makes_nothing_and_describes_every_byte_that_goes_out(visit: Visit) -> None:
    described = visit.seen["described"]
    assert visit.seen["before"] == {}
    assert f"model repository {REPO}: private, to be made" in described
    assert "tag: v1 (new)" in described
    staged = [path for path in (visit.root / "staged").rglob("*") if path.is_file()]
    assert len(staged) == len(visit.seen["files"]) == 1 + 7 * len(ARCHITECTURES)
    for path in staged:
        name, digest = path.relative_to(visit.root / "staged").as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()
        (line,) = [line for line in described.splitlines() if f" {name} " in line]
        assert line.split() == ["new", name, f"{path.stat().st_size:,}", "bytes", "sha256", digest]


def test_what_is_on_the_hub_is_what_was_staged_in_one_private_commit_with_a_tag(visit: Visit) -> None:
    state = visit.seen["state"]
    assert {path: state["files"][path] for path in visit.seen["files"]} == visit.seen["files"]
    assert state["private"] is True
    assert state["n_commits"] == 2
    assert state["tags"] == {"v1": state["head"]}
    assert visit.seen["published"].endswith(f"/{REPO} at commit {state['head']} (v1)")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_process_with_only_sae_lens_loads_every_architecture_by_repo_and_id_and_computes_the_same(
    visit: Visit, architecture: str
) -> None:
    rows = load_file(visit.root / "rows.safetensors")["rows"]
    found = load_file(visit.root / "found.safetensors")[f"{architecture}.latents"]
    ours = latents_of(visit.root / "trained" / architecture, rows)
    assert ours.count_nonzero() > len(rows)
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-5)
    assert visit.plain["ours"] == []
    batch = "batchtopk" in architecture or "matryoshka" in architecture
    assert visit.plain["architecture"][architecture] == ("jumprelu" if batch else architecture)


def test_ours_loads_it_by_url_or_at_a_revision(visit: Visit) -> None:
    rows = load_file(visit.root / "rows.safetensors")["rows"]
    for name in ARCHITECTURES:
        expected = float(latents_of(visit.root / "trained" / name, rows).double().sum())
        assert visit.seen["ours by url"][name]["sum"] == pytest.approx(expected, rel=1e-6)
    assert visit.seen["ours at revision"] == visit.seen["ours by url"]["topk"]
    assert f"{REPO} has no revision v9" in visit.seen["ours at no revision"]["message"]


def test_beside_the_weights_lie_evaluation_training_settings_metrics_and_provenance(visit: Visit) -> None:
    staged = visit.root / "staged"
    for name in ARCHITECTURES:
        files = {path.name for path in (staged / name).iterdir()}
        assert files == {
            *("cfg.json", "sae_weights.safetensors", "training.json", "metrics.jsonl", "metrics.png"),
            *("evaluation.json", "provenance.json"),
        }
        provenance = json.loads((staged / name / "provenance.json").read_text())
        weights = (visit.root / "trained" / name / "sae_weights.safetensors").read_bytes()
        assert provenance["weights_sha256"] == hashlib.sha256(weights).hexdigest()
        assert provenance["published_with"]["packages"]["sae-lens"]
        assert json.loads((staged / name / "training.json").read_text())["config"]["architecture"] == name
    final = json.loads((visit.root / "trained" / "gated" / "metrics.jsonl").read_text().splitlines()[-1])
    evaluation = json.loads((staged / "gated" / "evaluation.json").read_text())
    assert evaluation["explained_variance"] == final["explained_variance"]
    assert (evaluation["l0"], evaluation["dead_share"]) == (final["l0"], final["dead_share"])
    assert json.loads((staged / "topk" / "evaluation.json").read_text()) == {"explained_variance": 0.75, "l0": 4.0}


def test_the_card_names_every_sae_with_its_measures(visit: Visit) -> None:
    card = (visit.root / "staged" / "README.md").read_text()
    assert "library_name: saelens" in card
    assert "license: mit" in card
    for name in ARCHITECTURES:
        assert name in card
    assert f'SAE.from_pretrained("{REPO}"' in card
    assert "0.75" in card


# -- what is there already -----------------------------------------------------------------------------------------


def test_the_card_says_of_rows_of_length_1_and_of_levels(visit: Visit) -> None:
    card = (visit.root / "staged" / "README.md").read_text()
    assert card.count("divided by their length first") == 1
    assert card.count("the first 8, 16, 32, 64 latents are SAEs of their own") == 2  # of both nested architectures


def test_another_sae_joins_those_that_are_there_and_the_card_names_all(visit: Visit) -> None:
    refused = visit.seen["in the way"]
    assert (refused["error"], "holds another README.md; overwrite with --replace" in refused["message"]) == (
        "InputError",
        True,
    )
    state = visit.seen["state with both"]
    assert state["n_commits"] == 3
    assert set(state["tags"]) == {"v1", "v2"}
    kept = {path: digest for path, digest in visit.seen["files"].items() if path != "README.md"}
    assert {path: state["files"][path] for path in kept} == kept
    card = visit.hub.repos["model", REPO].files["README.md"].decode()
    assert all(name in card for name in [*ARCHITECTURES, "shifted"])
    rows = load_file(visit.root / "rows.safetensors")["rows"]
    found = load_file(visit.root / "found.safetensors")
    sae = load_vision_sae(visit.root / "trained" / "standard")
    with torch.no_grad():
        sae.b_dec += 1
        torch.testing.assert_close(found["shifted.reconstruction"], sae(rows), rtol=1e-5, atol=1e-5)


def test_what_was_said_of_the_saes_that_are_there_stays_said_of_them_alone(visit: Visit) -> None:
    card = visit.hub.repos["model", "someone/joined"].files["README.md"].decode()
    licence = card.partition("## Licence and data")[2]
    assert "- `first`: phantoms: images drawn by a program" in licence
    assert "- `third`: [VinDr-Mammo]" in licence
    assert "- `fourth`: toy" in licence
    assert "Known confounder: latent 20 of `first` follows the edge." in card
    assert "among the latents of `third`, `fourth` in this" in card
    assert "of [owner/first](https://huggingface.co/owner/first) |" in card
    assert "of [owner/third](https://huggingface.co/owner/third) |" in card
    assert "(figures/old.png)" in card
    provenance = json.loads(visit.hub.repos["model", "someone/joined"].files["third/provenance.json"])
    said = {"licence": "mit", "base_model": "owner/third", "datasets": ["vindr"], "confounders": []}
    assert {key: provenance[key] for key in said} == said


def test_a_repository_has_one_licence(visit: Visit) -> None:
    refused = visit.seen["another licence"]
    assert refused["error"] == "InputError"
    assert "someone/joined holds SAEs under mit, and cc-by-nc-sa-4.0 would be stated for them too" in refused["message"]


def test_a_licence_that_the_hub_does_not_know_is_refused_before_anything_is_made(visit: Visit) -> None:
    for option in ({}, {"dry_run": True}):
        refused = visit.seen[f"no such licence {option}"]
        assert refused["error"] == "InputError"
        said = 'the Hub would not accept the card of someone/nonsense: "license" must be one of'
        assert refused["message"].startswith(said)
        assert "a licence is named as the Hub lists them" in refused["message"]
    assert visit.seen["repository of no licence"] is False


def test_no_path_of_this_machine_goes_out(visit: Visit) -> None:
    config = json.loads(visit.hub.repos["model", REPO].files["shifted/cfg.json"])
    assert config["metadata"]["dataset_path"] == "a local folder"


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_sends_nothing_unless_it_is_confirmed(visit: Visit) -> None:
    dry, sent = visit.seen["dry command"], visit.seen["command"]
    assert (dry["code"], sent["code"]) == (0, 0), (dry, sent)
    assert "Nothing was sent (dry run); --confirm sends it." in dry["out"]
    assert visit.seen["after the dry command"] is False
    described = dry["out"].splitlines()
    assert described[0] == "model repository someone/gated: private, to be made"
    assert described[3:-1] == sent["out"].splitlines()[3:-1]
    state = visit.seen["state of the command"]
    assert sent["out"].splitlines()[-1].endswith(f"/someone/gated at commit {state['head']} (v1)")
    assert state["private"] is False
    assert "bn2/sae_weights.safetensors" in state["files"]


def test_bad_usage_ends_with_one_line_and_code_2(visit: Visit) -> None:
    for case, reason in {
        "command without an id": "say with --id what the first SAE is called",
        "command with a bad pair": "--also 'c' is not of the form ID=SOURCE",
        "command without a folder": "nothing does not exist; give a folder with an SAE",
        "command without a licence": "an SAE is published under a licence; name it with --licence",
    }.items():
        found = visit.seen[case]
        assert found["code"] == 2, found
        assert reason in found["err"]
        assert len(found["err"].strip().splitlines()) == 1


# -- without a Hub -------------------------------------------------------------------------------------------------


def test_paths_of_this_machine_are_called_a_local_folder() -> None:
    value = {
        "path": "/scratch/someone/rows",
        "home": "~/rows",
        "windows": "C:\\data\\rows",
        "kept": ["a/b", "hub://owner/name/x", 3, None],
        "url": "https://example.org/a",
        "slash": "/",
    }
    cut = {**value, **dict.fromkeys(("path", "home", "windows"), "a local folder")}
    assert portable(value) == cut


def test_what_lies_beside_an_sae_goes_out_without_what_programs_wrote_into_it(root: Path, tmp_path: Path) -> None:
    source = shutil.copytree(root / "trained" / "gated", tmp_path / "sae")
    texts = PngInfo()
    texts.add_text("Author", "somebody")
    with Image.open(source / "metrics.png") as drawn:
        size = drawn.size
        drawn.save(source / "metrics.png", pnginfo=texts)
    training = json.loads((source / "training.json").read_text())
    training["config"]["init"] = "/scratch/somewhere/rows"
    save_file({"sparsity": torch.zeros(64)}, source / "sparsity.safetensors", {"made by": "somebody"})
    weights = load_file(source / "sae_weights.safetensors")
    save_file(weights, source / "sae_weights.safetensors", {"made by": "somebody"})
    training["files"]["sae_weights.safetensors"] = sha256_of_file(source / "sae_weights.safetensors")
    (source / "training.json").write_text(json.dumps(training))
    (source / "notes.txt").write_text("by somebody")

    facts = stage_saes({"gated": origin_of(source)}, tmp_path / "staged")
    write_text(tmp_path / "staged" / "README.md", "# Card")
    files = check_staged(tmp_path / "staged", "sae", PrivacyContext())
    assert {Path(file.path).name for file in files} == {
        *("README.md", "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "training.json"),
        *("metrics.jsonl", "metrics.png", "evaluation.json", "provenance.json"),
    }
    training["config"]["init"] = "a local folder"
    del training["files"]  # of files as they lay here; provenance.json has those of what goes out
    assert facts["gated"]["training"] == training
    assert not any(b"somebody" in path.read_bytes() for path in (tmp_path / "staged").rglob("*") if path.is_file())
    with Image.open(tmp_path / "staged" / "gated" / "metrics.png") as staged, Image.open(source / "metrics.png") as own:
        assert staged.size == size
        assert staged.convert("RGBA").tobytes() == own.convert("RGBA").tobytes()
    assert load_file(tmp_path / "staged" / "gated" / "sparsity.safetensors")["sparsity"].shape == (64,)
    for name, tensor in load_file(tmp_path / "staged" / "gated" / "sae_weights.safetensors").items():
        assert torch.equal(tensor, weights[name])


def test_the_saes_that_a_study_trained_go_out_under_the_names_of_their_layers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text("{}")
    for number, name in enumerate(("topk", "gated")):
        shutil.copytree(root / "trained" / name, tmp_path / "work" / "sae" / str(number))
    quality = {"split": "test", "l0": 2.0, "explained_variance": 0.5, "n_images": 24}
    rows = [{**quality, "model": "a", "concept": "Mass"}, {**quality, "model": "b", "concept": "Mass", "l0": 7.0}]

    def layer(name: str, architecture: str) -> SimpleNamespace:
        fingerprint = tensors_fingerprint(load_vision_sae(root / "trained" / architecture).state_dict())
        results = {"sae_quality": rows, "sae": {"trained_on": "b/Mass"}}
        return SimpleNamespace(name=name, sae_tensors=fingerprint, results=results, encoders={})

    study = SimpleNamespace(layers=[layer("layer_6", "gated"), layer("layer_10", "topk")])
    monkeypatch.setattr("mammosae_plugin.hub.saes.StudyFolder", lambda folder: study)
    facts = stage_saes(origins_of(tmp_path), tmp_path / "staged")
    assert {name: one["cfg"]["architecture"] for name, one in facts.items()} == {"layer_6": "gated", "layer_10": "topk"}
    assert facts["layer_6"]["evaluation"] == {
        "l0": 7.0,
        "explained_variance": 0.5,
        "n_images": 24,
        "measured_on": "test images of the study",
    }
    assert list(origins_of(tmp_path, "layer_10")) == ["layer_10"]
    with pytest.raises(InputError, match="trained no SAE at 'layer_7'; it has layer_6, layer_10"):
        origins_of(tmp_path, "layer_7")
    with pytest.raises(InputError, match="is a study, whose own measures go onto the card; leave out --evaluation"):
        origins_of(tmp_path, evaluation={"l0": 1.0})
    shutil.rmtree(tmp_path / "work" / "sae" / "0")
    hub = "hub://someone/saes@v1/bn2"
    for given, reason in {
        ("paths", hub): f"it came from {hub}, where it is published already",
        ("path", "sae.pt"): "it came from sae.pt; publish that file or folder itself",
        ("train", ""): "is no longer in work/sae; run the study again",
    }.items():
        sae = {given[0]: {"layer_10": given[1]} if given[0] == "paths" else given[1]}
        study.layers[1].results["config"] = {"sae": sae}
        with pytest.raises(InputError, match="cannot publish the SAE of its layer layer_10: ") as caught:
            origins_of(tmp_path)
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "datasets"),
    [
        ({"dataset_path": "vindr"}, ()),  # what the reader of phantoms is called
        ({"dataset_path": "vindr + toy"}, ()),
        ({"dataset_path": "phantom", "trained_on": ["phantom"]}, ("phantom",)),
        ({"dataset_path": "vindr", "trained_on": ["vindr"]}, ("vindr",)),
        ({"dataset_path": "owner/texts"}, ("owner/texts",)),
        ({}, ()),
    ],
)
def test_only_data_that_are_known_for_certain_are_said(metadata: dict[str, Any], datasets: tuple[str, ...]) -> None:
    assert datasets_of({"metadata": metadata}) == datasets


def test_an_sae_of_phantoms_says_so_though_their_reader_is_that_of_vindr(tmp_path: Path) -> None:
    def trained(name: str, image_ids: list[str], dataset: str) -> dict[str, Any]:
        store = rows_store(tmp_path / name, n_images=len(image_ids), rows_per_image=40)
        said = {**store.manifest, "image_ids": image_ids, "dataset_name": dataset}
        write_json(store.folder / MANIFEST, sealed(said))
        train_sae(ActivationStore(store.folder), tmp_path / f"{name}-sae", small_training(epochs=2.4))
        found: dict[str, Any] = stage_saes({"x": origin_of(tmp_path / f"{name}-sae")}, tmp_path / f"{name}-staged")["x"]
        return found

    drawn = trained("drawn", [f"phantom_{number:05d}_L_CC.png" for number in range(10)], "vindr")
    assert drawn["datasets"] == ["phantom"]
    assert drawn["cfg"]["metadata"]["dataset_path"] == "phantom"
    assert trained("real", [f"{number:032x}" for number in range(10)], "vindr")["datasets"] == ["vindr"]
    one_is_real = [f"phantom_{number:05d}_L_CC.png" for number in range(9)] + ["0a"]
    assert trained("mixed", one_is_real, "vindr")["datasets"] == ["phantom", "vindr"]


@pytest.mark.parametrize(
    ("saes", "options", "reason"),
    [
        ("nothing", {}, "nothing does not exist"),
        (torch.nn.Linear(2, 2), {}, "Linear is no SAELens SAE"),
        ({}, {}, "there is no SAE to publish"),
        ({"a b": "SAE"}, {}, "'a b' cannot be an SAE's id"),
        ({"figures": "SAE"}, {}, "'figures' cannot be an SAE's id: the repository has its own folder"),
        ({"README.md": "SAE"}, {}, "'README.md' cannot be an SAE's id: the repository has its own file"),
        ({"readme.MD": "SAE"}, {}, "'readme.MD' cannot be an SAE's id"),
        ({"a": "SAE"}, {"sae_id": "b"}, "leave sae_id out"),
        ({"a": "SAE"}, {"licence": None}, "name it with --licence"),
        ({"a": "SAE"}, {"licence": " "}, "name it with --licence"),
        ({"a": "SAE"}, {"evaluation": {"b": {"l0": 3.0}}}, "evaluation is of b, but the SAEs are a"),
    ],
)
def test_what_cannot_be_published_is_refused_before_the_hub_is_asked(
    root: Path, saes: Any, options: dict[str, Any], reason: str
) -> None:
    if isinstance(saes, dict):
        saes = dict.fromkeys(saes, root / "trained" / "topk")
    with pytest.raises(InputError, match=reason):
        publish_sae(saes, REPO, **{"licence": "mit", **options})


def test_what_plain_sae_lens_cannot_load_or_computes_otherwise_is_not_published(root: Path, tmp_path: Path) -> None:
    sae = load_vision_sae(root / "trained" / "standard")
    save_sae(sae, tmp_path / "good")
    save_sae(sae, tmp_path / "other")
    other = load_vision_sae(root / "trained" / "standard")
    with torch.no_grad():
        other.b_dec += 1e-3
    shutil.copytree(tmp_path / "good", tmp_path / "raw")
    config = json.loads((tmp_path / "raw" / "cfg.json").read_text())
    (tmp_path / "raw" / "cfg.json").write_text(json.dumps({**config, "architecture": "batchtopk"}))
    folders = {name: tmp_path / name for name in ("good", "other", "raw")}
    with pytest.raises(InputError) as caught:
        check_with_sae_lens(folders, {"good": sae, "other": other, "raw": sae})
    message = str(caught.value)
    assert "cannot load raw: KeyError: 'batchtopk'" in message
    assert "computes other reconstruction with other than this package (off by 0.00" in message
    assert "good" not in message
