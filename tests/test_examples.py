"""The examples that speak with the Hub, and the snippets of the cards that they publish, run on a Hub on this machine.

One process visits the Hub, as a user's would; the tests look at what it printed, and at what lies on the Hub then.
"""

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers_hub import LoopbackHub, run_on_hub
from PIL import Image

from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.privacy.guard import PrivacyContext
from mammosae_plugin.study import Study

EXAMPLES = Path(__file__).parent.parent / "examples"
RUN = """
import contextlib, io, os, re, runpy, sys
from pathlib import Path

examples, work, study, other = sys.argv[1:5]
os.chdir(work)

def run(name, *arguments):
    sys.argv = [name, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(Path(examples) / name), run_name="__main__")
    return said.getvalue()

def state():
    return {name: sorted(repo["files"]) for name, repo in hub()["repos"].items()}

seen = {"dry sae": run("publish_your_own_sae.py", "someone/saes", "--folder", "own")}
seen["repos after a dry run"] = state()
seen["sae"] = run("publish_your_own_sae.py", "someone/saes", "--folder", "own", "--confirm")
seen["look"] = run("look_at_one_mammogram.py", "hub://someone/saes@v1/final_map",
                   "--network", "own/network.safetensors", "--output", "seen.png")
share = ["share_and_compare_findings.py", study, other, "someone/findings", "someone/other"]
seen["findings"] = run(*share, "--page", "page", "--confirm")

# every snippet of the cards, as a reader would copy it
from huggingface_hub import DatasetCard, ModelCard
import torch
from mammosae_plugin.hub import load_findings
seen["cards"] = {}
for name, card in {"sae": ModelCard.load("someone/saes"), "findings": DatasetCard.load("someone/findings")}.items():
    snippets = re.findall(r"```python\\n(.*?)```", card.content, flags=re.DOTALL)
    place = {"rows": torch.randn(4, 1280)}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for snippet in snippets:
            exec(snippet, place)
    seen["cards"][name] = [len(snippets), said.getvalue(), sorted(place.keys() - {"__builtins__"})]
    if name == "sae":
        seen["latents"] = list(place["latents"].shape)
    else:
        seen["rows"] = len(place["latents"])
seen["note"] = load_findings("someone/findings").notes.astype(str).to_dict("records")
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def seen(hub: LoopbackHub, work: Path, finished_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Any:
    studies = [shutil.copytree(finished_study.output, tmp_path_factory.mktemp("study") / name) for name in ("a", "b")]
    return run_on_hub(hub, tmp_path_factory.mktemp("home"), RUN, EXAMPLES, work, *studies)


def test_publish_your_own_sae_shows_first_and_sends_when_confirmed(seen: Any, hub: LoopbackHub) -> None:
    assert "someone/saes: private, to be made" in seen["dry sae"]
    assert re.search(r"new +final_map/sae_weights\.safetensors +[\d,]+ bytes +sha256 [0-9a-f]{64}", seen["dry sae"])
    assert "Nothing was sent" in seen["dry sae"]
    assert seen["repos after a dry run"] == {}
    assert "gives the same latents" in seen["sae"]
    assert hub.repos["model", "someone/saes"].private


def test_look_at_one_mammogram_names_the_strongest_latents_and_draws_them(seen: Any, work: Path) -> None:
    rows = re.findall(
        r"latent +(\d+): maximum ([\d.e+-]+), in row (\d+), column (\d+) of \((\d+), (\d+)\)", seen["look"]
    )
    assert len(rows) == 3
    maxima = [float(row[1]) for row in rows]
    assert maxima == sorted(maxima, reverse=True)
    assert maxima[-1] > 0
    assert all(int(row) < int(height) and int(column) < int(width) for *_, row, column, height, width in rows)
    with Image.open(work / "seen.png") as figure:
        assert min(figure.size) > 200


def test_share_and_compare_findings_publishes_two_studies_and_compares_them(seen: Any, work: Path) -> None:
    assert seen["findings"].count("published: ") == 2
    assert "a: someone/findings" in seen["findings"]
    assert "shared_top" in seen["findings"]
    assert (work / "page" / "index.html").is_file()
    (note,) = {(row["author"], row["label"], row["text"]) for row in seen["note"]}
    assert note == ("reader A", "artefact", "bright where the tissue is dense")


def test_the_snippets_of_the_cards_run_as_they_stand(seen: Any) -> None:
    snippets, _, names = seen["cards"]["sae"]
    assert snippets == 2
    assert {"SAE", "load_vision_sae", "sae", "latents"} <= set(names)
    assert seen["latents"] == [4, 256]
    snippets, said, names = seen["cards"]["findings"]
    assert snippets == 2
    assert {"load_dataset", "findings", "other"} <= set(names)
    assert "rank_correlation" in said
    assert seen["rows"] > 0


def test_no_id_of_the_data_is_in_any_byte_that_went_out(seen: Any, hub: LoopbackHub, phantoms: VinDrMammo) -> None:
    """The slow obvious search, over every file of every repository, tables unpacked."""
    ids = PrivacyContext.of_dataset(phantoms).private_values | {f"phantom_{number:05}" for number in range(24)}
    n_files = 0
    for repo in hub.repos.values():
        for path, content in repo.commits[repo.refs["main"]].items():
            n_files += 1
            texts = [path.encode(), content]
            if path.endswith(".parquet"):
                table = pq.read_table(io.BytesIO(content))
                texts += [str(table.to_pydict()).encode(), str(table.schema).encode()]
            for text in texts:
                assert not any(one.encode() in text for one in ids), path
    assert n_files > 15
    assert len(ids) > 50
