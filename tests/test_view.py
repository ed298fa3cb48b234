"""The viewer's server: exact sums, the network without latents, notes; and who gets nothing from it."""

import io
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from helpers_dicom import breast, dicom_file
from helpers_study import mammosae
from helpers_view import ask, copied_study, running, value
from PIL import Image

from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.notes import add_note, read_notes
from mammosae_plugin.study import Study, serving
from mammosae_plugin.study.serving import NotThere
from mammosae_plugin.study.viewing import Viewer, open_viewer

PLACE = {"layer": "bn2", "encoder": "pretrained", "concept": "Mass"}


@pytest.fixture(scope="module")
def file(finished_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_study(finished_study, tmp_path_factory.mktemp("view"))


@pytest.fixture(scope="module")
def server(file):
    with running(file) as server:
        yield server


@pytest.fixture(scope="module")
def final(server):
    """The final map's first classifier, and the row of its first test image."""
    one = next(one for one in value(server, "about")["classifiers"] if one["linear"])
    place = {"layer": one["layer"], "encoder": one["encoder"], "concept": one["concepts"][0]["concept"]}
    return place, value(server, "images", **place, split="test")["rows"][0]


def logit_without(image, off):
    """The closed form, as the page has it."""
    kept = [i for i, latent in enumerate(image["latents"]) if latent not in off]
    return image["bias"][0] + image["error"][0] + sum(image["mean"][i] * image["weight"][i][0] for i in kept)


# -- what it says ------------------------------------------------------------------------------------------------------


def test_the_logit_without_latents_is_the_networks_with_them_spliced_out(server, final, finished_study):
    place, row = final
    image = value(server, "image", key=row, **place)
    assert logit_without(image, ()) == pytest.approx(image["logits"][0], abs=1e-4)
    strongest = [image["latents"][i] for i in np.argsort(-np.abs(image["maximum"]))[:3]]
    pair = next(pair for pair in finished_study.pairs if pair.concept == place["concept"])
    layer, facts = finished_study.primary, finished_study.facts(pair)
    shown = finished_study.all_images
    pixels = shown.pixels(shown.images["image_id"].tolist().index(image["name"]))
    hooked = finished_study.hooked(pair)
    for off in ([], strongest, image["latents"]):

        def zero(acts, hook, off=off):
            acts[..., off] = 0
            return acts

        spliced = hooked.run_with_hooks_with_saes(
            facts.preprocessing(pixels, "one")[None],
            saes=[layer.sae],
            use_error_term=True,
            fwd_hooks=[(f"{layer.hook_name}.hook_sae_acts_post", zero)],
        )
        found = value(server, "network", key=row, **place, off=",".join(map(str, off)))["logits"]
        assert found == pytest.approx(spliced[0].tolist(), abs=1e-4)
        assert logit_without(image, set(off)) == pytest.approx(found[0], abs=1e-4)
    assert abs(logit_without(image, set(strongest)) - image["logits"][0]) > 1e-3  # so that the test can fail


def test_what_latents_add_at_all_places_is_what_they_add_to_the_logit(server, final):
    place, row = final
    image = value(server, "image", key=row, **place, encode=1)
    h, w = image["grid"]
    added = dict.fromkeys(image["latents"], 0.0)
    weight = {latent: image["weight"][i][0] for i, latent in enumerate(image["latents"])}
    for cell in range(h * w):
        here = value(server, "place", key=row, **place, cell=cell)
        assert here["complete"]
        for latent, activation in zip(here["latents"], here["activations"], strict=True):
            added[latent] += activation * weight[latent] / (h * w)
    expected = [mean * weight[latent] for latent, mean in zip(image["latents"], image["mean"], strict=True)]
    assert list(added.values()) == pytest.approx(expected, abs=1e-6)
    latent = image["latents"][int(np.argmax(image["maximum"]))]
    found = value(server, "map", key=row, **place, latent=latent)
    assert found["whole"] and np.max(found["map"]) == pytest.approx(max(image["maximum"]), rel=1e-5)


def test_without_the_network_the_maps_that_the_table_kept_are_shown_and_no_others(file, final):
    place, row = final
    with running(file) as server:
        image = value(server, "image", key=row, **place)
        assert not image["whole"] and image["mapped"]
        cells = range(int(np.prod(image["grid"])))
        here = [value(server, "place", key=row, **place, cell=cell) for cell in cells]
        assert not any(one["complete"] for one in here)
        assert {latent for one in here for latent in one["latents"]} <= set(image["mapped"])
        whole = value(server, "image", key=row, **place, encode=1)
        assert whole["logits"] == pytest.approx(image["logits"], abs=1e-4)
        after = value(server, "place", key=row, **place, cell=cells[len(cells) // 2])
        before = here[len(cells) // 2]
        known = dict(zip(after["latents"], after["activations"], strict=True))
        assert [known[one] for one in before["latents"]] == pytest.approx(before["activations"], abs=1e-5)


def test_images_are_found_by_split_label_id_and_logit(server, final):
    place, row = final
    test = value(server, "images", **place, split="test")
    assert len(test["rows"]) < test["total"] == value(server, "images", **place)["total"]
    with_it = value(server, "images", **place, split="test", label=1)["rows"]
    without = value(server, "images", **place, split="test", label=0)["rows"]
    assert sorted(with_it + without) == test["rows"] and with_it
    highest = value(server, "images", **place, split="test", order="highest")["rows"]
    logits = [value(server, "image", key=one, **place)["logits"][0] for one in highest[:4]]
    assert logits == sorted(logits, reverse=True)
    named = test["ids"][0]
    assert value(server, "images", **place, text=named.upper())["ids"] == [named]


def test_a_dicom_file_is_taken_apart_and_leaves_nothing_behind(server, final, file, tmp_path):
    place, _ = final
    data = dicom_file(tmp_path / "exam.dcm", breast(300, 200)).read_bytes()
    before = sorted(file.parent.rglob("*"))
    status, _, body = ask(server, "api/open", {"name": "../exam.dcm"}, method="POST", body=data)
    assert status == 200
    key = json.loads(body)["key"]
    image = value(server, "image", key=key, **place)
    assert image["whole"] and image["name"] == "exam.dcm" and "300 x 200" in image["prepared"]
    assert logit_without(image, ()) == pytest.approx(image["logits"][0], abs=1e-4)
    network = value(server, "network", key=key, **place, off=image["latents"][0])["logits"][0]
    assert logit_without(image, {image["latents"][0]}) == pytest.approx(network, abs=1e-4)
    picture = Image.open(io.BytesIO(ask(server, "api/picture", {"key": key, **place})[2]))
    assert list(picture.size[::-1]) == image["size"]
    assert sorted(file.parent.rglob("*")) == before
    for wrong in (b"", b"hello", data[:2000]):
        status, _, body = ask(server, "api/open", {"name": "a.dcm"}, method="POST", body=wrong)
        assert status == 400 and json.loads(body)["error"].startswith("a.dcm: "), body
        assert "\n" not in json.loads(body)["error"]


def test_examples_are_drawn_from_the_studys_own_images(server, final):
    place, row = final
    image = value(server, "image", key=row, **place)
    latent = image["latents"][int(np.argmax(image["maximum"]))]
    rows = value(server, "examples", layer=place["layer"], encoder=place["encoder"], latent=latent)
    assert rows and {"strongest"} <= {one["kind"] for one in rows}
    for part in ("whole", "crop"):
        status, headers, body = ask(server, rows[0][part])
        assert (status, headers["Content-Type"]) == (200, "image/webp")
        assert Image.open(io.BytesIO(body)).size[0] > 0


def test_notes_are_kept_in_the_study_and_shown_at_once(server, file, final):
    place, _ = final
    folder = file.parent / "study"
    said = {"latent": 5, "text": "a round rim", "author": "AB", "label": "mass", "confidence": 4, **place}
    status, _, body = ask(server, "api/note", method="POST", body=json.dumps(said).encode())
    assert status == 200, body
    (note,) = read_notes(folder)
    assert (note.latent, note.text, note.author, note.confidence) == (5, "a round rim", "AB", 4)
    (listed,) = json.loads(body)["notes"]
    index = ask(server, "data/index.js")[2].decode()
    assert listed["text"] == "a round rim" and '"text":"a round rim"' in index
    for wrong, why in (
        ({**said, "author": ""}, "author"),
        ({**said, "latent": "5"}, "latent"),
        ({**said, "latent": 10**6}, "latents 0 to"),
        ({**said, "path": "/etc"}, "JSON object with"),
        ([said], "JSON object"),
    ):
        status, _, body = ask(server, "api/note", method="POST", body=json.dumps(wrong).encode())
        assert status == 400 and why in json.loads(body)["error"], body
    assert len(read_notes(folder)) == 1


def test_roles_that_are_read_anew_are_those_that_were_written(file):
    viewer = Viewer(file.parent / "study", None, "study")
    written = viewer.prepare(lambda _: None)
    index = json.loads((written / "data" / "index.js").read_text().partition(" = ")[2].rstrip(";\n"))
    assert viewer._roles() == index["studies"][0]["roles"] != []


def test_numbers_are_written_once_for_the_same_findings(finished_study, tmp_path):
    study = copied_study(finished_study, tmp_path).parent / "study"
    told: list[str] = []
    viewer = Viewer(study, None, "study")
    folder = viewer.prepare(told.append)
    assert Viewer(study, None, "study").prepare(told.append) == folder
    assert len(told) == 1
    findings = next((study / "results" / "findings").glob("*.parquet"))
    findings.write_bytes(findings.read_bytes())
    assert Viewer(study, None, "study").prepare(told.append) != folder
    assert len(told) == 2 and not folder.exists()
    with pytest.raises(NotThere, match="was run again since this viewer began"):
        viewer.get("data/index.js", {})


# -- who gets nothing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "x" * 32, "index.html", "api"])
def test_nothing_is_answered_without_the_token(server, token):
    for path in ("", "data/index.js", "api/about", "viewer.js"):
        status, _, body = ask(server, path, token=token)
        assert status == 403 and "token" in json.loads(body)["error"]
    status, _, _ = ask(server, "api/note", method="POST", body=b"{}", token=token)
    assert status == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", "127.0.0.1.evil.example:80"])
def test_another_name_for_this_machine_is_refused(server, host):
    assert ask(server, "", headers={"Host": host})[0] == 403


def test_pages_of_others_may_not_write(server, file):
    said = json.dumps({"latent": 5, "text": "planted", "author": "AB"}).encode()
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert ask(server, "api/note", method="POST", body=said, headers={"Origin": origin})[0] == 403
    assert "planted" not in [note.text for note in read_notes(file.parent / "study")]


@pytest.mark.parametrize(
    "path",
    ["../study.yaml", "..%2f..%2fstudy.yaml", "data/../../../study.yaml", "data/..%2fviewer.json", "data//etc/passwd"]
    + ["/etc/passwd", "data/%00", "pictures/../data/index.js", "README.md", "viewer.json", "api/../index.html"],
)
def test_no_address_leads_out_of_what_is_served(server, path):
    status, _, body = ask(server, path)
    assert status in (400, 404) and set(json.loads(body)) == {"error"}


def test_what_is_too_long_or_of_no_length_is_refused(server, monkeypatch):
    monkeypatch.setattr(serving, "LARGEST", 1000)
    assert ask(server, "api/open", method="POST", body=b"x" * 1001)[0] == 413
    assert ask(server, "api/open", method="POST", headers={"Transfer-Encoding": "chunked"}, body=b"0\r\n\r\n")[0] == 411
    status, _, body = ask(server, "api/note", method="PUT", body=b"{}")
    assert status == 501 and "error" in json.loads(body)


def test_every_answer_says_what_a_page_may_load(server):
    for path in ("", "viewer.js", "data/index.js", "api/about", "nowhere"):
        headers = ask(server, path)[1]
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in headers["Content-Security-Policy"] and "http:" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    page = ask(server, "")[2].decode()
    assert "http-equiv" not in page and page.index("viewer.js") < page.index("app.js")


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_wrong_questions_get_one_line(server, final):
    place, row = final
    for name, query in (
        ("image", {"key": "-1", **place}),
        ("image", {"key": 10**6, **place}),
        ("image", {"key": "file-x", **place}),
        ("image", {"key": row, **place, "layer": "nowhere"}),
        ("image", {"key": row, **place, "encoder": "nobody"}),
        ("image", {"key": row, **place, "concept": "density"}),
        ("place", {"key": row, **place, "cell": 10**6}),
        ("map", {"key": row, **place, "latent": 10**6}),
        ("network", {"key": row, **place, "off": "1,x"}),
        ("network", {"key": row, **place, "off": 10**6}),
        ("images", {**place, "order": "random"}),
        ("examples", {**place, "latent": 10**6}),
        ("drawn", {**place, "latent": 1, "row": row, "part": "all"}),
        ("nothing", {}),
    ):
        status, _, body = ask(server, f"api/{name}", query)
        said = json.loads(body)["error"]
        assert status in (400, 404) and said and "\n" not in said, (name, query, status, said)


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_folder_alone_shows_numbers_and_says_why_no_images(file, final):
    place, row = final
    with running(file.parent / "study") as server:
        about = value(server, "about")
        assert "name" not in about and "open its YAML file" in about["no_pictures"] and not about["can_open"]
        image = value(server, "image", key=row, **place)
        assert logit_without(image, ()) == pytest.approx(image["logits"][0], abs=1e-4)
        for name, query in (("picture", {}), ("image", {"encode": 1})):
            status, _, body = ask(server, f"api/{name}", {"key": row, **place, **query})
            assert status == 400 and "open its YAML file" in json.loads(body)["error"]


def test_images_that_are_gone_are_told(file, final, finished_study, tmp_path):
    place, row = final
    with running(file, settings=[f"data.root={tmp_path}"]) as server:
        missing = value(server, "about")["no_pictures"]
        assert missing and str(tmp_path) in missing
        assert value(server, "image", key=row, **place)["logits"]


def test_a_port_in_use_and_no_study_are_one_line(file, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = mammosae("view", file, "--no-browser", "--port", str(port))
        assert done.returncode == 2 and f"port {port} is in use" in done.stderr and done.stderr.count("\n") == 1
    for arguments, why in (
        ([tmp_path], "holds no finished study"),
        ([tmp_path / "no.yaml"], "does not exist"),
        ([], "name the study"),
        ([file, "--layer", "nowhere"], "has no layer 'nowhere'"),
        ([file, "--study", file], "named twice"),
    ):
        done = mammosae("view", "--no-browser", *arguments)
        assert done.returncode == 2 and why in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_study_of_embeddings_is_refused_in_one_line(tmp_path):
    (tmp_path / "results" / "findings").mkdir(parents=True)
    (tmp_path / "results" / "findings" / "quality.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="is a study of embeddings, whose rows have no places"):
        open_viewer(tmp_path)


def test_a_note_of_the_command_line_is_shown_without_a_new_start(server, file):
    add_note(file.parent / "study", 7, "seen from the terminal", author="CD")
    assert "seen from the terminal" in ask(server, "data/index.js")[2].decode()
