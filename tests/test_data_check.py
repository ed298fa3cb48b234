"""`mammosae data check` and `presets`: what is counted, drawn, and told with exit code 2."""

import pandas as pd
import pytest
import yaml
from helpers_collections import IMAGE, write_cbis_ddsm, write_rsna, write_vindr
from helpers_datasets import SIZE, good_rows, write_dataset
from helpers_study import mammosae
from PIL import Image

from mammosae_plugin.config import load_data
from mammosae_plugin.datasets import load_images, open_dataset
from mammosae_plugin.datasets.mapping import preset_names
from mammosae_plugin.datasets.overview import various_images
from mammosae_plugin.measures.units import EvaluationUnit, count_units
from mammosae_plugin.study.data_check import check_data
from mammosae_plugin.visualization.contact_sheet import Mark, Tile, plot_contact_sheet


def rows_of(text: str) -> dict[str, list[str]]:
    """The lines of the printed tables by their first word."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def study(folder, data) -> str:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({"data": data}))
    return str(file)


def test_a_presets_files_are_counted_and_drawn(tmp_path):
    write_cbis_ddsm(tmp_path / "in")
    done = mammosae("data", "check", "--preset", "cbis-ddsm", "--root", tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 0
    assert "CBIS-DDSM: 4 images, 3 patients, 5 rows of annotations" in done.stdout
    rows = rows_of(done.stdout)
    assert rows["training"] == ["3", "2"] and rows["test"] == ["1", "1"]
    assert rows["Mass"] == ["binary", "absent:", "2,", "present:", "2", "0", "3", "yes", "0"]
    assert rows["density"][:9] == ["graded", "A:", "1,", "B:", "2,", "C:", "0,", "D:", "1"]
    assert rows["view"] == ["category", "MLO:", "3,", "CC:", "1", "0"]
    assert (tmp_path / "out" / "data_check.txt").read_text().strip() in done.stdout
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 1000


def test_the_data_of_a_study_are_checked_as_the_study_reads_them(tmp_path):
    """VinDr's own reader, its mended boxes; a preset with another image size; and what may be missing."""
    root = write_dataset(tmp_path / "vindr", good_rows())
    own = check_data(tmp_path / "out", config=study(tmp_path, {"root": "vindr", "image_size": list(SIZE)}))
    assert own.problems == () and own.found.counts == {"images": 4, "patients": 3, "rows of annotations": 6}
    assert own.found.concepts.set_index("concept").at["Mass", "boxes"] == 3
    next(root.rglob("b1.png")).unlink()
    section = {"root": "vindr", "image_size": list(SIZE), "max_bad_share": 0.3}
    some = check_data(tmp_path / "out", config=study(tmp_path, section))
    assert some.problems == () and some.found.counts["missing image files"] == 1
    done = mammosae("data", "check", "-c", study(tmp_path, section), "--set", "data.max_bad_share=0", "-o", tmp_path)
    assert done.returncode == 2 and "Mass" in done.stdout
    assert done.stderr.count("\n") == 1 and "1 image file of 4 is missing" in done.stderr and "b1.png" in done.stderr


def test_a_study_on_rsna_counts_breasts_too_and_has_no_boxes(tmp_path):
    truth = write_rsna(tmp_path / "in")
    section = {"kind": "images", "source": "rsna", "root": "in", "image_size": list(IMAGE), "unit": "breast"}
    settings = load_data(study(tmp_path, section))
    data = open_dataset(settings)
    assert settings.unit == "breast" and len(data) == len(truth)
    assert count_units(data.images, EvaluationUnit(settings.unit), "rsna") == 20
    found = check_data(tmp_path / "out", config=tmp_path / "study.yaml", n_images=3).found
    assert set(found.concepts["boxes"]) == {"-"}
    assert found.concepts.set_index("concept").at["density", "missing"] == 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "vindrr", "--root", "in"], "'vindrr' is no preset (nearest: vindr), file"),
        (["--preset", "vindr"], "give root"),
        (["--preset", "vindr", "--root", "nowhere"], "nowhere does not exist"),
        (["--preset", "vindr", "--mapping", "own.yaml"], "give one"),
        (["--mapping", "own.yaml", "--root", "in"], "patient (patient_id) (nearest: "),
        (["--mapping", "gone.yaml"], "'gone.yaml' is no preset"),
        (["--config", "gone.yaml"], "gone.yaml"),
        ([], "say what to check"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    write_vindr(tmp_path / "in")
    own = {"table": "finding_annotations.csv", "image": "images/{study_id}/{image_id}.dicom", "labels": ["a"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own | {"patient_id": "patient", "split": "split"}))
    done = mammosae("data", "check", *arguments)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (tmp_path / "data_check").exists()


def test_presets_are_listed_with_their_files_and_terms():
    listed = mammosae("data", "presets").stdout
    assert all(f"{name}: " in listed for name in preset_names())
    assert listed.count("\n  files: ") == listed.count("\n  terms: ") == len(preset_names()) == 8


def test_the_images_that_are_drawn_show_every_concept_first(tmp_path):
    data = load_images("cbis-ddsm", write_cbis_ddsm(tmp_path) and tmp_path, image_size=IMAGE)
    shown = data.images.iloc[various_images(data.images, data.findings, data.vocabulary, 2)]
    assert shown["Mass"].any() and shown["Calcification"].any()
    assert len(various_images(data.images, data.findings, data.vocabulary, 24)) == len(data)


def test_nothing_on_the_sheet_overlaps_or_is_cut():
    """Long captions and many boxes, at the edges too: texts lie on the sheet, under their own image."""
    names = [f"Finding_{letter * 9}" for letter in "ABCDEFG"]
    marks = tuple(
        Mark(", ".join(names[: number + 1]), (20 * number, 0, 20 * number + 15, 99)) for number in range(len(names))
    )
    caption = ("L MLO training", "pathology BENIGN_WITHOUT_CALLBACK, " * 3, f"not marked: {', '.join(names)}")
    tile = Tile(None, (100, 150), "Mass-Training_P_00001_LEFT_CC_of_a_long_name", caption, marks)
    figure = plot_contact_sheet([tile] * 8, "Eight images")
    figure.canvas.draw()
    boxes = []
    for axes in figure.axes:
        below = next(text for text in axes.texts if text.get_text().startswith("L MLO"))
        extent, frame = below.get_window_extent(), axes.get_window_extent()
        assert extent.x0 >= frame.x0 - 2 and extent.x1 < frame.x1 + 0.16 * figure.dpi
        assert extent.y1 <= frame.y0 and extent.y0 >= 0
        boxes += [extent, frame, axes._left_title.get_window_extent()]
    table = pd.DataFrame([(box.x0, box.y0, box.x1, box.y1) for box in boxes], columns=["x0", "y0", "x1", "y1"])
    for at, box in table.iterrows():
        others = table.drop(index=at)
        apart = (others["x1"] <= box["x0"] + 1) | (others["x0"] >= box["x1"] - 1)
        apart |= (others["y1"] <= box["y0"] + 1) | (others["y0"] >= box["y1"] - 1)
        assert apart.all()
