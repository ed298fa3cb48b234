"""What `explain`, `views` and `evidence` cannot answer: one line, exit code 2, and nothing is run for it."""

from pathlib import Path

import pytest
from helpers_study import mammosae

from mammosae_plugin.study import Study


@pytest.fixture
def folder(finished_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that are not what they say, in which the commands are run."""
    whole = finished_study.all_images.image_paths[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "list.yaml").write_text("- no\n- study\n")
    (tmp_path / "words.yaml").write_text("no study at all")
    (tmp_path / "picture.yaml").write_bytes(whole)
    study = (finished_study.output.parent / "study.yaml").read_text()
    (tmp_path / "study.yaml").write_text(study)
    (tmp_path / "not_run.yaml").write_text(study.replace(str(finished_study.output), str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


_EXPLAIN = "explain --study study.yaml --concept Mass -o out"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{_EXPLAIN} missing.png", "missing.png is no file, and no image of the study"),
        (f"{_EXPLAIN} no_such_id", "no_such_id is no file, and no image of the study"),
        (f"{_EXPLAIN} empty", "empty is no file, and no image of the study"),
        (f"{_EXPLAIN} cut.png", "cut.png: cannot be read (image file is truncated); give a PNG or DICOM file"),
        (f"{_EXPLAIN} text.png", "text.png: cannot be read (its content is of no known format)"),
        (f"{_EXPLAIN} empty.png", "empty.png: the file is empty"),
        (f"{_EXPLAIN} cut.png --top -1", "invalid value for '--top'"),
        (f"{_EXPLAIN} cut.png -n -1", "invalid value for '-n'"),
        (f"{_EXPLAIN} cut.png --class -1", "invalid value for '--class'"),
        ("explain cut.png", "name the study"),
        ("explain cut.png --study missing.yaml", "cannot read the configuration missing.yaml"),
        ("explain cut.png --study list.yaml", "list.yaml must hold settings of the form"),
        ("explain cut.png --study words.yaml", "words.yaml must hold settings of the form"),
        ("explain cut.png --study picture.yaml", "picture.yaml is no text file"),
        ("explain cut.png --study empty", "empty is a folder; name the study's YAML file"),
        ("explain cut.png --study not_run.yaml --concept Mass", "holds no finished study"),
        ("views missing", "missing does not exist; name a latents table"),
        ("views empty", "empty is not a complete latents table"),
        ("views text.png", "text.png is a file; name a latents table"),
        ("views TABLE --top -1", "invalid value for '--top'"),
        ("views TABLE --split x", "x"),
        ("views TABLE --views CC CC", "give the two views that are held together"),
        ("views TABLE --views A B", "it has the views CC, MLO and the sides L, R"),
        ("views OUT", "holds 2 latents tables; name one"),
        ("evidence not_run.yaml --sort relianse", "no column 'relianse' to sort by (nearest: reliance"),
        ("evidence study.yaml --sort cpm_low", "no column 'cpm_low' to sort by"),
        ("evidence study.yaml --top -1", "invalid value for '--top'"),
        ("evidence missing.yaml", "cannot read the configuration missing.yaml"),
        ("evidence list.yaml", "list.yaml must hold settings of the form"),
        ("evidence empty", "empty is a folder; name the study's YAML file"),
    ],
)
def test_it_is_refused_in_one_line(finished_study: Study, folder: Path, command: str, message: str) -> None:
    places = {"OUT": finished_study.output, "TABLE": finished_study.primary.tables[finished_study.pairs[0]].folder}
    done = mammosae(*[places.get(word, word) for word in command.split()])
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not done.stdout and not (folder / "out").exists() and not (folder / "nowhere").exists()
