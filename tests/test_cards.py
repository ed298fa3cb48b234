"""Cards: filled from results, read back by huggingface_hub, accepted by its check, and their snippets are Python."""

import ast
import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from helpers_hub import LoopbackHub, run_on_hub
from helpers_results import named_latent
from huggingface_hub import DatasetCard, ModelCard
from jinja2 import UndefinedError

from mammosae_plugin.findings.notes import Note, with_readers
from mammosae_plugin.findings.tables import shared_role
from mammosae_plugin.hub.cards import (
    render_findings_card,
    render_model_card,
    render_sae_card,
    render_space_readme,
    render_study_card,
)
from mammosae_plugin.hub.saes import _confounders

CFG = {
    "architecture": "standard",
    "d_in": 1280,
    "d_sae": 4096,
    "metadata": {
        "model_name": "tinynet_e",
        "hook_name": "bn2.hook_out",
        "layout": "channels_last",
        "image_size": [128, 96],
        "dataset_path": "vindr",
        "splits": ["training"],
        "seed": 7,
    },
}
TRAINING = {
    "steps": 130,
    "config": {
        "architecture": "standard",
        "epochs": 5.0,
        "batch_size": 1024,
        "lr": 0.001,
        "sparsity": 0.006,
        "k": None,
        "seed": 0,
    },
}
EVALUATION = {
    "explained_variance": np.float64(0.75),
    "l0": np.float32(12.5),
    "dead_share": 0.25,
    "rows": np.int64(2048),
    "measured_on": "held-out patients",
}
SAE: dict[str, Any] = {
    "repo_id": "someone/saes",
    "saes": {
        "layer_10": {
            "cfg": CFG,
            "evaluation": EVALUATION,
            "training": TRAINING,
            "base_model": "shawn24/Mammo-CLIP",
            "datasets": ["vindr"],
        }
    },
    "licence": "cc-by-nc-sa-4.0",
    "tag": "v1",
    "figures": ["figures/figure_4_finetuned_Mass.png"],
}


def metrics(value: float) -> dict[str, float]:
    return {"auroc": value, "auroc_low": value - 0.05, "auroc_high": value + 0.05}


def best(latent: int, role: str, precision: float | None) -> dict[str, Any]:
    return {
        "layer": "layer_10",
        "model": "finetuned",
        "concept": "Suspicious_Calcification",
        "latent": latent,
        "role": role,
        "reason": "as it is",
        "evidence": f"AUROC 0.{latent % 100}",
        "average_precision": precision,
        "ablation_effect": None if precision is None else -0.5,
    }


PAIR = {"layer": "layer_10", "model": "finetuned", "concept": "Suspicious_Calcification"}
FINDINGS: dict[str, Any] = {
    "repo_id": "someone/findings",
    "licence": "cc-by-4.0",
    "datasets": ["vindr"],
    "restricted": ["VinDr-Mammo"],
    "citations": [],
    "figures": ["figures/figure_2_Mass.png"],
    "title": "Latents | of a\nclassifier",
    "study": {
        "created": "2026-01-31",
        "data_kind": "vindr",
        "min_group": 5,
        "layers": ["layer_10"],
        "concepts": ["Suspicious_Calcification"],
        "data": {
            "splits": [{"split": "training", "n_images": 1600, "n_patients": 400}],
        },
        "models": [
            {"name": "finetuned", "concept": "Suspicious_Calcification", "kind": "finetuned", "architecture": "b5"}
        ],
        "sae": {"layer_10": {"architecture": "standard", "d_in": 2048, "d_sae": 16384, "source": "sae.pt"}},
    },
    "configs": [
        {"name": name, "path": f"{name}/train-*.parquet", "n_rows": 1234}
        for name in ("latents", "interventions", "reconstruction", "localization", "study")
    ],
    "n_latents": np.int64(16384),
    "best": [
        *(best(13867, "concept", 0.25), best(77, "unclear", 0.01), best(15699, "background", 0.4)),
        best(15892, "skin fold", None),
    ],
    "reconstruction": [
        {**PAIR, "variant": "without_sae", **metrics(np.float64(0.875))},
        {**PAIR, "variant": "with_sae", **dict.fromkeys(metrics(0), None)},
    ],
    "readers": ["reader A", "reader B"],
    "n_notes": 3,
    "agreement": "Cohen's kappa 0.62 (2 readers)",
}
SPACE: dict[str, Any] = {"title": "Latents of a classifier", "datasets": ["someone/findings"], "kinds": ["vindr"]}
SPACE |= {"libraries": ["mammo_clip"]}
CARDS = {
    "model": render_sae_card(SAE),
    "dataset": render_findings_card(FINDINGS),
    "space": render_space_readme(SPACE),
}


def front_matter(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    assert found
    front: dict[str, Any] = yaml.safe_load(found[1])
    return front


def row_of(card: str, *starts: str) -> list[str]:
    """The cells of the only table row that begins so."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in card.splitlines() if line[:1] == "|"
    ]
    (row,) = [row for row in rows if tuple(row[: len(starts)]) == starts]
    return row


def test_the_hubs_own_check_accepts_every_card(tmp_path: Path) -> None:
    for kind, card in CARDS.items():
        (tmp_path / f"{kind}.md").write_text(card)
    program = """
import sys
from pathlib import Path
from huggingface_hub import DatasetCard, ModelCard, SpaceCard
kinds = {"model": ModelCard, "dataset": DatasetCard, "space": SpaceCard}
seen = {name: attempt(kind.load(Path(sys.argv[1]) / f"{name}.md").validate) for name, kind in kinds.items()}
wrong = SpaceCard((Path(sys.argv[1]) / "space.md").read_text().replace("colorTo: blue", "colorTo: crimson"))
seen["wrong"] = attempt(wrong.validate)
"""
    with LoopbackHub() as hub:
        seen = run_on_hub(hub, tmp_path / "home", program, tmp_path)
    assert {kind: seen[kind] for kind in CARDS} == dict.fromkeys(CARDS)
    assert seen["wrong"]["error"] == "ValueError"


def test_the_measures_of_an_sae_come_back_as_a_model_index_of_plain_numbers() -> None:
    card = ModelCard(CARDS["model"])
    found = {result.metric_type: result for result in card.data.eval_results or []}
    assert {name: result.metric_value for name, result in found.items()} == {
        "explained_variance": 0.75,
        "l0": 12.5,
        "dead_share": 0.25,
    }
    result = found["l0"]
    assert (result.dataset_type, result.dataset_name, result.dataset_config) == ("vindr", "VinDr-Mammo", "layer_10")
    assert result.dataset_split == "held-out patients"
    assert (card.data.library_name, card.data.license, card.data.base_model) == (
        "saelens", "cc-by-nc-sa-4.0", "shawn24/Mammo-CLIP",
    )  # fmt: skip
    assert card.data.datasets is None  # VinDr-Mammo is no dataset of the Hub's


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_front_matter_is_plain_yaml_without_traces_of_numpy(card: str) -> None:
    assert "!!" not in card.partition("\n---\n")[0]
    front_matter(card)


def test_several_saes_of_a_repository_are_told_apart() -> None:
    facts = copy.deepcopy(SAE)
    facts["saes"]["layer_6"] = {"cfg": {**CFG, "d_in": 56, "metadata": {}}, "evaluation": {"l0": 3.5}, "training": None}
    card = render_sae_card(facts)
    assert row_of(card, "`layer_6`", "`not stated`") == ["`layer_6`", "`not stated`", "standard", "56", "4,096"]
    values = {(r.dataset_config, r.metric_type): r.metric_value for r in ModelCard(card).data.eval_results or []}
    assert (values["layer_10", "l0"], values["layer_6", "l0"]) == (12.5, 3.5)
    assert ("layer_6", "explained_variance") not in values
    assert row_of(card, "`layer_6`", "–") == ["`layer_6`", "–", "3.50", "–", "not stated"]


def test_what_is_said_of_one_sae_is_not_said_of_another() -> None:
    facts = copy.deepcopy(SAE)
    facts["saes"]["layer_6"] = {
        "cfg": CFG,
        "evaluation": {"l0": 3.5},
        "training": None,
        "datasets": ["phantom", "owner/rows"],
        "base_model": "timm/tinynet_e.in1k",
        "confounders": [{"latent": 202, "follows": "the edge"}],
    }
    facts["saes"]["layer_2"] = {"cfg": CFG, "evaluation": {}, "training": None}
    card = render_sae_card(facts)
    licence = card.partition("## Licence and data")[2]
    assert "- `layer_10`: [VinDr-Mammo]" in licence
    assert "- `layer_6`: phantoms: images drawn by a program" in licence
    assert "- `layer_2`: data that the author has not stated\n" in licence
    made = [line for line in card.splitlines() if line.startswith("| data |")]
    assert ["VinDr" in line for line in made] == [True, False, False]
    assert ["phantom" in line for line in made] == [False, True, False]
    assert made[2] == "| data | not stated |"
    networks = [line for line in card.splitlines() if line.startswith("| network |")]
    assert ["Mammo-CLIP]" in line for line in networks] == [True, False, False]
    assert "The network is" not in card
    assert "among the latents of `layer_10`, `layer_2` in this repository" in card
    found = ModelCard(card).data
    assert found.base_model == ["shawn24/Mammo-CLIP", "timm/tinynet_e.in1k"]
    assert found.datasets == ["owner/rows"]
    assert {(r.dataset_config, r.dataset_name) for r in found.eval_results or []} == {
        ("layer_10", "VinDr-Mammo"),
        ("layer_6", "phantoms, owner/rows"),
    }


def test_an_sae_of_which_little_is_known_has_a_card_that_says_so() -> None:
    one = {"cfg": {"architecture": "topk", "d_in": 8, "d_sae": 12}, "evaluation": {}, "training": None}
    card = render_sae_card({"repo_id": "someone/one", "saes": {"x": one}})
    assert "Nothing was measured" in card
    assert "No licence is stated" in card
    assert "None" not in card
    assert ModelCard(card).data.eval_results is None


def test_what_the_card_of_an_sae_says_comes_from_its_files() -> None:
    card = CARDS["model"]
    assert row_of(card, "trained as")[1] == "standard, 5 epochs, 1,024 rows per step, learning rate 0.001"
    assert row_of(card, "input, height x width")[1] == "128 x 96 pixels"
    assert row_of(card, "seed")[1] == "0"
    assert row_of(card, "0.750") == ["0.750", "12.5", "25.0 %", "held-out patients, 2,048 rows"]
    assert "PhysioNet Restricted Health Data License 1.5.0" in row_of(card, "data")[1]
    assert "![Class means: finetuned Mass](figures/figure_4_finetuned_Mass.png)" in card


def test_confounders_that_somebody_found_are_named() -> None:
    facts = copy.deepcopy(SAE)
    facts["saes"]["layer_10"]["confounders"] = [{"latent": 15699, "follows": "the nipple | markers"}]
    card = render_sae_card(facts)
    assert "latent 15699 of `layer_10` follows the nipple &#124; markers" in card
    assert "No reader has named" not in card
    assert "No reader has named" in CARDS["model"]


def test_only_a_reader_makes_a_latent_a_confounder_and_its_numbers_stand_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[str, Any] = {"text": "", "encoder": None, "confidence": None, "created": "2026-01-01", "sae": "x"}
    notes = [Note("AB", "layer_6", 3, concept="Mass", label="Confounder", **made)]
    named = {"a/Mass": [named_latent(3, "concept"), named_latent(4, "background")]}
    encoder = SimpleNamespace(name="a", model="a", concepts=("Mass",))
    layers = [
        SimpleNamespace(name=name, results={"named_latents": named}, encoders={"a": encoder})
        for name in ("layer_6", "layer_10")
    ]
    monkeypatch.setattr("mammosae_plugin.hub.saes.StudyFolder", lambda folder: SimpleNamespace(layers=layers))

    def told(study: Any, *, min_group: int) -> dict[str, Any]:
        read = {layer.name: with_readers(named, notes, layer) for layer in study.layers}
        return {
            layer: {pair: [shared_role(row, min_group) for row in rows] for pair, rows in found.items()}
            for layer, found in read.items()
        }

    monkeypatch.setattr("mammosae_plugin.hub.saes.shared_named_latents", told)
    (found,) = _confounders(Path("study"), 5)
    assert (found["sae_id"], found["latent"]) == ("layer_6", 3)
    assert "a/Mass (said by AB; AUROC 0.83 [0.78, 0.88]" in found["follows"]
    (hidden,) = _confounders(Path("study"), 58)  # 57 patients have the finding
    assert hidden["follows"].endswith("a/Mass (said by AB)")


def test_datasets_finds_the_configs_by_the_front_matter() -> None:
    configs = front_matter(CARDS["dataset"])["configs"]
    assert [config["config_name"] for config in configs] == [config["name"] for config in FINDINGS["configs"]]
    assert [config.get("default", False) for config in configs] == [True, False, False, False, False]
    assert configs[0]["data_files"] == [{"split": "train", "path": "latents/train-*.parquet"}]
    assert DatasetCard(CARDS["dataset"]).data.pretty_name == "Latents | of a classifier"
    assert front_matter(CARDS["dataset"])["size_categories"] == "10K<n<100K"


@pytest.mark.parametrize("card", [CARDS["dataset"], render_study_card(FINDINGS)], ids=["findings", "study"])
def test_a_study_lists_every_latent_under_one_heading_with_its_numbers(card: str) -> None:
    place = ["layer_10", "finetuned", "Suspicious calcification"]
    following, _, distrusted = card.partition("# Latents that follow a finding")[2].partition("# Latents to distrust")
    parts = {part.partition(".**")[0]: part for part in distrusted.split("\n**")[1:]}
    where = f"- {', '.join(place)}: "
    assert f"{where}latent 13867 (AUROC 0.67)\n" in following
    assert f"{where}latent 15699 (AUROC 0.99)\n" in parts["Background"]
    assert f"{where}latent 15892, “skin fold” (AUROC 0.92)\n" in parts["Named by readers"]
    assert f"{where}77\n" in parts["Unclear"]
    for latent in ("13867", "15699", "15892", "77"):
        assert len(re.findall(rf"\b{latent}\b", following + distrusted)) == 1
    assert row_of(card, *place, "0.875 (0.825 to 0.925)") == [*place, "0.875 (0.825 to 0.925)", "–"]
    assert "3 notes by 2 readers (reader A, reader B)" in card
    assert "Cohen's kappa 0.62" in card


def test_phantoms_are_called_phantoms() -> None:
    facts = copy.deepcopy(FINDINGS) | {"datasets": ["phantom"], "restricted": []}
    facts["study"]["data_kind"] = "phantom"
    assert "**Phantoms.**" in render_findings_card(facts)
    assert "may not be passed on" not in render_findings_card(facts)
    own = render_findings_card(facts | {"datasets": ["clinic-7"], "restricted": ["Clinic | 7"]})
    assert "Clinic &#124; 7 is not part of this repository and may not be passed on" in own
    assert "**Phantoms.**" not in CARDS["dataset"]
    assert "VinDr-Mammo is not part of this repository and may not be passed on" in CARDS["dataset"]


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_every_card_warns_names_limits_and_cites(card: str) -> None:
    assert re.search(r"research only\W+Not a medical device", card, flags=re.IGNORECASE)
    for cited in ("2507.15227", "Mammo-CLIP", "MICCAI", "VinDr-Mammo", "Scientific Data"):
        assert cited in card


MODEL = {
    "architecture": "resnet18", "library": "timm", "n_class": 1, "concepts": ["Mass"], "kind": "finetuned",
    "preprocessing": None, "channels": 3, "image_size": [96, 64], "images": None, "base_model": None, "licence": "mit",
    "datasets": ["clinic"], "citations": ["Somebody, 2026"], "auroc": dict.fromkeys(("", "_low", "_high")), "sae": None,
}  # fmt: skip


def cards_of(library: str) -> dict[str, str]:
    """Every card that is sent, of a network of a library and data of somebody's own."""
    network = (
        {"architecture": "my.networks:make", "library": library} if library == "function" else {"library": library}
    )
    cfg = {**CFG, "metadata": {**CFG["metadata"], "model_source": {"trained_from": {"kind": library}}}}
    sae = {**SAE["saes"]["layer_10"], "cfg": cfg, "base_model": None, "datasets": ["clinic"]}
    findings = copy.deepcopy(FINDINGS) | {"datasets": ["clinic"], "restricted": [], "citations": ["Somebody, 2026"]}
    findings["study"]["models"][0] |= network
    about = {"citations": ["Somebody, 2026"]}
    return {
        "sae": render_sae_card({**SAE, "saes": {"layer_10": sae | about}}),
        "model": render_model_card({"repo_id": "a/b", "licence": "mit", "models": {"Mass": MODEL | network}}),
        "dataset": render_findings_card(findings),
        "space": render_space_readme({**SPACE, "kinds": ["clinic"], "libraries": [library], **about}),
    }


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers", "function", "mammo_clip"])
def test_mammo_clip_is_named_where_it_was_used_and_the_data_as_their_owner_says(library: str) -> None:
    for name, card in cards_of(library).items():
        assert ("Mammo-CLIP" in card) == (library == "mammo_clip"), name
        assert "Somebody, 2026" in card and "VinDr" not in card and "2507.15227" in card
        assert ("TorchVision maintainers" in card) == (library == "torchvision" and name != "space")
        assert "efficientnet" not in card.split("---")[1] or library == "mammo_clip"
    loads = cards_of(library)["model"].split("```python")[1]
    assert ('functions=["my.networks:make"]' in loads) == (library == "function")
    known = render_sae_card({**SAE, "saes": {"a": {**SAE["saes"]["layer_10"], "datasets": ["cbis-ddsm"]}}})
    assert "Scientific Data 4, 170177" in known


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_cards_of_data_say_use_and_limits(kind: str) -> None:
    for heading in ("## Load", "## Intended use", "## Limits", "## Citation"):
        assert f"\n{heading}\n" in CARDS[kind]
    assert "Out of scope: any decision about a patient" in CARDS[kind]


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_snippets_are_python_and_tables_have_rows_of_one_length(card: str) -> None:
    for snippet in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        ast.parse(snippet)
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
        assert re.fullmatch(r"[|:-]+", table.splitlines()[1]), table


HOSTILE = "A\nB\n\n# Hello <img src=x onerror=alert(1)> & | ` [x](http://example.org) **bold** \\"


@pytest.mark.parametrize("render", [render_findings_card, render_study_card])
def test_what_readers_write_stands_in_a_card_as_text(render: Any) -> None:
    facts = copy.deepcopy(FINDINGS)
    facts |= {"readers": [HOSTILE, "B"], "agreement": f"Cohen's kappa of {HOSTILE}, B\n| 1 |", "title": HOSTILE}
    facts |= {"datasets": [HOSTILE]}
    facts["study"]["sae"]["layer_10"]["source"] = HOSTILE
    card = render(facts).rpartition("\n---\n")[2]
    lines = [line for line in card.splitlines() if "Hello" in line]
    assert len(lines) >= 4  # title, data, source, readers and agreement
    for line in lines:
        assert line.lstrip("# ").startswith(("A B # Hello", "| data", "| layer_10", "3 notes", "Licence of this"))
        assert "A B # Hello &#60;img src=x onerror=alert(1)&#62; &#38; &#124; &#96; &#91;x&#93;(http" in line
        assert "**bold**" not in line and "<img" not in line


def test_a_space_shows_its_title_and_datasets_as_text() -> None:
    card = render_space_readme({"title": "A <b> title", "datasets": ["some<b>one/findings"]})
    assert "# A &#60;b&#62; title\n" in card and "[some&#60;b&#62;one/findings]" in card


def test_a_title_of_two_lines_is_a_heading_of_one() -> None:
    assert "# Latents &#124; of a classifier\n" in CARDS["dataset"]


def test_facts_that_are_missing_stop_the_card() -> None:
    with pytest.raises((KeyError, UndefinedError)):
        render_findings_card({key: value for key, value in FINDINGS.items() if key != "study"})
