"""Damaged files of huggingface_hub's cache, with links in it and without, and a login that has expired."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_hub import LoopbackHub, run_on_hub
from helpers_study import random_sae

from mammosae_plugin.hub_cache import download_anew

PROGRAM = """
import sys
from pathlib import Path
from mammosae_plugin.adapters import load_vision_sae
from mammosae_plugin.adapters.sources import find_source
from mammosae_plugin.hub import pull
from huggingface_hub import constants

REPO, PLACE = "someone/saes", "hub://someone/saes@v1/bn2"

def damage(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"abcd")
    return whole

seen = {}
weights = pull(REPO, revision="v1") / "bn2" / "sae_weights.safetensors"
seen["link"] = weights.is_symlink()
whole = damage(weights)
constants.HF_HUB_OFFLINE = True
seen["offline"] = [attempt(lambda: str(pull(REPO, revision="v1"))), attempt(lambda: str(load_vision_sae(PLACE)))]
constants.HF_HUB_OFFLINE = False
load_vision_sae(PLACE)
seen["loaded"] = weights.read_bytes() == whole
damage(weights)
pull(REPO, revision="v1")
seen["pulled"] = weights.read_bytes() == whole
damage(weights)
hub(faults=[{"pattern": "GET /store/", "status": 403, "times": None}])
seen["cannot"] = attempt(lambda: str(load_vision_sae(PLACE)))
seen["left"] = sorted(path.name for path in weights.parent.iterdir())
hub(faults=[])
findings = pull("someone/findings") / "latents.parquet"
whole = damage(findings)
pull("someone/findings")
seen["findings"] = findings.read_bytes() == whole
"""
LOGIN = """
from mammosae_plugin.adapters.sources import find_source
from mammosae_plugin.hub import load_findings, pull

calls = {
    "pull": lambda: pull("someone/saes"),
    "load": lambda: find_source("hub://someone/saes/bn2/cfg.json"),
    "findings": lambda: load_findings("someone/findings"),
    "missing": lambda: pull("someone/nothing"),
}
seen = {name: attempt(lambda: str(call())) for name, call in calls.items()}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    folder = tmp_path_factory.mktemp("sae")
    random_sae(16).save_model(folder)
    with LoopbackHub() as hub:
        hub.commit("someone/saes", {f"bn2/{path.name}": path for path in folder.iterdir()}, tag="v1")
        hub.commit("someone/findings", {"latents.parquet": b"rows" * 99}, kind="dataset")
        yield hub


@pytest.fixture(scope="module", params=["links", "no links"])
def seen(hub: LoopbackHub, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    program = PROGRAM
    if request.param == "no links":
        program = 'import os\nos.environ["HF_HUB_DISABLE_SYMLINKS"] = "1"\n' + PROGRAM
    found = run_on_hub(hub, tmp_path_factory.mktemp("home"), program)
    assert found["link"] == (request.param == "links")
    return dict(found, param=request.param)


def test_a_damaged_file_is_had_again_by_pulling_and_by_loading(seen: dict[str, Any]) -> None:
    assert seen["loaded"] and seen["pulled"] and seen["findings"]


def test_a_file_that_is_damaged_and_cannot_be_had_again_is_told_as_damaged(seen: dict[str, Any]) -> None:
    pulled, loaded = seen["offline"]
    assert "sae_weights.safetensors of someone/saes is damaged in the cache; pull it again with" in pulled["message"]
    if seen["param"] == "links":  # else its hash is not at hand, and the file is read as it is
        assert "is damaged in the cache; read it once with the Hub in reach" in loaded["message"]
    assert "is damaged in the cache, and could not be had again: " in seen["cannot"]["message"]
    assert seen["left"] == ["cfg.json", "sae_weights.safetensors"]


def test_a_download_that_fails_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("damaged")

    def fail() -> None:
        assert not (tmp_path / "a").exists()
        raise OSError

    with pytest.raises(OSError):
        download_anew(tmp_path / "a", fail)
    download_anew(tmp_path / "b", lambda: (tmp_path / "b").write_text("new"))
    download_anew(tmp_path / "b", lambda: (tmp_path / "b").write_text("newer"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "damaged", "b": "newer"}


def test_an_expired_token_is_told_as_such_also_for_what_is_public(hub: LoopbackHub, tmp_path: Path) -> None:
    expired = run_on_hub(hub, tmp_path / "expired", LOGIN, token="hf_expired")
    for said in expired.values():
        assert "does not accept this machine's login (401)" in said["message"]
        assert "`hf auth logout`" in said["message"] and "HF_TOKEN" in said["message"]
        assert "\n" not in said["message"]
    nobody = run_on_hub(hub, tmp_path / "nobody", LOGIN, token=None)
    assert "has no model or dataset someone/nothing, or it is private" in nobody["missing"]["message"]
