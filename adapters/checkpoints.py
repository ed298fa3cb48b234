"""Reading other people's checkpoints without running them.

A torch checkpoint is a pickle, and a pickle is a program. The files this package reads need only tensors, plain Python
containers, a few numpy scalars and arrays, and of two libraries of SAEs the object that holds their settings, so they
are read with `weights_only=True` and exactly those names allowed, for the length of the call: the numpy ones as they
are, an object of settings as a `StoredSettings`, which has its attributes and no code. Everything else is refused by
name.
"""

__all__ = [
    "check_keys", "CheckpointFormatError", "is_safetensors", "read_torch_checkpoint",
    "refuse_buffers_not_finite", "refuse_not_finite", "refuse_unpacked", "refuse_what_was_never_a_checkpoint",
    "StoredSettings", "UnsafeCheckpointError", "unwrapped", "unwrapped_key", "without_prefix",
]  # fmt: skip

import codecs
import io
import json
import os
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from mammosae_plugin.errors import InputError
from mammosae_plugin.file_kinds import CHECKPOINT_SUFFIXES, kind_of
from mammosae_plugin.files import local_path


class CheckpointFormatError(InputError):
    """The file can be read, or was meant to be, but is not the kind of checkpoint that was asked for."""


class UnsafeCheckpointError(InputError):
    """The file asks for code that no checkpoint of a known kind needs; nothing of it was run."""


class StoredSettings:
    """What is read in place of another library's object of settings: its attributes, and none of its code."""


def read_torch_checkpoint(path: str | os.PathLike[str], *, behind_line: bool = False) -> Any:
    """Read a file that `torch.save` wrote, running none of it.

    Zip checkpoints are memory-mapped, so that an optimiser or a text encoder beside the wanted weights costs no memory:
    copy what is kept (`load_state_dict` does). Tensors are on the CPU.

    Args:
        path: the checkpoint.
        behind_line: whether a line of text comes first, which is passed over, as in the files of saev; these are read
            into memory.

    Returns:
        What was saved: for the checkpoints of this package a dict.

    Raises:
        UnsafeCheckpointError: the pickle names something other than tensors, plain containers, numeric numpy values and
            the settings of known libraries.
        CheckpointFormatError: the file is damaged, truncated, or no torch checkpoint.
        InputError: the path does not exist, is a folder, or may not be read.
    """
    path = local_path(path)
    refuse_unpacked(path)
    try:
        with path.open("rb") as file:
            line = file.readline() if behind_line else b""
            head = file.read(9)
            content = io.BytesIO(head + file.read()) if behind_line else path
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    refuse_what_was_never_a_checkpoint(path)
    if _is_safetensors_header(head):
        raise CheckpointFormatError(f"{path} is a safetensors file, where a checkpoint written by torch.save is wanted")
    is_zip = head.startswith(b"PK\x03\x04")
    allowed_before = torch.serialization.get_safe_globals()
    ours = [allowed for allowed in _ALLOWED if allowed not in allowed_before]  # the exit would take away the user's
    try:
        return _load(content, ours, mmap=is_zip and not behind_line and not _is_compressed(path))
    except pickle.UnpicklingError as error:
        if is_zip and not behind_line and (settings := _settings_of_trainers(path)):
            try:
                return _load(path, ours + settings, mmap=not _is_compressed(path))
            except Exception as second:  # what lies there is built otherwise than such settings are
                raise _not_a_checkpoint(path, second) from second
        is_pickle = is_zip or behind_line or _is_plain_pickle(path)
        is_text = not is_pickle and _first_text(path) is not None  # prose can look like the name of a function
        refused = None if is_text else _refused_name(str(error), is_pickle=is_pickle)
        if refused is not None:
            raise UnsafeCheckpointError(
                f"{path} asks for {refused}, which no checkpoint needs that this package reads; "
                f"nothing of it was run, {_way_out_of_pickle(path)}"
            ) from error
        raise _not_a_checkpoint(path, error, line) from error
    except Exception as error:  # a damaged pickle can fail in any way: index, key, type, end of file, memory
        raise _not_a_checkpoint(path, error, line) from error


def _load(content: Any, allowed: list[Any], *, mmap: bool) -> Any:
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what torch warns of is either harmless here or refused
        return torch.load(content, map_location="cpu", weights_only=True, mmap=mmap)


class _Inert(list[Any]):
    """What stands for an object of a trainer's settings: it takes what a pickle gives it, and keeps nothing."""

    def __init__(self, *_args: object, **_named: object) -> None:
        super().__init__()

    def __setstate__(self, _state: object) -> None:
        """Keep nothing."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def _no_default(*_args: object) -> dict[Any, Any]:
    return {}  # in place of a defaultdict, whose factory would be a function of the file's


def _settings_of_trainers(path: Path) -> list[tuple[Callable[..., Any], str]]:
    """Stand-ins for all names that a zip checkpoint asks for, where all are of OmegaConf's or Lightning's settings.

    None of these is imported or run: GLoRIA's file, for one, holds its hyperparameters as an OmegaConf object beside
    the weights. Empty where any other name is asked for, or none.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a damaged archive can fail in any way; the reader has said how
        return []
    names = [name for name in names if name not in _NAMES_ALLOWED]
    if not all(name.split(".")[0] in _OF_TRAINERS or name in _PLAIN for name in names):
        return []
    return [(_no_default if name == "collections.defaultdict" else _Inert, name) for name in names]


def _way_out_of_pickle(path: Path) -> str:
    """What to do about a pickle that asks for code: of Mirai's, which is a whole network, how to export its weights."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if PurePosixPath(name).name == "data.pkl")
                head = archive.read(name)
        else:
            with path.open("rb") as file:
                head = file.read(_LONGEST_HEADER)
    except Exception:  # only an addition to an error that is reported anyway
        head = b""
    if b"onconet." not in head:
        return "get the file from its authors"
    return (
        "it is a whole pickled network of Mirai's code; where that is installed, and you trust the file, export its "
        f"weights: import torch; model = torch.load({path.name!r}, map_location='cpu', weights_only=False); "
        "model = model['model'] if isinstance(model, dict) else model; torch.save(model.state_dict(), 'mirai.pt')"
    )


def refuse_what_was_never_a_checkpoint(path: Path) -> None:
    """Refuse the four things that failed downloads leave under a checkpoint's name.

    Raises:
        CheckpointFormatError: the file is empty, holds only zeros, is a web page, or the pointer that Git keeps in
            place of a large file.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointFormatError(f"{path} is empty, the most truncated of downloads; get it again")
    if not any(head) and _holds_only_zeros(path):
        raise CheckpointFormatError(
            f"{path} holds only zeros ({path.stat().st_size:,} bytes): a download that broke off after its space was "
            "reserved; get it again"
        )
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise CheckpointFormatError(
            f"{path} is a Git LFS pointer, not the file itself; get that with `git lfs pull` or through the Hub"
        )
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml)", head, re.IGNORECASE):
        raise CheckpointFormatError(
            f"{path} is a web page, not a torch checkpoint; download the file itself, not the page about it"
        )


def _holds_only_zeros(path: Path) -> bool:
    with path.open("rb") as file:
        return not any(any(block) for block in iter(lambda: file.read(1 << 20), b""))


def refuse_unpacked(path: Path) -> None:
    """Refuse the folder that becomes of a checkpoint where a program takes it for an archive and unpacks it.

    Raises:
        CheckpointFormatError: it is one.
    """
    found = next(iter([*path.glob("data.pkl"), *path.glob("*/data.pkl")]), None) if path.is_dir() else None
    if found is not None:
        raise CheckpointFormatError(
            f"{path} is a torch checkpoint that was unpacked into a folder, as some browsers and file managers do; "
            "get the file itself, and do not unpack it"
        )


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins like a safetensors file, whatever its name; False where nothing can be read."""
    try:
        with local_path(path).open("rb") as file:
            return _is_safetensors_header(file.read(9))
    except OSError:
        return False


def check_keys(
    found: Mapping[str, Any], expected: Mapping[str, torch.Size | tuple[int, ...]], *, where: str, what: str
) -> None:
    """Check that a state dict has exactly the expected keys with the expected shapes.

    Args:
        found: state dict as read.
        expected: shape for every key.
        where: the file's name, for the message.
        what: what the state dict should be, for the message, such as "an EfficientNet-B5 image encoder".

    Raises:
        CheckpointFormatError: with the counts and the first three of the missing, unexpected and misshapen keys; or
            the first tensor that is quantised, or holds a value that is not finite.
    """
    quantised = [key for key in expected if isinstance(value := found.get(key), torch.Tensor) and value.is_quantized]
    if quantised:
        raise CheckpointFormatError(
            f"{where} holds quantised weights ({quantised[0]} is {found[quantised[0]].dtype}), which this package does "
            "not read; give the checkpoint that they were made from, or save value.dequantize() of each"
        )
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    misshapen = [
        f"{key} {_shape_of(found[key])} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in found and _shape_of(found[key]) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", extra), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise CheckpointFormatError(f"{where} is not {what}: of {len(expected)} keys, {', '.join(problems)}")
    refuse_not_finite({key: found[key] for key in expected}, where=where)


def refuse_not_finite(tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Refuse weights of which some are NaN or infinite.

    A threshold may be infinite, which no latent passes; single numbers are left to who reads them.

    Args:
        tensors: the weights by name; those without memory (meta) are not looked at.
        where: the file, or what has them, for the message.

    Raises:
        CheckpointFormatError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        if count := _count_not_finite(name, tensor):
            raise CheckpointFormatError(
                f"{where} has {count} of {tensor.numel()} values in {name} that are NaN or infinite, as a training "
                "that diverged or a damaged file leaves them; take an earlier checkpoint, or get the file again"
            )


def _count_not_finite(name: str, tensor: torch.Tensor) -> int:
    """How many values of a tensor no file may have, as `refuse_not_finite` counts them."""
    if tensor.is_meta or tensor.dim() == 0 or not tensor.is_floating_point():
        return 0
    return int((torch.isnan(tensor) if name.endswith("threshold") else ~torch.isfinite(tensor)).sum())


def refuse_buffers_not_finite(network: torch.nn.Module) -> None:
    """Refuse before training what no file of the trained network could be read with.

    Raises:
        InputError: a buffer that is saved, such as torchxrayvision's thresholds, holds NaN or infinity.
    """
    saved = network.state_dict().keys()
    for name, buffer in network.named_buffers():
        if name in saved and (count := _count_not_finite(name, buffer)):
            raise InputError(
                f"the network's buffer {name} holds {count} of {buffer.numel()} values that are NaN or infinite, "
                "before any training, and no file with them is read; where its features don't need that buffer, make "
                f"the network without it (network.{name} = None)"
            )


def unwrapped(weights: Mapping[Any, Any], *, where: str) -> dict[str, Any]:
    """A state dict without the names that wrappers put into its keys.

    These are `module.` in front (DataParallel), and `_orig_mod.` (torch.compile) and those of FSDP and of activation
    checkpointing anywhere.

    Raises:
        CheckpointFormatError: two keys become the same.
    """
    found: dict[str, Any] = {}
    for key, value in weights.items():
        name = unwrapped_key(str(key))
        if name in found:
            raise CheckpointFormatError(
                f"{where} has {name} twice, once with a wrapper's prefix ({key}); which is meant?"
            )
        found[name] = value
    return found


def unwrapped_key(key: str) -> str:
    """A key of a state dict without the names of wrappers."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def without_prefix(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose keys start with `prefix`, with it taken off."""
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def _shape_of(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _is_safetensors_header(head: bytes) -> bool:
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


def _is_plain_pickle(path: Path) -> bool:
    """Whether the bytes are one or more pickle programs, of any protocol; they are parsed and not run."""
    try:
        with path.open("rb") as file:
            return all(True for _ in pickletools.genops(file))
    except Exception:  # what pickletools raises on other bytes is not specified
        return False


def _first_text(path: Path) -> str | None:
    """How the file begins, if it begins with printable text."""
    with path.open("rb") as file:
        head = file.read(256)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # incremental: the cut may split a character
    except UnicodeDecodeError:
        return None
    return text[:40] if all(character.isprintable() or character in "\t\r\n" for character in text) else None


def _is_compressed(path: Path) -> bool:
    """Whether a zip archive was packed anew by another program than torch, which compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except Exception:  # a damaged archive can fail in any way; torch says how
        return False


def _what_else(path: Path) -> str | None:
    """What the file is instead of a checkpoint of `torch.save`, and what to do, where its content tells."""
    if _is_of_saev(path):
        return (
            "an SAE as saev saves it (a line of JSON, then torch's state dict), where another checkpoint is wanted; "
            "load_sae reads it"
        )
    names = _names_in_archive(path)
    if names is None:
        kind = kind_of(path)
        if kind is None or kind == _DAMAGED_ZIP or _first_text(path) is not None:  # a text is shown as it begins
            return None
        packed = kind.endswith("archive")
        return f"{kind}; {'unpack it, and give the checkpoint inside' if packed else _WANTED}"
    kind, inside = names
    if any(PurePosixPath(name).name == "constants.pkl" for name in inside):
        return "a TorchScript archive, which this package does not read; a checkpoint written by torch.save is wanted"
    checkpoints = [name for name in inside if PurePosixPath(name).suffix in CHECKPOINT_SUFFIXES]
    if checkpoints:
        return f"{kind} that holds {checkpoints[0]}; unpack it, and give that file"
    if any(PurePosixPath(name).name == "data.pkl" for name in inside):
        entries = [PurePosixPath(name).parts for name in inside if PurePosixPath(name).name == "data.pkl"]
        if kind == "a tar archive" or [len(parts) for parts in entries] != [2]:
            return (
                f"a torch checkpoint that was unpacked and packed again as {kind} of another form; get the file itself"
            )
        return None
    return f"{kind} that torch.save did not write; a checkpoint written by torch.save is wanted"


def _names_in_archive(path: Path) -> tuple[str, list[str]] | None:
    """The kind of an archive and the names of its files; None for what is none, or a damaged one."""
    try:  # either can fail in any way on a damaged archive, of which torch's own reason says more
        if tarfile.is_tarfile(path):  # first: a zip at its end would make it a zip archive too
            with tarfile.open(path) as packed:
                return "a tar archive", packed.getnames()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return "a zip archive", archive.namelist()
    except Exception:
        return None
    return None


def _is_of_saev(path: Path) -> bool:
    with path.open("rb") as file:
        line, behind = file.readline(_LONGEST_HEADER), file.read(4)
    try:
        header = json.loads(line) if line.startswith(b"{") else None
    except ValueError:
        return False
    return isinstance(header, dict) and (behind.startswith((b"PK\x03\x04", b"\x80")))


def _not_a_checkpoint(path: Path, error: Exception, line: bytes = b"") -> CheckpointFormatError:
    if line:
        return CheckpointFormatError(f"{path} is damaged or truncated behind its first line; get it again")
    if (kind := _what_else(path)) is not None:
        return CheckpointFormatError(f"{path} is {kind}")
    if (text := _first_text(path)) is not None:
        return CheckpointFormatError(f"{path} is a text file, not a torch checkpoint: it begins {text!r}")
    # torch buries the cause under general advice, some of it ("set weights_only to False") bad.
    cause = re.search(r"WeightsUnpickler error: (.+)", str(error))
    if cause is None and isinstance(error, pickle.UnpicklingError):
        return CheckpointFormatError(
            f"{path} is damaged, truncated, or not a torch checkpoint (it is no pickle that torch.save writes)"
        )
    message = re.sub(r"^\[enforce fail at [^]]*\][ .]*", "", str(error).strip())
    reason = cause[1] if cause else re.split(r"\n|\. ", message)[0]
    detail = f"{type(error).__name__}: {reason}".removesuffix(": ")
    return CheckpointFormatError(f"{path} is damaged, truncated, or not a torch checkpoint ({detail})")


def _refused_name(message: str, *, is_pickle: bool) -> str | None:
    """What torch's reader refused, from its message; None when it refused nothing but could not follow the bytes."""
    if match := re.search(r"GLOBAL (\S+) (?:was not|whose module)", message):
        return match[1]
    if match := re.search(
        r"(?:allowlisted via `add_safe_globals`,? but got|reduce for unrecognized function) (.+)", message
    ):
        return match[1].strip()
    if is_pickle and "Unsupported operand" in message:
        return "pickle instructions outside torch's safe set (a plain pickle, or saved with a newer pickle protocol)"
    return None


_WANTED = "a checkpoint written by torch.save is wanted"
_DAMAGED_ZIP = "a zip archive (damaged)"  # torch says more of it
_LONGEST_HEADER = 1 << 20


def _numpy_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The names in pickles of numeric numpy scalars and arrays, as numpy 1 and numpy 2 write them."""
    scalar: Any = np.float64(0).__reduce__()[0]  # the public way to these two, whose module was renamed in numpy 2
    reconstruct: Any = np.empty(0).__reduce__()[0]
    names: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (function, f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")
        for function, name in ((scalar, "scalar"), (reconstruct, "_reconstruct"))
    ]
    names += [(np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray")]
    # A pickled dtype is an instance of one of these; object and structured dtypes stay out.
    return names + [type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float16", "float32", "float64")]


_SETTINGS = (  # classes whose instances hold the settings of an SAE beside its weights
    "vit_prisma.sae.config.VisionModelSAERunnerConfig",
    "vit_prisma.configs.HookedViTConfig.HookedViTConfig",
    "src.sae_training.config.ViTSAERunnerConfig",
    "src.sae_training.config.Config",
    "sae_training.config.ViTSAERunnerConfig",
)
_ALLOWED = [*_numpy_globals(), *((StoredSettings, name) for name in _SETTINGS)]
_NAMES_ALLOWED = {one[1] if isinstance(one, tuple) else f"{one.__module__}.{one.__qualname__}" for one in _ALLOWED}
_OF_TRAINERS = {"omegaconf", "pytorch_lightning", "lightning", "lightning_fabric", "typing"}
_PLAIN = {
    "_operator.getitem", "argparse.Namespace", "collections.defaultdict", "operator.getitem", "pathlib.PosixPath",
    *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "object", "set", "str", "tuple")),
}  # fmt: skip
