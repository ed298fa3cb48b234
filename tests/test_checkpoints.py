"""Foreign checkpoints are read without being run, and refused in one line that says why."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import random
import re
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_adapters import fixture_checkpoint
from safetensors.torch import save_file

from mammosae_plugin.adapters import CheckpointFormatError, UnsafeCheckpointError, load_mammo_clip, load_vision_sae
from mammosae_plugin.adapters.checkpoints import check_keys, read_torch_checkpoint, unwrapped, unwrapped_key
from mammosae_plugin.adapters.inspection import inspect_checkpoint
from mammosae_plugin.errors import InputError

DATA = Path(__file__).parent / "data"


class Touch:
    """A pickle of this creates the file when it is run."""

    def __init__(self, marker: Path, function: Any = os.system) -> None:
        self.marker, self.function = marker, function

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        if self.function is os.system:
            return os.system, (f"touch {self.marker}",)
        return self.function, (f"open({str(self.marker)!r}, 'w').close()",)


def message_of(path: Path, error_type: type[Exception]) -> str:
    with pytest.raises(error_type) as caught, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        read_torch_checkpoint(path)
    assert [str(warning.message) for warning in warned] == []  # a command would print them before the message
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_tensors_containers_and_numeric_numpy_values_are_read(tmp_path: Path) -> None:
    saved: dict[str, Any] = {
        "model": {"weight": torch.arange(6.0).reshape(2, 3)},
        "predictions": np.arange(4, dtype=np.float32),
        "labels": np.array([True, False]),
        "counts": np.arange(3),
        "auroc": np.float64(0.979),
        "accuracy": np.float32(0.5),
        "epoch": 7,
        "config": {"model": {"name": "clip", "layers": [1, (2, None)]}},
    }
    torch.save(saved, tmp_path / "good.pt")
    found = read_torch_checkpoint(tmp_path / "good.pt")
    assert torch.equal(found["model"]["weight"], saved["model"]["weight"])
    for key in ("predictions", "labels", "counts"):
        np.testing.assert_array_equal(found[key], saved[key])
    assert {key: found[key] for key in ("auroc", "accuracy", "epoch", "config")} == {
        key: saved[key] for key in ("auroc", "accuracy", "epoch", "config")
    }


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_values_are_read_under_the_module_names_of_numpy_1_and_2(tmp_path: Path, module: str) -> None:
    path = tmp_path / "good.pt"
    torch.save({"auroc": np.float64(0.75), "array": np.ones(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for name in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        content = content.replace(b"c" + name + b"\n", b"c" + module.encode() + b"\n")
    path.write_bytes(content)
    found = read_torch_checkpoint(path)
    assert found["auroc"] == 0.75
    np.testing.assert_array_equal(found["array"], np.ones(2))


@pytest.mark.parametrize("function", [os.system, exec], ids=["os.system", "exec"])
@pytest.mark.parametrize("how", ["torch", "torch legacy", "torch protocol 4", "pickle protocol 0", "pickle protocol 5"])
def test_a_malicious_pickle_does_not_run_and_is_refused(tmp_path: Path, function: Any, how: str) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "it_ran"
    content = {"model": Touch(marker, function)}
    if how == "torch":
        torch.save(content, path)
    elif how == "torch legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif how == "torch protocol 4":
        torch.save(content, path, pickle_protocol=4)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(how[-1])))
    message = message_of(path, UnsafeCheckpointError)
    assert not marker.exists()
    if how in ("torch", "torch legacy"):
        assert f" {function.__module__}.{function.__name__},".replace("builtins.", "") in message
    if function is exec and how == "torch":  # the test can fail: an ordinary load does run it
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_whole_modules_and_object_or_text_arrays_are_refused_by_name(tmp_path: Path) -> None:
    for value, name in (
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (np.array([{}], dtype=object), "ObjectDType"),
        (np.array(["patient"]), "StrDType"),
    ):
        torch.save({"model": value}, tmp_path / "refused.pt")
        assert name in message_of(tmp_path / "refused.pt", UnsafeCheckpointError)


def test_the_allow_list_is_as_before_after_a_call(tmp_path: Path) -> None:
    torch.save({"auroc": np.float64(0.5)}, tmp_path / "good.pt")
    torch.save(Touch(tmp_path / "marker"), tmp_path / "evil.pt")
    with torch.serialization.safe_globals([np.dtype, np.ndarray]):  # the user's own, two that we would add as well
        before = set(torch.serialization.get_safe_globals())
        read_torch_checkpoint(tmp_path / "good.pt")
        message_of(tmp_path / "evil.pt", UnsafeCheckpointError)
        assert set(torch.serialization.get_safe_globals()) == before


def test_a_truncated_file_gives_one_clear_line(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(100)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for length in (0, 2, 8, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        assert "truncated" in message_of(tmp_path / "cut.pt", CheckpointFormatError)


def test_a_damaged_file_never_raises_anything_but_an_input_error(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(3), "auroc": np.float64(1)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        (tmp_path / "damaged.pt").write_bytes(damaged)
        try:
            read_torch_checkpoint(tmp_path / "damaged.pt")
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


def test_files_that_are_no_checkpoints_give_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<html><body>404: not found</body></html>\n")
    (tmp_path / "notes.pt").write_text("these are my notes\n")
    for name in ("page.pt", "notes.pt"):
        assert "not a torch checkpoint" in message_of(tmp_path / name, CheckpointFormatError)
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    assert "safetensors" in message_of(tmp_path / "weights.pt", CheckpointFormatError)


def an_archive(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "text")


def a_numpy_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weights=np.zeros(3))


def a_numpy_file(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: an_archive(path, "notes.txt"), "a zip archive that torch.save did not write"),
        (lambda path: an_archive(path, "folder/notes.txt"), "a zip archive that torch.save did not write"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "a zip archive that torch.save did not write"),
        (a_numpy_archive, "a zip archive that torch.save did not write"),
        (a_numpy_file, "a NumPy array"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), "a PNG image"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(50)), "a JPEG image"),
        (lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(50)), "a DICOM file"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "an HDF5 file"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(50)), "a GGUF file"),
    ],
    ids=["zip", "zip with a folder", "empty zip", "npz", "npy", "png", "jpeg", "dicom", "hdf5", "gguf"],
)
def test_files_of_other_kinds_are_called_what_they_are(make: Callable[[Path], None], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    make(path)
    assert message_of(path, CheckpointFormatError) == f"{path} is {kind}; a checkpoint written by torch.save is wanted"


SAVED = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}}


def unpacked(path: Path) -> Path:
    """The folder that a checkpoint becomes when a program unpacks it."""
    torch.save(SAVED, path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(path.with_suffix(""))
    path.unlink()
    return path.with_suffix("")


def packed_again(folder: Path, path: Path, compression: int, *, below: str = "") -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{below}{file.relative_to(folder)}")


def test_a_checkpoint_unpacked_into_a_folder_is_told_as_such(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "mass.pth")
    assert "is a torch checkpoint that was unpacked into a folder" in message_of(folder, CheckpointFormatError)
    inner = next(folder.iterdir())
    assert "is a torch checkpoint that was unpacked into a folder" in message_of(inner, CheckpointFormatError)
    for read in (load_mammo_clip, load_vision_sae, inspect_checkpoint):
        with pytest.raises(CheckpointFormatError, match="was unpacked into a folder"):
            read(folder)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_checkpoint_that_was_packed_again_in_its_own_form_is_read(tmp_path: Path, compression: int) -> None:
    packed_again(unpacked(tmp_path / "mass.pth"), tmp_path / "mass.pth", compression)
    assert torch.equal(read_torch_checkpoint(tmp_path / "mass.pth")["model"]["weight"], SAVED["model"]["weight"])


def test_a_checkpoint_that_was_packed_again_in_another_form_is_told_as_such(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "mass.pth")
    packed_again(folder, tmp_path / "deeper.pth", zipfile.ZIP_STORED, below="mass/")
    packed_again(next(folder.iterdir()), tmp_path / "flat.pth", zipfile.ZIP_STORED)
    with tarfile.open(tmp_path / "mass.tar", "w") as archive:
        archive.add(folder, "mass")
    for name, kind in (("deeper.pth", "zip"), ("flat.pth", "zip"), ("mass.tar", "tar")):
        message = message_of(tmp_path / name, CheckpointFormatError)
        assert f"was unpacked and packed again as a {kind} archive of another form; get the file itself" in message


def test_an_archive_around_a_checkpoint_is_told_with_the_file_in_it(tmp_path: Path) -> None:
    torch.save(SAVED, tmp_path / "mass.pth")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.write(tmp_path / "mass.pth", "files/mass.pth")
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(tmp_path / "mass.pth", "mass.pth")
    (tmp_path / "c.pth").write_bytes(gzip.compress((tmp_path / "mass.pth").read_bytes()))
    (tmp_path / "d.pth").write_bytes(bz2.compress((tmp_path / "mass.pth").read_bytes()))
    (tmp_path / "e.pth").write_bytes(lzma.compress((tmp_path / "mass.pth").read_bytes()))
    for name, said in {
        "a.pt": "a zip archive that holds files/mass.pth; unpack it, and give that file",
        "b.tar": "a tar archive that holds mass.pth; unpack it, and give that file",
        "c.pth": "a gzip archive; unpack it, and give the checkpoint inside",
        "d.pth": "a bzip2 archive; unpack it",
        "e.pth": "an xz archive; unpack it",
    }.items():
        assert f"{name} is {said}" in message_of(tmp_path / name, CheckpointFormatError)


@pytest.mark.parametrize("length", [20, 2000])
def test_an_sae_of_saev_is_called_that_and_not_damaged(tmp_path: Path, length: int) -> None:
    path = tmp_path / "sae.pt"
    with path.open("wb") as file:
        file.write(json.dumps({"schema": 1, "cfg": {"d_vit": 8, "note": "x" * length}}).encode() + b"\n")
        torch.save({"W_enc": torch.zeros(8, 16), "b_enc": torch.zeros(16)}, file)
    assert "is an SAE as saev saves it (a line of JSON, then torch's state dict)" in message_of(
        path, CheckpointFormatError
    )
    (tmp_path / "text.pt").write_text('{"a": 1}\n{"b": 2}\n')
    assert "is a text file" in message_of(tmp_path / "text.pt", CheckpointFormatError)


def test_what_wrappers_put_into_keys_is_taken_off() -> None:
    keys = {
        "module.image_encoder.conv.weight": "image_encoder.conv.weight",
        "_orig_mod.image_encoder.conv.weight": "image_encoder.conv.weight",
        "module._orig_mod.a": "a",
        "_orig_mod.module.a": "a",
        "image_encoder._orig_mod.blocks.0._checkpoint_wrapped_module.a": "image_encoder.blocks.0.a",
        "inner.module.a": "inner.module.a",
        "module": "module",
    }
    assert {key: unwrapped_key(key) for key in keys} == keys
    with pytest.raises(CheckpointFormatError, match="f.pt has a twice, once with a wrapper's prefix"):
        unwrapped({"a": 1, "_orig_mod.a": 2}, where="f.pt")


def test_the_weights_of_a_compiled_or_parallel_sae_are_those_of_the_plain_one(tmp_path: Path) -> None:
    plain = torch.load(DATA / "vision_sae_tiny.pt", weights_only=True)
    expected = load_vision_sae(DATA / "vision_sae_tiny.pt").state_dict()
    for prefix in ("_orig_mod.", "module.", "module._orig_mod."):
        torch.save({f"{prefix}{key}": value for key, value in plain.items()}, tmp_path / "sae.pt")
        found = load_vision_sae(tmp_path / "sae.pt").state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        assert inspect_checkpoint(tmp_path / "sae.pt").loads_with == "load_vision_sae"


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # of the writer
def test_a_torchscript_archive_is_called_that_without_a_warning(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "script.pt")  # type: ignore[no-untyped-call]
    message = message_of(tmp_path / "script.pt", CheckpointFormatError)
    assert "is a TorchScript archive, which this package does not read" in message


def test_a_checkpoint_of_a_newer_pickle_protocol_gives_no_warning(tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"epoch": 1}, protocol=4))
    message_of(tmp_path / "plain.pkl", UnsafeCheckpointError)


def test_bytes_of_no_known_kind_are_refused_without_torchs_general_advice(tmp_path: Path) -> None:
    (tmp_path / "noise.pt").write_bytes(random.Random(1).randbytes(3000))
    message = message_of(tmp_path / "noise.pt", CheckpointFormatError)
    assert message.endswith("not a torch checkpoint (it is no pickle that torch.save writes)")


def test_a_missing_path_and_a_folder_give_one_clear_line(tmp_path: Path) -> None:
    assert "No such file" in message_of(tmp_path / "missing.pt", InputError)
    assert "irectory" in message_of(tmp_path, InputError)


def test_key_errors_name_the_first_few_and_count_all() -> None:
    expected = {f"layer.{i}": (2, 3) for i in range(10)}
    found = {f"layer.{i}": torch.zeros(2, 3) for i in range(5)} | {
        "layer.0": torch.zeros(3, 2),
        "other": torch.zeros(1),
    }
    with pytest.raises(CheckpointFormatError) as caught:
        check_keys(found, expected, where="file.pt", what="a network")
    assert str(caught.value) == (
        "file.pt is not a network: of 10 keys, 5 missing (layer.5, layer.6, layer.7, ...), 1 unexpected (other), "
        "1 of another shape (layer.0 (3, 2) instead of (2, 3))"
    )
    with pytest.raises(CheckpointFormatError, match=r"layer\.0 str instead of \(2, 3\)"):
        check_keys({**found, "layer.0": "text"}, expected, where="file.pt", what="a network")
    check_keys({key: torch.zeros(2, 3) for key in expected}, expected, where="file.pt", what="a network")


# -- forms of others, and weights that nothing can be computed with ---------------------------------------------------


def refused(load: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(CheckpointFormatError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def mammo_clip() -> dict[str, Any]:
    return fixture_checkpoint("b2")


@pytest.mark.parametrize(
    ("kind", "prefix", "wrap"),
    [
        ("a Lightning checkpoint", "model.", lambda s: {"state_dict": s, "pytorch-lightning_version": "2.1"}),
        ("a Lightning checkpoint", "net.", lambda s: {"state_dict": s, "hyper_parameters": {}}),
        ("a state dict in an entry", "module.", lambda s: {"state_dict": s}),
        ("the moving average", "", lambda s: {"ema_state_dict": s, "epoch": 3}),
        ("a DeepSpeed checkpoint", "", lambda s: {"module": s, "ds_version": "0.14"}),
        ("a bare state dict", "", lambda s: s),
        ("a bare state dict", "backbone.", lambda s: s),
    ],
)
def test_a_wrapped_mammo_clip_is_called_what_it_is_and_loads_as_converted(
    kind: str, prefix: str, wrap: Callable[[dict[str, Any]], Any], mammo_clip: dict[str, Any], tmp_path: Path
) -> None:
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    torch.save(wrap({prefix + key: value for key, value in mammo_clip["model"].items()}), old)
    message = refused(load_mammo_clip, old)
    assert f"{old} is {kind}" in message
    assert inspect_checkpoint(old).problem == message
    exec(message.partition("convert it: ")[2], {"torch": torch, "old": old, "new": new})
    assert load_mammo_clip(new).n_class == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda weight: weight.index_fill_(0, torch.tensor([0]), torch.nan),
            "has .* of .* values in {} that are NaN or infinite",
        ),
        (
            lambda weight: weight.index_fill_(0, torch.tensor([3]), -torch.inf),
            "has .* of .* values in {} that are NaN or infinite",
        ),
        (
            lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
            r"quantised weights \({} is torch.qint8",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # of the writer
def test_weights_that_are_not_finite_or_quantised_are_refused_by_name(
    change: Callable[[torch.Tensor], torch.Tensor], said: str, mammo_clip: dict[str, Any], tmp_path: Path
) -> None:
    name = "_conv_head.weight"
    weights = {**mammo_clip["model"]}
    weights[f"image_encoder.{name}"] = change(weights[f"image_encoder.{name}"].clone())
    torch.save({**mammo_clip, "model": weights}, tmp_path / "bad.pt")
    message = refused(load_mammo_clip, tmp_path / "bad.pt")
    assert re.search(f"{re.escape(str(tmp_path / 'bad.pt'))} .*{said.format(re.escape(name))}", message)
    assert inspect_checkpoint(tmp_path / "bad.pt").problem == message


@pytest.mark.parametrize("form", ["folder", "file"])
def test_an_sae_with_a_nan_is_refused_with_its_tensor(form: str, tmp_path: Path) -> None:
    tiny = DATA / "vision_sae_tiny.pt"
    if form == "file":
        content = torch.load(tiny, weights_only=True)
        content["encoder._bias"].view(-1)[0] = torch.nan
        torch.save(content, tmp_path / "sae.pt")
        message = refused(load_vision_sae, tmp_path / "sae.pt")
    else:
        sae = load_vision_sae(tiny)
        sae.get_parameter("b_enc").data[0] = torch.nan
        sae.save_model(tmp_path)
        message = refused(load_vision_sae, tmp_path)
    assert re.search("has 1 of .* values in (encoder._bias|b_enc) that are NaN or infinite", message)


def test_a_config_of_saelens_that_lacks_an_entry_is_told_which(tmp_path: Path) -> None:
    load_vision_sae(DATA / "vision_sae_tiny.pt").save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["dtype"]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    message = refused(load_vision_sae, tmp_path)
    assert "cfg.json has no entry 'dtype'" in message
    assert 'add "dtype": "float32"' in message


@pytest.mark.parametrize("size", [100, 5000])
@pytest.mark.parametrize("load", [load_mammo_clip, load_vision_sae, inspect_checkpoint])
def test_a_file_of_zeros_is_a_broken_download(size: int, load: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "b5.tar").write_bytes(bytes(size))
    assert f"holds only zeros ({size:,} bytes): a download that broke off" in refused(load, tmp_path / "b5.tar")


def test_settings_are_read_as_attributes_and_their_class_is_not_imported() -> None:
    content = read_torch_checkpoint(DATA / "sae_formats" / "prisma-standard.pt")
    assert type(content["cfg"]).__name__ == "StoredSettings"
    assert content["cfg"].activation_fn_str == "relu"
    assert "vit_prisma" not in sys.modules
