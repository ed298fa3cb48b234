"""Names by models: which pictures are shown, what is told beside them, what counts as an answer."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_adapters import DATA
from helpers_language import Asked, language_server, tiny_vision_model
from helpers_study import mammosae, random_sae
from PIL import Image

from mammosae_plugin.activations.embedding_files import write_vectors
from mammosae_plugin.adapters.language_models import Answer, Question, openai_model
from mammosae_plugin.adapters.local_language_model import local_model
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.answers import clean_name, commonest_name
from mammosae_plugin.interpretation.asking import ask_all
from mammosae_plugin.interpretation.by_models import PROMPT_VERSION, name_by_model, plan_naming
from mammosae_plugin.interpretation.named_files import read_names
from mammosae_plugin.interpretation.names import COLUMNS
from mammosae_plugin.interpretation.pictures import Pictures
from mammosae_plugin.latents import encode_rows
from mammosae_plugin.schema.names_of_latents import WRITTEN

SAIL = DATA / "sail"
SAID = json.loads((SAIL / "names_said.json").read_text())


def named(name: str, in_common: bool = True) -> str:
    return json.dumps({"seen": "pictures", "in_common": in_common, "name": name})


@pytest.fixture(scope="module")
def pictures(encoded, phantoms):
    return Pictures(encoded, phantoms)


def test_names_are_cleaned_and_counted_as_by_sail():
    for case in SAID["clean_text"]:
        assert clean_name(case["text"]) == case["expected"], case
    for case in SAID["majority_vote"]:
        assert commonest_name(case["outputs"]) == case["expected"], case


def test_a_peak_is_boxed_and_cut_out_where_the_latent_is_strongest(encoded, phantoms, pictures):
    peaks = encoded.peaks([3], split="training")
    row = int(peaks.image_rows[0])
    own = peaks.image_rows == row
    x, y = peaks.points[own][peaks.values[own].argmax()]
    whole, part = pictures.around(row, 3)
    assert whole.size == (64, 96) and part.size == (24, 24)  # a quarter of the longest side
    yellow = (np.asarray(whole) == (255, 214, 0)).all(axis=2)
    ys, xs = np.nonzero(yellow)
    left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    assert (right - left, bottom - top) == (24, 24) and left <= x <= right and top <= y <= bottom
    gray = phantoms.gray(phantoms.images["image_id"].tolist().index(encoded.images["image_id"][row]))
    assert np.array_equal(np.asarray(part), gray[top:bottom, left:right])
    assert np.array_equal(np.asarray(pictures.whole(row)), gray)
    untouched = np.ones_like(yellow)
    untouched[top:bottom, left:right] = False
    assert np.array_equal(np.asarray(whole)[untouched], np.repeat(gray[untouched][:, None], 3, axis=1))


def test_large_pictures_are_made_smaller_and_images_without_a_peak_stay_whole(encoded, phantoms):
    small = Pictures(encoded, phantoms, longest=48)
    assert small.whole(0).size == (32, 48) and [one.size for one in small.around(0, 3)] in (
        [(32, 48), (24, 24)],
        [(32, 48)],
    )
    silent = next(
        row
        for row in range(len(encoded.images))
        for latent in (40,)
        if encoded.max_latents[[row]].toarray()[0, latent] == 0
    )
    assert len(small.around(silent, 40)) == 1


def test_of_data_that_are_counted_by_finding_the_image_is_shown_too(encoded, phantom_root, pictures):
    by_finding = VinDrMammo(phantom_root, image_size=(96, 64), unit="finding_row")
    row = len(encoded.images) - 1
    assert np.array_equal(Pictures(encoded, by_finding).gray(row), pictures.gray(row))


def test_images_of_other_data_are_refused(encoded, phantoms):
    with pytest.raises(InputError, match="none of the images"):
        Pictures(
            SimpleNamespace(**{**vars(encoded), "images": encoded.images.assign(image_id="x")}, is_of_rows=False),
            phantoms,
        )
    some = Pictures(encoded, phantoms.select(image_ids=[encoded.images["image_id"][0]]))
    with pytest.raises(InputError, match=f"the data lack {encoded.images['image_id'][1]}"):
        some.whole(1)


def test_every_latent_is_asked_about_with_its_pictures_and_what_comes_back_waits_for_a_judge(
    encoded, pictures, tmp_path
):
    says = {"3": named("These images show a dark rim"), "5": named("", False), "7": "nonsense"}
    turn = iter(says.values())
    held = {}

    def answer(asked: Asked) -> str:
        key = asked.texts[0] + str(asked.pictures[0].tobytes())
        return held.setdefault(key, next(turn, "")) if key not in held else held[key]

    with language_server(answer) as server:
        model = openai_model("some/model", server.url)
        found = name_by_model(
            encoded,
            model,
            pictures,
            latents=[3, 5, 7],
            min_groups=2,
            labels=["Mass"],
            journal=tmp_path / "answers.jsonl",
        )
        assert server.n_calls == 5  # the third three times
        name_by_model(
            encoded,
            model,
            pictures,
            latents=[3, 5, 7],
            min_groups=2,
            labels=["Mass"],
            journal=tmp_path / "answers.jsonl",
        )
        assert server.n_calls == 5
    first = server.asked[0]
    plan = plan_naming(encoded, pictures, latents=[3, 5, 7], min_groups=2)
    assert len(first.pictures) == 10 and plan.n_pictures == 30
    shown = [pictures.around(row, 3)[0] for row in plan.rows[0]]
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(first.pictures[::2], shown, strict=True))
    masses = ["yes" if encoded.images["Mass"][row] else "no" for row in plan.rows[0]]
    told = [text for text in first.texts if text.startswith("Known of image")]
    assert told == [f"Known of image {number}: Mass: {mass}" for number, mass in enumerate(masses, start=1)]
    assert "phantom images" in first.system
    assert list(found.latents.columns) == [*COLUMNS, *(column.name for column in WRITTEN)]
    assert found.latents["abstained"].all() and (found.latents["name"] == "").all() and found.n_named == 0
    assert found.latents["reason"].tolist() == [
        "not judged yet", "the model finds nothing in common", "no answer that can be read; no whole JSON object"
    ]  # fmt: skip
    assert found.candidates[["latent", "rank", "name"]].to_dict("records") == [
        {"latent": 3, "rank": 1, "name": "A dark rim"}
    ]
    assert found.about["n_failed"] == 1 and found.about["prompt_version"] == PROMPT_VERSION
    assert set(found.latents["model"]) == {"some/model"}


def test_nothing_of_an_image_is_told_but_pixels_and_the_labels_that_are_chosen(encoded, pictures):
    with language_server(lambda _: named("a rim")) as server:
        name_by_model(
            encoded, openai_model("m", server.url), pictures, latents=[3, 5], min_groups=2, labels=["density"]
        )
    forms = (
        r"Image \d, the part in the box:|Image \d, with a box .*:|Known of image \d: density: [A-D]|What specific .*"
    )
    texts = [text for asked in server.asked for text in asked.texts]
    assert len(texts) > 20 and all(re.fullmatch(forms, text) for text in texts)
    assert len({asked.system for asked in server.asked}) == 1
    assert not [held for asked in server.asked for held in asked.files if b"tEXt" in held or b"eXIf" in held]


@pytest.mark.parametrize("column", ["patient_id", "view", "image_id", "split", "nothing"])
def test_what_is_no_label_is_told_to_no_model(encoded, pictures, column):
    with pytest.raises(InputError, match=f"{column} is no label"):
        plan_naming(encoded, pictures, labels=[column])


def test_the_strongest_image_is_shown_first_then_the_most_unlike_and_each_patient_once(encoded, pictures):
    plan = plan_naming(encoded, pictures, latents=[3, 5], n=4, min_groups=2)
    training = np.flatnonzero(encoded.images["split"] == "training")
    for latent, rows in zip(plan.latents, plan.rows, strict=True):
        values = encoded.max_latents.toarray()[:, latent]
        assert rows[0] == training[values[training].argmax()] and (values[rows] > 0).all()
        assert encoded.images["patient_id"][rows].is_unique and (encoded.images["split"][rows] == "training").all()
        strong = training[values[training] > 0]
        strong = strong[np.argsort(-values[strong], kind="stable")]
        strong = strong[~encoded.images["patient_id"][strong].duplicated().to_numpy()][:20]
        codes = encoded.max_latents.toarray()[strong].astype(np.float64)
        cosines = codes @ codes[0] / np.linalg.norm(codes, axis=1) / np.linalg.norm(codes[0])
        assert rows[1] == strong[cosines.argmin()]
    with pytest.raises(InputError, match="among the 2 strongest"):
        plan_naming(encoded, pictures, n=3, of=2)


def test_latents_of_few_groups_are_not_asked_about(encoded, pictures):
    fewest = plan_naming(encoded, pictures, min_groups=1).n_groups.max() + 1
    model = SimpleNamespace(name="m", host=None)
    found = name_by_model(encoded, model, pictures, latents=[3], min_groups=fewest)
    assert found.latents["reason"].iloc[0].startswith("fires in too few groups; in ") and found.candidates.empty


class Voter:
    """Says one thing after another."""

    name, host = "voter", None

    def __init__(self, *says: str) -> None:
        self.says, self.seeds = list(says), []

    def answer(self, question: Question, *, seed: int) -> Answer:  # noqa: ARG002 - the protocol's
        self.seeds.append(seed)
        return Answer(self.says.pop(0), 0.0)


@pytest.mark.parametrize(
    ("says", "name", "reason"),
    [
        ([named("A rim"), named("a rim"), named("Tissue")], "A rim", "not judged yet"),
        ([named("A rim"), named("", False), named("", False)], "", "the model finds nothing in common"),
    ],
)
def test_of_several_answers_the_commonest_counts(encoded, pictures, says, name, reason):
    voter = Voter(*says)
    found = name_by_model(encoded, voter, pictures, latents=[3], min_groups=2, votes=3, seed=1)
    assert found.candidates["name"].tolist() == ([name] if name else []) and found.latents["reason"].tolist() == [
        reason
    ]
    assert voter.seeds == [1, 4, 7]


def test_something_in_common_without_a_name_or_with_an_essay_is_no_answer(encoded, pictures):
    voter = Voter(named(" "), named("word " * 30), named("a\nrim"))
    found = name_by_model(encoded, voter, pictures, latents=[3], min_groups=2)
    assert found.candidates["name"].tolist() == ["A rim"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_vision_model(tmp_path_factory.mktemp("llava"))


def test_a_local_pipeline_gets_texts_and_pictures_and_draws_by_the_seed(tiny, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = local_model(str(tiny), device="cpu", temperature=1.0, max_tokens=6)
    seen = []
    vision = model._pipe.model.model.vision_tower
    vision.register_forward_pre_hook(lambda _, args, named: seen.append([*args, *named.values()][0]), with_kwargs=True)
    question = Question(
        ("w1 w2", Image.new("L", (40, 30)), "w3", Image.new("RGB", (9, 9), "white")), {"type": "object"}
    )
    said = [model.answer(question, seed=seed).text for seed in (0, 0, 1, 2)]
    assert said[0] == said[1] and len(set(said)) > 1 and model.host is None and model.name == tiny.name
    assert len(seen[0]) == 2 and seen[0][0].mean() < 0 < seen[0][1].mean()
    likeliest = local_model(model._pipe, max_tokens=6)
    assert likeliest.name == tiny.name and likeliest.settings["weights"] == model.settings["weights"]
    assert likeliest.answer(question, seed=0).text == likeliest.answer(question, seed=1).text
    reply = ask_all(likeliest, {"q": Question(("w1",), {"type": "object"})}, None)["q"]
    assert reply.found is None and reply.failure == "no whole JSON object" and reply.tries == 3
    with torch.no_grad():
        next(model._pipe.model.parameters()).add_(1)
    assert local_model(model._pipe).settings["weights"] != model.settings["weights"]


def test_what_is_no_local_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="cannot load"):
        local_model(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="image-text-to-text"):
        local_model(SimpleNamespace(task="text-generation"))


def with_many_latents(encoded, folder):
    """A table of rows of the phantoms' images, with enough latents that fire for 250 names."""
    vectors = np.random.default_rng(0).normal(size=(len(encoded.images), 8)).astype(np.float32)
    write_vectors(folder / "rows.parquet", encoded.images, [vectors])
    return encode_rows(folder / "rows.parquet", random_sae(8, 320), folder / "table", concepts=["Mass"])


def of_picture(asked: Asked) -> str:
    """A name that depends on what is shown, and now and then nonsense or nothing in common."""
    digest = hashlib.sha256(b"".join(asked.files)).digest()
    if digest[0] < 20 and asked.seed % 2 == 0:
        return "nonsense"
    return named(f"thing {digest[1] % 32}", digest[0] < 220)


def test_a_run_that_is_killed_in_the_middle_of_250_names_repeats_no_call_and_ends_with_the_same_file(
    encoded, phantom_root, tmp_path
):
    table = with_many_latents(encoded, tmp_path)
    command = [
        "name", table.folder, "--by", "model", "--model", "m", "--min-groups", 2, "--top-latents", 250,
        "--set", f"data.root={phantom_root}", "--set", "data.image_size=[96, 64]",
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with language_server(of_picture) as server:
        done = mammosae(*command, "--endpoint", server.url, "-o", whole)
    assert done.returncode == 0, done.stderr
    n_calls = server.n_calls
    assert n_calls > 250 and len(pd.read_csv(whole / "names.csv")) == 250

    run: list[subprocess.Popen[bytes]] = []
    started = threading.Event()

    def deadly(asked: Asked) -> str:
        if len(server.asked) == 120:
            started.wait()
            run[0].kill()
        return of_picture(asked)

    with language_server(deadly) as server:
        arguments = [*command, "--endpoint", server.url, "-o", broken]
        process = [sys.executable, "-m", "mammosae_plugin", *map(str, arguments)]
        run.append(subprocess.Popen(process, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        started.set()
        assert run[0].wait() == -signal.SIGKILL
        n_killed = server.n_calls
        kept = len((broken / "answers.jsonl").read_bytes().splitlines())
        assert n_killed == 120 and kept == 119 and not (broken / "names.csv").exists()
        done = mammosae(*arguments)
        assert done.returncode == 0, done.stderr
        assert server.n_calls == n_calls + 1  # the one whose answer nobody was there to hear
    for file in ("names.csv", "candidates.csv", "names.json"):
        assert (broken / file).read_bytes() == (whole / file).read_bytes()


def name_command(encoded, phantom_root, *more):
    data = ["--set", f"data.root={phantom_root}", "--set", "data.image_size=[96, 64]"]
    return mammosae("name", encoded.folder, "--by", "model", "--model", "m", "--min-groups", 2, *data, *more)


def test_the_command_tells_the_cost_first_asks_and_writes_what_was_said(encoded, phantom_root, tmp_path):
    with language_server(of_picture) as server:
        where = [
            "--endpoint",
            server.url,
            "-l",
            "3,5,7",
            "--price-in",
            1000,
            "--price-out",
            1000,
            "-o",
            tmp_path / "out",
        ]
        dry = name_command(encoded, phantom_root, *where, "--dry-run")
        assert dry.returncode == 0 and server.n_calls == 1, dry.stderr
        assert dry.stdout.startswith("3 questions to m on this machine, with 30 pictures; by the first answer, ")
        assert "300 tokens of input, 21 tokens of output, a price of 0.32" in dry.stdout
        assert not (tmp_path / "out" / "names.csv").exists()
        done = name_command(encoded, phantom_root, *where, "--label", "Mass")
        assert done.returncode == 0 and "3 questions to m" in done.stderr
        assert server.n_calls >= 4  # with labels it is another question
    assert done.stdout.startswith("0 of 3 latents have a name; m was asked about 3 and described ")
    assert "have none: not judged yet" in done.stdout
    read = read_names(tmp_path / "out")
    assert read.latents["latent"].tolist() == [3, 5, 7] and read.method == "model"
    assert read.about["labels"] == ["Mass"] and set(read.latents["model"]) == {"m"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--endpoint", "http://127.0.0.1:1/v1"], "name a folder with -o"),
        (["-o", "out"], "either the server's --endpoint URL or --local"),
        (["--endpoint", "http://127.0.0.1:1/v1", "--local", "-o", "out"], "either the server's"),
        (["--endpoint", "https://models.example.org/v1", "-o", "out"], "stay here: its terms are none"),
        (["--endpoint", "https://models.example.org/v1", "-o", "out", "--send-images-under", "MIT"], "MIT is not the"),
        (["--endpoint", "http://0.0.0.0:1/v1", "-o", "out"], "generated phantom images stay here"),
        (["--endpoint", "127.0.0.1:1", "-o", "out"], "is no address of a server"),
        (["--endpoint", "http://127.0.0.1:1/v1", "-o", "out", "--label", "view"], "view is no label"),
        (["--endpoint", "http://127.0.0.1:1/v1", "-o", "out", "--text", "x"], "--text is for --by texts or direction"),
        (["--endpoint", "http://127.0.0.1:1/v1", "-o", "out", "--min-excess", "0.1"], "--min-excess is for"),
        (["--endpoint", "http://127.0.0.1:1/v1", "-o", "out", "-l", "3", "--top-latents", "2"], "both say which"),
        (["--endpoint", "http://127.0.0.1:1/v1", "-o", "out", "--show", "30"], "30 images cannot be chosen"),
    ],
)
def test_what_a_model_cannot_be_asked_is_refused_in_a_line(encoded, phantom_root, tmp_path, monkeypatch, more, said):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    done = name_command(encoded, phantom_root, *more)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_options_of_a_model_are_of_no_other_method(encoded):
    done = mammosae("name", encoded.folder, "--endpoint", "http://127.0.0.1:1/v1")
    assert done.returncode == 2 and "--endpoint is for --by model" in done.stderr
