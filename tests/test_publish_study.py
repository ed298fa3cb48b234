"""The parts of one study on the Hub: each names the others, and a stranger can run them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_adapters import calibrated_classifier
from helpers_findings import whole_study
from helpers_hub import LoopbackHub, run_on_hub
from helpers_study import mammosae

from mammosae_plugin.adapters import load_mammo_clip, new_classifier
from mammosae_plugin.adapters.saved_classifiers import save_classifier_folder
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import read_json, sha256_of_file
from mammosae_plugin.findings.about import About, parse_links
from mammosae_plugin.hub.guard import PrivacyContext, PrivacyError, check_staged
from mammosae_plugin.hub.models import publish_model
from mammosae_plugin.schema.columns import leaves
from mammosae_plugin.schema.findings import COLUMNS, dictionary

PUBLISH = r"""
import sys
from mammosae_plugin.hub import About, publish_findings, publish_model, publish_sae, publish_space

study = sys.argv[1]
about = About(authors=["A. B.", "C. D."], description="A study | of phantoms.",
    links={"paper": "https://example.org/paper"})
publish_model(study, "someone/nets", licence="mit", tag="v1")
publish_sae(study, "someone/saes", licence="mit", tag="v1", about=about)
publish_findings(study, "someone/findings", licence="mit", min_group=2, about=about)
publish_space(study, "someone/space", min_group=2)
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
words = Path(hf_hub_download("someone/saes", "README.md")).read_text() + "\nWritten by hand.\n"
HfApi().create_commit("someone/saes", [CommitOperationAdd("README.md", words.encode())], commit_message="thanks")
again = publish_sae(study, "someone/saes", licence="mit", replace=True, dry_run=True)
seen = {"described": again.describe(), "card": (again.folder / "README.md").read_text()}
again.send()
"""

STRANGER = """
import torch
from mammosae_plugin.adapters import HookedVisionModel, load_mammo_clip, load_vision_sae
from mammosae_plugin.hub import load_findings

study = load_findings("someone/findings").study
sae, (model, *_) = study["sae"]["layer_10"], [row for row in study["models"] if row["layer"] == "layer_10"]
url = lambda place: f"hub://{place['repo']}@{place['revision']}/{place['id']}"
network = load_mammo_clip(url(model["published"]))
images = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
_, cache = HookedVisionModel(network, ["bn2"]).run_with_cache(images)
latents = load_vision_sae(url(sae["published"])).encode(cache["bn2.hook_out"])
seen = {
    "logit": float(network(images)), "latents": list(latents.shape), "study": study,
    "model": model, "url": url(model["published"]),
    "key": f"{model['name']}/{model['concept']}", "where": network.source["hub"],
}
"""


@pytest.fixture(scope="module")
def study(finished_study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the study as if it had trained its SAEs and classifiers itself."""
    return whole_study(finished_study, tmp_path_factory.mktemp("whole") / "study")


@pytest.fixture(scope="module")
def visit(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with LoopbackHub() as hub:
        seen = run_on_hub(hub, tmp_path_factory.mktemp("publisher"), PUBLISH, study, timeout=1800)
        stranger = run_on_hub(hub, tmp_path_factory.mktemp("stranger"), STRANGER, timeout=1800)
        files = {name: repo.files for (_, name), repo in hub.repos.items()}
        return {**seen, **stranger, "files": files}


def card(visit: dict[str, Any], repo: str) -> str:
    return str(visit["files"][repo]["README.md"].decode())


def test_a_stranger_runs_the_sae_on_the_classifier_that_the_findings_name(visit: dict[str, Any], study: Path) -> None:
    images = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    _, concept = visit["key"].split("/")
    own = load_mammo_clip(study / "work" / "classifiers" / f"pretrained-{concept}.safetensors")
    assert visit["logit"] == pytest.approx(own(images).item())
    assert visit["latents"] == [1, 3, 2, 64]
    assert visit["url"].startswith("hub://someone/nets@v1/pretrained-")
    assert visit["where"][0]["repo"] == "someone/nets"


def test_findings_name_repository_revision_and_id_and_the_checksum_of_the_weights_file(visit: dict[str, Any]) -> None:
    import hashlib

    for layer, sae in visit["study"]["sae"].items():
        assert sae["published"] == {"repo": "someone/saes", "revision": "v1", "id": layer}
        weights = visit["files"]["someone/saes"][f"{layer}/sae_weights.safetensors"]
        assert sae["sha256"] == hashlib.sha256(weights).hexdigest() != sae["tensors"]


def test_one_fingerprint_of_the_dataset_stands_in_all_parts(visit: dict[str, Any]) -> None:
    fingerprint = visit["study"]["provenance"]["dataset_fingerprint"]
    saes, nets = visit["files"]["someone/saes"], visit["files"]["someone/nets"]
    assert len(fingerprint) == 64
    for files, path in ((saes, "layer_10/provenance.json"), (nets, "pretrained-Mass/provenance.json")):
        assert json.loads(files[path])["dataset_fingerprint"] == fingerprint
    assert json.loads(saes["layer_10/cfg.json"])["metadata"].get("dataset_fingerprint", fingerprint) == fingerprint
    assert f"`{fingerprint}`" in card(visit, "someone/findings")


def test_every_card_links_the_other_parts(visit: dict[str, Any]) -> None:
    urls = {
        "someone/saes": "https://huggingface.co/someone/saes)",
        "someone/nets": "https://huggingface.co/someone/nets)",
        "someone/findings": "https://huggingface.co/datasets/someone/findings)",
        "someone/space": "https://huggingface.co/spaces/someone/space)",
    }
    for repo in ("someone/saes", "someone/findings", "someone/space"):
        known = {"someone/saes": list(urls), "someone/findings": ["someone/saes", "someone/nets"]}.get(
            repo, list(urls)[:3]
        )
        for other in set(known) - {repo}:
            assert urls[other] in card(visit, repo), (repo, other)
    assert "models:\n- someone/saes\n- someone/nets" in card(visit, "someone/space")
    index = visit["files"]["someone/space"]["data/index.js"].decode()
    assert urls["someone/saes"][:-1] in index


def test_a_republished_card_keeps_what_people_wrote_and_what_they_had_said(visit: dict[str, Any]) -> None:
    assert "Written by hand." in visit["card"] and "Authors: A. B. and C. D." in visit["card"]
    assert "- paper: [https://example.org/paper](https://example.org/paper)" in visit["card"]
    assert "of the card, new: links" in visit["described"] or "written anew: links" in visit["described"]
    assert "of the card, kept as people wrote it" in visit["described"]


def test_authors_description_and_links_stand_in_the_card(visit: dict[str, Any]) -> None:
    text = card(visit, "someone/findings")
    assert "Authors: A. B. and C. D." in text and "A study &#124; of phantoms." in text
    assert "- paper: [https://example.org/paper](https://example.org/paper)" in text


def test_phantoms_are_not_called_mammograms_and_vindr_is_not_cited(visit: dict[str, Any]) -> None:
    for repo in ("someone/saes", "someone/findings", "someone/space", "someone/nets"):
        text = card(visit, repo).replace("Mammography", "").replace("in Mammography", "")
        assert "reads mammograms" not in text and "on mammograms" not in text and "of mammograms" not in text
        assert (
            "VinDr-Mammo" not in text
            and "nguyen2023" not in text
            and "(https://huggingface.co/models?other=mammosae-plugin)" in text
        )


@pytest.mark.parametrize("part", ["sae", "space"])
def test_the_commands_publish_nothing_poor_unless_somebody_insists(part: str, study: Path) -> None:
    options = ["--licence", "mit"] if part == "sae" else []
    done = mammosae("publish", part, study, "someone/poor", *options)  # refused before the Hub is asked
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "explained variance −" in done.stderr and "--force-poor" in done.stderr


# -- without the Hub ---------------------------------------------------------------------------------------------------


def test_a_classifiers_folder_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    model = calibrated_classifier(1, seed=3)
    save_classifier_folder(model, tmp_path / "a", source={"kind": "random"}, metadata={"concepts": ["Mass"]})
    read = load_mammo_clip(tmp_path / "a")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read.state_dict().items())
    assert read.source["metadata"] == {"concepts": ["Mass"]}
    assert read.source["sha256"] == [sha256_of_file(tmp_path / "a" / "model.safetensors")]
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"damaged header at config\.json"):
        load_mammo_clip(tmp_path / "a")


@pytest.mark.parametrize("damage", ["a tensor more", "another shape", "metadata", "an entry"])
def test_the_guard_lets_nothing_out_but_the_network(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    model = new_classifier("tinynet_e", 1, seed=0)
    folder = tmp_path / "staged" / "net"
    save_classifier_folder(model, folder, source={}, metadata={})
    context = PrivacyContext(datasets=("phantom",))
    assert len(check_staged(tmp_path / "staged", "model", context)) == 2
    tensors, weights = load_file(folder / "model.safetensors"), folder / "model.safetensors"
    if damage == "a tensor more":
        save_file({**tensors, "images": torch.rand(4, 4)}, weights)
    elif damage == "another shape":
        save_file({**tensors, "bn1.bias": torch.rand(3)}, weights)
    elif damage == "metadata":
        save_file(tensors, weights, {"patients": "some"})
    else:
        config = read_json(folder / "config.json")
        (folder / "config.json").write_text(json.dumps({**config, "hospital": "one"}))
    with pytest.raises(PrivacyError):
        check_staged(tmp_path / "staged", "model", context)


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (["paper"], "not of the form NAME=https"),
        (["paper=ftp://x.org"], "is no link"),
        (["paper=https://[x"], "is no link"),
        (["paper=https://x.org/a]"], "is no link"),
        (["a=https://x.org/(b)"], "is no"),
    ],
)
def test_what_is_no_link_is_refused_in_one_line(links: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        About(links=parse_links(links))


def test_what_cannot_be_published_as_a_classifier_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is published under a licence"):
        publish_model(study, "someone/nets")
    with pytest.raises(InputError, match="has no classifier 'x'; it has pretrained-Mass"):
        publish_model(study, "someone/nets", model_id="x", licence="mit")
    save_classifier_folder(new_classifier("tinynet_e", 0, seed=0), tmp_path / "e", source={}, metadata={})
    with pytest.raises(InputError, match="an encoder without a classifier"):
        publish_model(tmp_path / "e", "someone/nets", model_id="x", licence="mit")


def test_the_card_and_the_docs_explain_every_column_of_the_findings() -> None:
    page = (Path(__file__).parents[1] / "docs" / "findings.md").read_text()
    for config in COLUMNS:
        rows = dictionary(config)
        told = [name for names, _, _ in rows for name in names.split(", ")]
        nested = {name.partition(".")[0] for name in leaves(COLUMNS[config]) if "." in name}
        assert set(told) == {*leaves(COLUMNS[config]), *nested} and len(told) == len(set(told)), config
        assert all(meaning for _, _, meaning in rows), config
    for name in (*leaves(COLUMNS["latents"]), *leaves(COLUMNS["study"])):
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", page), name
