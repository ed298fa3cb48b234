"""Pictures of single images in findings and their Space: drawn only where they may be, and as their rows say."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers_hub import LoopbackHub, run_on_hub
from helpers_space import read_data, running_browser
from helpers_study import mammosae
from PIL import Image

from mammosae_plugin.datasets import open_dataset
from mammosae_plugin.datasets.about import VINDR_MAMMO
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.findings.tables import tellable
from mammosae_plugin.hub.findings import Findings, load_findings, stage_findings
from mammosae_plugin.hub.guard import PrivacyError, check_staged
from mammosae_plugin.hub.pictures import pictures_of
from mammosae_plugin.hub.space import build_space, read_for_pages
from mammosae_plugin.privacy import guard
from mammosae_plugin.privacy.context import PrivacyContext
from mammosae_plugin.privacy.pictures import flaw_of_picture
from mammosae_plugin.schema.findings import SCHEMAS, parquet_path
from mammosae_plugin.visualization import latent_pictures
from mammosae_plugin.visualization.latent_pictures import draw_pictures

MOST = 3
SETTINGS = {"licence": "cc-by-4.0", "min_group": 2, "repo_id": "someone/findings"}


@pytest.fixture(scope="module")
def staged(finished_study, tmp_path_factory):
    """Findings with pictures of few latents."""
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_pictures, "MOST_LATENTS", MOST)
        return stage_findings(
            finished_study.output, folder / "findings", **SETTINGS,
            examples=True, images=finished_study.all_images, key_file=folder / "key",
        )  # fmt: skip


@pytest.fixture(scope="module")
def context(finished_study):
    return replace(PrivacyContext.of_study(finished_study.output, min_group=2), pictures=True)


@pytest.fixture(scope="module")
def space(staged, tmp_path_factory):
    return build_space(Findings.load(staged), tmp_path_factory.mktemp("space") / "one", examples=True)


def restricted(monkeypatch):
    """The study's images become VinDr's."""
    of_study = PrivacyContext.of_study
    monkeypatch.setattr(
        PrivacyContext, "of_study", lambda *args, **kw: replace(of_study(*args, **kw), datasets=("vindr",))
    )


# What is drawn


def test_pictures_are_of_the_latents_that_are_named_or_best_and_their_rows_are_the_tables(staged, finished_study):
    findings = Findings.load(staged)
    told = findings.study["data"]["pictures"]
    drawn = findings.pictures.groupby(["layer", "encoder", "latent"])
    files = list((staged / "pictures").glob("*.webp"))
    assert told["shown"] and told["most"] == MOST == told["n_latents"] == drawn.ngroups
    assert told["n_pictures"] == len(findings.pictures)
    assert told["bytes"] == sum(file.stat().st_size for file in files)
    assert set(findings.pictures["kind"]) <= {"strongest", "range", "healthy"}
    study, hidden = StudyFolder(finished_study.output), tellable(StudyFolder(finished_study.output).layers, 2)
    for (layer, encoder, latent), rows in drawn:
        table = study.layer(layer).encoders[encoder].table
        test = (table.images["split"] == "test").to_numpy()
        strongest = rows.query("kind == 'strongest'").sort_values("rank")["activation"].to_numpy()
        assert strongest[0] == pytest.approx(table.max_latents[test][:, [latent]].max())
        assert (np.diff(strongest) <= 0).all() and not hidden[layer, encoder].activity[latent]


def test_a_picture_is_called_by_its_bytes_holds_only_pixels_and_nothing_says_whose_it_is(staged, finished_study):
    rows = Findings.load(staged).pictures
    files = {file.relative_to(staged).as_posix(): file for file in (staged / "pictures").glob("*.webp")}
    assert set(files) == {*rows["whole"], *rows["crop"].dropna()}
    for name, file in files.items():
        data = file.read_bytes()
        assert name == f"pictures/{hashlib.sha256(data).hexdigest()[:32]}.webp" and flaw_of_picture(data) is None
        with Image.open(file) as image:
            assert image.format == "WEBP" and not image.getexif() and max(image.size) <= 640
    images = finished_study.all_images.images
    text = rows.to_json()
    assert not any(str(one) in text for one in {*images["image_id"], *images["patient_id"]})


def test_datasets_reads_the_rows_beside_the_files(staged, tmp_path):
    loaded = datasets.load_dataset(str(staged), "pictures", split="train", cache_dir=str(tmp_path))
    assert loaded.column_names == SCHEMAS["pictures"].names
    assert list(loaded["whole"]) == Findings.load(staged).pictures["whole"].tolist()


def test_two_stagings_draw_the_same_bytes(staged, finished_study, tmp_path):
    study = StudyFolder(finished_study.output)
    table, told = draw_pictures(study, finished_study.all_images, tmp_path, min_group=2, most=MOST)
    assert table.equals(pq.read_table(staged / parquet_path("pictures"), schema=table.schema))
    assert told == Findings.load(staged).study["data"]["pictures"]


def test_images_of_another_size_are_no_images_of_the_study(finished_study, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_pictures.Pictures, "gray", lambda *_: np.zeros((8, 8), dtype=np.uint8))
    study = StudyFolder(finished_study.output)
    with pytest.raises(InputError, match="name the YAML file that the study was run with"):
        draw_pictures(study, finished_study.all_images, tmp_path, min_group=2, most=1)


def test_other_images_under_the_same_names_are_refused(finished_study, context, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_pictures, "MOST_LATENTS", 1)
    shutil.copytree(finished_study.config.data.root, tmp_path / "moved")
    study = StudyFolder(shutil.copytree(finished_study.output, tmp_path / "study"))
    data = finished_study.config.data.model_copy(update={"root": tmp_path / "moved"})
    folder = tmp_path / "pictures"
    table, _ = pictures_of(study, context, open_dataset(data), folder)  # the same, elsewhere
    assert table is not None
    file = open_dataset(data).image_paths[0]
    changed = Image.open(file).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    changed.save(file)
    with pytest.raises(InputError, match="are not those that study was run with"):
        pictures_of(study, context, open_dataset(data), folder)


# Who decides


def test_restricted_images_are_not_drawn_by_any_licence_and_the_findings_say_why(finished_study, context, tmp_path):
    study = StudyFolder(finished_study.output)
    of_vindr = replace(context, datasets=("vindr",), licence=VINDR_MAMMO.licence)
    with pytest.raises(PrivacyError, match="images of VinDr-Mammo may not be passed on") as error:
        pictures_of(study, of_vindr, finished_study.all_images, tmp_path)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
    assert pictures_of(study, of_vindr, None, tmp_path) == (None, {"shown": False, "reason": of_vindr.why_no_pictures})
    for asked, unknown in ((replace(context, pictures=False), "not asked"), (replace(context, datasets=()), "whose")):
        table, told = pictures_of(study, asked, None, tmp_path)
        assert table is None and unknown in told["reason"]


def test_the_command_refuses_pictures_of_restricted_images_in_one_line(finished_study, tmp_path, monkeypatch):
    restricted(monkeypatch)
    yaml = finished_study.output.parent / "study.yaml"
    done = mammosae(
        *("publish", "space", finished_study.output, "--folder", tmp_path / "look"),
        *("--min-group", "2", "--examples", "--data", yaml),
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "VinDr-Mammo may not be passed on" in done.stderr
    assert list(tmp_path.iterdir()) == []
    plain = mammosae("publish", "space", finished_study.output, "--folder", tmp_path / "look", "--min-group", "2")
    assert plain.returncode == 0, plain.stderr
    (study,) = read_data(tmp_path / "look", "index")["studies"]
    assert "VinDr-Mammo" in study["data"]["pictures"]["reason"] and not (tmp_path / "look" / "pictures").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--examples"], "holds no pictures"), (["--data", "study.yaml"], "only with --examples")],
)
def test_pictures_that_nobody_has_or_asked_for_are_told_in_one_line(staged, tmp_path, options, message):
    bare = tmp_path / "bare"
    shutil.copytree(staged, bare, ignore=shutil.ignore_patterns("pictures"))
    done = mammosae("publish", "space", bare, "--folder", tmp_path / "look", *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "look").exists()


# The guard


def _unlisted(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "gray").save(buffer, "WEBP")
    (folder / "pictures" / f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:32]}.webp").write_bytes(buffer.getvalue())


def _first(folder: Path) -> Path:
    return min((folder / "pictures").glob("*.webp"))


def _with_metadata(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "of a patient"
    with Image.open(_first(folder)) as image:
        image.load()
        image.save(_first(folder), "WEBP", exif=exif)


def _another(folder: Path) -> None:
    Image.new("RGB", (8, 8), "gray").save(_first(folder), "WEBP")


def _not_permitted(folder: Path) -> None:
    if (folder / "data").is_dir():
        file = folder / "data" / "index.js"
        file.write_text(file.read_text().replace('"shown":true', '"shown":false'))
        return
    file = folder / parquet_path("study")
    table = pq.read_table(file)
    row = table.to_pylist()[0]
    row["data"] = json.dumps({**json.loads(row["data"]), "pictures": {"shown": False}})
    pq.write_table(type(table).from_pylist([row], schema=table.schema), file, store_schema=False)


def _behind_pixels(folder: Path) -> None:
    _first(folder).write_bytes(_first(folder).read_bytes() + b"of a patient")


PLANTED = {
    "no row lists this picture": _unlisted,
    "has metadata or other parts": _with_metadata,
    "has bytes behind its pixels": _behind_pixels,
    "was not drawn by this package": _another,
    "lists a picture that is not there": lambda folder: _first(folder).unlink(),
    "does not say that this is permitted": _not_permitted,
}


@pytest.mark.parametrize("kind", ["findings", "space"])
def test_the_guard_lets_no_other_picture_out(kind, staged, space, context, tmp_path, monkeypatch):
    whole = {"findings": staged, "space": space}[kind]
    assert check_staged(whole, kind, context, repo_id="someone/it")
    monkeypatch.setattr(guard, "RULES", [rule for rule in guard.RULES if rule.name == "pictures"])
    for message, plant in PLANTED.items():
        folder = shutil.copytree(whole, tmp_path / message)
        plant(folder)
        with pytest.raises(PrivacyError, match=message) as error:
            check_staged(folder, kind, context, repo_id="someone/it")
        assert "privacy rule 'pictures'" in str(error.value)
    refused = {"not asked for": {"pictures": False}, "VinDr-Mammo": {"datasets": ("vindr",)}, "whose": {"datasets": ()}}
    for message, other in refused.items():
        with pytest.raises(PrivacyError, match=f"pictures/[0-9a-f]{{32}}.webp.*'pictures'.*{message}"):
            check_staged(whole, kind, replace(context, **other), repo_id="someone/it")


# The Space


def test_a_space_holds_the_pictures_of_the_findings_or_says_why_not(staged, space, tmp_path):
    findings = Findings.load(staged)
    (study,) = read_data(space, "index")["studies"]
    seen = {}
    for table in study["tables"]:
        for chunk in table["pictures"]:
            for one in read_data(space, f"p{table['file']}-{chunk}")["latents"]:
                seen[table["layer"], table["encoder"], one["latent"]] = one["pictures"]
    assert sum(map(len, seen.values())) == len(findings.pictures)
    for key, rows in findings.pictures.groupby(["layer", "encoder", "latent"]):
        for name in ("kind", "rank", "activation", "quantile", "whole"):
            assert [row[name] for row in seen[key]] == rows[name].tolist()
    digests = [{file.name: file.read_bytes() for file in (one / "pictures").glob("*.webp")} for one in (staged, space)]
    assert digests[0] == digests[1]
    without = build_space(findings, tmp_path / "without")
    told = read_data(without, "index")["studies"][0]["data"]["pictures"]
    assert not told["shown"] and "--examples" in told["reason"] and not (without / "pictures").exists()
    assert "no image" in (without / "README.md").read_text() and "no image" not in (space / "README.md").read_text()


def test_damaged_pictures_are_refused_and_older_findings_have_none(staged, tmp_path):
    folder = shutil.copytree(staged, tmp_path / "findings")
    _another(folder)
    with pytest.raises(InputError, match="lists a picture that is missing or damaged"):
        build_space(Findings.load(folder), tmp_path / "space", examples=True)
    assert not (tmp_path / "space").exists()
    shutil.rmtree(folder / "pictures")
    older = load_findings(folder)
    assert older.pictures is None and older.pictures_folder is None
    assert (build_space(older, tmp_path / "space") / "index.html").exists()


def test_a_space_of_a_studys_folder_draws_its_pictures_itself(finished_study, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_pictures, "MOST_LATENTS", 1)
        settings = {"min_group": 2, "examples": True, "images": finished_study.output.parent / "study.yaml"}
        with read_for_pages(finished_study.output, **settings) as (findings, context):
            space = build_space(findings, tmp_path / "space", examples=True)
    assert not findings.pictures_folder.exists() and list((space / "pictures").iterdir())
    assert check_staged(space, "space", context, repo_id="someone/it")


# In a browser


@pytest.fixture(scope="module")
def browser():
    yield from running_browser()


def _address(space, *, pictured=True):
    (study,) = read_data(space, "index")["studies"]
    table = next(one for one in study["tables"] if one["pictures"])
    known = [one["latent"] for one in read_data(space, f"p{table['file']}-0")["latents"]]
    own = read_data(space, table["file"])
    fire = [one for one, rate in zip(own["latent"], own["firing_rate"], strict=True) if rate]
    latent = known[0] if pictured else next(one for one in fire if one not in known)
    return f"#/latent/{table['layer']}/{table['encoder'].replace('/', '%2F')}/{latent}"


def test_pictures_are_enlarged_and_turned_by_keys_and_the_focus_returns(browser, space):
    with browser.new_context(viewport={"width": 1280, "height": 900}) as opened:
        page = opened.new_page()
        problems = []
        page.on("console", lambda message: problems.append(message.text))
        page.goto(f"{(space / 'index.html').as_uri()}{_address(space)}")
        page.wait_for_selector("body[data-ready]")
        buttons = page.locator("#pictures .thumbnail button")
        n = buttons.count()
        assert n > 2
        buttons.nth(1).focus()
        page.keyboard.press("Enter")
        assert f"Strongest 2 (2 of {n}): activation" in page.inner_text("#picture-caption")
        picture = page.locator("dialog.picture img")
        assert picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
        whole = picture.get_attribute("src")
        page.click("#picture-part")
        assert picture.get_attribute("src") != whole and "peak" in picture.get_attribute("alt")
        page.keyboard.press("ArrowLeft")
        assert f"(1 of {n})" in page.inner_text("#picture-caption")
        page.keyboard.press("ArrowLeft")
        assert f"({n} of {n})" in page.inner_text("#picture-caption")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog.picture", state="detached")
        assert buttons.nth(1).evaluate("(button) => button === document.activeElement")
        assert problems == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_axe_finds_nothing_with_pictures_and_without(browser, space, width, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe looks at the pages ('.[dev]')").Axe()
    size = {"width": width, "height": 900}
    with browser.new_context(viewport=size, color_scheme="dark" if dark else "light", bypass_csp=True) as opened:
        page = opened.new_page()
        page.goto(f"{(space / 'index.html').as_uri()}{_address(space)}")
        page.wait_for_selector("body[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe.run(page).response["violations"] == []
        page.locator("#pictures .thumbnail button").first.click()
        assert axe.run(page).response["violations"] == []
        page.click("#picture-close")
        page.evaluate("address => { location.hash = address; }", _address(space, pictured=False))
        page.wait_for_selector("body[data-ready='2']")
        told = page.inner_text("#pictures")
        assert "No picture of this latent" in told and f"{MOST} at most" in told and "mammosae view STUDY" in told
        assert axe.run(page).response["violations"] == []


# On the Hub

PUBLISHER = """
import sys
from mammosae_plugin.hub import load_findings, publish_findings, publish_space
from mammosae_plugin.visualization import latent_pictures

study, yaml, folder = sys.argv[1:]
latent_pictures.MOST_LATENTS = 1
settings = {"licence": "mit", "folder": folder + "/findings", "key_file": folder + "/key", "min_group": 2}
publish_findings(study, "someone/findings", **settings, examples=True, images=yaml)
loaded = load_findings("someone/findings")
publish_space("someone/findings", "someone/space", min_group=2, examples=True, folder=folder + "/space")
plain = attempt(lambda: publish_space("someone/findings", "someone/plain", min_group=2) and None)
publish_findings(study, "someone/findings", **settings, replace=True)
seen = {"rows": len(loaded.pictures), "plain": plain, "left": load_findings("someone/findings").pictures is None}
"""


def test_pictures_go_to_the_hub_and_come_back_and_go_when_they_are_no_longer_wanted(finished_study, tmp_path):
    study = shutil.copytree(finished_study.output, tmp_path / "study")
    with LoopbackHub() as hub:
        given = (study, finished_study.output.parent / "study.yaml", tmp_path)
        seen = run_on_hub(hub, tmp_path / "home", PUBLISHER, *given)
        states = {name: hub.repos[name, f"someone/{repo}"].state()["files"] for name, repo in
                  (("dataset", "findings"), ("space", "space"))}  # fmt: skip
        plain = hub.repos["space", "someone/plain"].state()["files"]
    assert seen["rows"] > 0 and seen["plain"] is None and seen["left"]
    own = {f"pictures/{file.name}" for file in (tmp_path / "space" / "pictures").iterdir()}
    assert own and own <= set(states["space"])
    assert not any(name.startswith("pictures/") for files in (plain, states["dataset"]) for name in files)
