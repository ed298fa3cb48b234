"""Shared fixtures: small phantoms, a small network and a random SAE, each made once."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from helpers_adapters import calibrated_classifier
from helpers_findings import small_study
from helpers_study import random_sae, small_phantoms

from mammosae_plugin.adapters import HookedVisionModel, MammoClipClassifier
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.study import Study


def pytest_configure() -> None:
    """Help is written as for a wide pipe, whatever the terminal or the service that runs the tests would have of it;
    what is noted of files goes to no user's cache, and sums are those of one thread, here and in what a test starts."""
    for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH"):
        os.environ.pop(name, None)
    os.environ["COLUMNS"] = "120"
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ["MAMMOSAE_CACHE"] = tempfile.mkdtemp(prefix="mammosae-cache-")
        atexit.register(shutil.rmtree, os.environ["MAMMOSAE_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left with one at the end while the others wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("phantoms")
    return small_phantoms(root)


@pytest.fixture(scope="session")
def phantoms(phantom_root: Path) -> VinDrMammo:
    return VinDrMammo(phantom_root, image_size=(96, 64))


@pytest.fixture(scope="session")
def classifier() -> MammoClipClassifier:
    return calibrated_classifier(1)


@pytest.fixture(scope="session")
def encoded(phantoms: VinDrMammo, tmp_path_factory: pytest.TempPathFactory) -> LatentTable:
    """A latents table of the phantoms under a random network and a random SAE, all maps kept."""
    classifier = calibrated_classifier(1)  # as the fixture, which the module that asks may have hooked
    with HookedVisionModel(classifier, ["bn2"]) as model:
        return encode_latents(
            model,
            random_sae(classifier.num_features),
            phantoms,
            tmp_path_factory.mktemp("table"),
            heads={"Mass": classifier.classifier},
            map_latents=range(12),
            map_channels=[700, 5],
            batch_size=4,
            shard_size=16,
        )


@pytest.fixture(scope="session")
def finished_study(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A small study of two layers that has been run; its folder is not written to."""
    return small_study(tmp_path_factory.mktemp("finished"), phantom_root)
