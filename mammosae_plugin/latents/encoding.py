"""Making a latents table: one pass over the images through a network and an SAE."""

__all__ = [
    "encode_latents", "GroupChoice", "is_whole_table", "MapChoice", "NUMBERS_AT_ONCE", "rows_at_once", "seal_table",
    "settings_in",
]  # fmt: skip

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sae_lens import SAE
from torch import nn

from mammosae_plugin import distributed
from mammosae_plugin.activations import image_batches
from mammosae_plugin.activations.store import MANIFEST
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.checkpoints import refuse_not_finite
from mammosae_plugin.adapters.hooked_vision_model import require_hooked
from mammosae_plugin.adapters.input_normalization import (
    INPUT_NORMALIZATION,
    input_normalization,
    normalized,
    rescaled,
)
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.adapters.sae_settings import sae_settings
from mammosae_plugin.adapters.views import require_columns, whole_exams
from mammosae_plugin.arguments import between, entries, flag, indices, one_of, shown, text, whole
from mammosae_plugin.datasets import StudyDataset, for_network, made_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import (
    local_path,
    read_json,
    remove_temporaries,
    sealed,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_parquet,
    write_safetensors,
)
from mammosae_plugin.latents.encoded_layer import EncodedLayer, weight_and_bias
from mammosae_plugin.latents.gradcam import GradCam
from mammosae_plugin.latents.peak_finder import MOST_PEAKS, PeakFinder, peaks_of, stored
from mammosae_plugin.latents.table import (
    ELEMENTS,
    ELEMENTS_KEY,
    FILES,
    FINDINGS,
    FORMAT_VERSION,
    IMAGES,
    MOMENTS,
    PEAKS,
    READOUT,
    SETTINGS,
    TABLE,
    VOCABULARY,
    LatentTable,
    changed_file,
    elements_beyond_the_first,
    elements_of,
)
from mammosae_plugin.own_files import require_unclaimed
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.shards import DONE, PLAN, run_shards

logger = logging.getLogger(__name__)

# Numbers in one block of latents: 512 rows x 16384 latents, 34 MB of float32, whatever the width of the SAE.
NUMBERS_AT_ONCE = 512 * 16384


MapChoice = Sequence[int] | Callable[[LatentTable], Sequence[int]]
GroupChoice = Mapping[str, Mapping[int, float]] | Callable[[LatentTable], Mapping[str, Mapping[int, float]]]


def encode_latents(
    model: HookedVisionModel,
    sae: SAE[Any],
    dataset: StudyDataset | Any,
    folder: str | Path,
    *,
    heads: Mapping[str, nn.Linear],
    map_latents: MapChoice = (),
    map_splits: Sequence[str] = ("test",),
    map_images: Literal["boxed", "all"] = "boxed",
    map_channels: MapChoice = (),
    gradcam: bool = False,
    peaks: int = 5,
    map_groups: GroupChoice | None = None,
    device: str = "cpu",
    batch_size: int = 1,
    shard_size: int = 64,
    num_workers: int = 0,
) -> LatentTable:
    """Encode every image once and write the latents table.

    The splits are encoded one after the other, "training" first. Memory does not grow with the number of images. A
    killed call is simply made again: whole shards are kept, and the table is the same as an undisturbed one, byte for
    byte. Under torchrun all processes make the same call, and each encodes its share of the images.

    Model and SAE are as they were afterwards: mode of every submodule, device, gradient flags.

    Args:
        model: The hookable model.
        sae: A SAELens SAE. Its metadata names the hook point whose value (B, h, w, d_in) is encoded; without a name it
            is the model's final map.
        dataset: Images with labels and boxes, all splits; or a tensor, a dataset of torch, an ImageFolder, a DataLoader
            or a dataset of Hugging Face, which `datasets.as_images` makes one (with a transform, labels, splits).
        folder: Where the table goes.
        heads: The linear heads to record logits of, by concept. They read what the model's own classifier reads, so
            that several classifiers on one encoder share one pass. Empty for a network without one: the table then has
            no logits, which interventions need and nothing else does.
        map_latents: Latents whose maps over positions are kept for images that have a box; or a function that names
            them when the splits before are in the table (rank on "training", keep the best for "test").
        map_splits: Splits whose images keep maps.
        map_images: "boxed", those images that have a box, or "all", which `pair_responses` needs of both of a pair.
        map_channels: Channels of the layer whose maps are kept beside, in the same way.
        gradcam: Keep, for the same images, the Grad-CAM map of every head that has one output and a finding's name.
            This needs captum (the extra `[gradcam]`).
        peaks: The strongest local maxima kept of every map, for all images, those without a finding too: of every
            latent that fires, and in `map_splits` of the channels, Grad-CAM and groups that were asked for
            (`peak_finder` says what a peak is; 9 bytes or less for each). 0 keeps none.
        map_groups: Sums of latents' maps, by name the weight of each latent, whose peaks are kept beside; or a function
            that names them as for `map_latents`.
        device: Where the network and the SAE run.
        batch_size: Images per forward pass.
        shard_size: Images per shard.
        num_workers: Processes that read images beside the network.

    Raises:
        InputError: The SAE does not fit the layer (another width; a transcoder, an SAE that reads positions together,
            one for attention heads; a scaling of its input that is not in its weights), the layer has no grid or other
            values flow around it, a head does not fit the model or its concept, the dataset has no such concept, or the
            folder holds another table.
    """
    require_hooked(model)
    if not hasattr(sae, "cfg") or not hasattr(sae, "encode"):
        raise InputError(f"the SAE is a {type(sae).__name__}: give a SAELens SAE, such as load_sae(path)")
    if not isinstance(heads, Mapping) or not all(isinstance(head, nn.Linear) for head in heads.values()):
        raise InputError(f"heads are {shown(heads)}: give a torch.nn.Linear for each concept, {{concept: head}}")
    dataset = for_network(dataset, model.model, model.n_views)
    if heads and not model.inputs.is_plain:
        raise InputError("heads read the views of an exam, or more than images, together; give heads={}")
    require_columns([model], dataset.images)
    refuse_not_finite(sae.state_dict(), where="the SAE")
    for name, head in heads.items():
        concept = dataset.vocabulary.named(name)
        if head.out_features not in (1, concept.n_classes):
            raise InputError(
                f"the head of {name} has {head.out_features} outputs, but {name} has {concept.n_classes} classes: give "
                f"one with 1 or {concept.n_classes}"
            )
        refuse_not_finite(head.state_dict(), where=f"the classifier for {name}")
    batch_size = whole_exams(whole(batch_size, "batch_size", least=1), model.n_views)
    shard_size = whole_exams(whole(shard_size, "shard_size", least=1), model.n_views)
    num_workers, map_splits = whole(num_workers, "num_workers", least=0), entries(map_splits, "map_splits")
    for split in map_splits:
        text(split, "a split of map_splits")
    one_of(map_images, "map_images", ("boxed", "all"))
    flag(gradcam, "gradcam")
    peaks = whole(peaks, "peaks", least=0, most=MOST_PEAKS)
    device = distributed.place(device)
    with evaluation(model, sae, device=device):
        return _encode(
            model,
            sae,
            dataset,
            local_path(folder),
            heads,
            map_latents=map_latents,
            map_splits=map_splits,
            map_everywhere=map_images == "all",
            map_channels=map_channels,
            gradcam=gradcam,
            peaks=peaks,
            map_groups=map_groups or {},
            device=device,
            batch_size=batch_size,
            shard_size=shard_size,
            num_workers=num_workers,
        )


def _encode(
    model: HookedVisionModel,
    sae: SAE[Any],
    dataset: StudyDataset,
    folder: Path,
    heads: Mapping[str, nn.Linear],
    *,
    map_latents: MapChoice,
    map_splits: Sequence[str],
    map_everywhere: bool,
    map_channels: MapChoice,
    gradcam: bool,
    peaks: int,
    map_groups: GroupChoice,
    device: str,
    batch_size: int,
    shard_size: int,
    num_workers: int,
) -> LatentTable:
    layer = EncodedLayer(model, sae, heads, dataset.preprocessing.input_size(dataset.image_size), device)
    cams = [name for name, head in heads.items() if gradcam and head.out_features == 1 and name in dataset.concepts]
    splits = sorted(dataset.images["split"].unique(), key=lambda name: (name != "training", name))
    begun = [TABLE, *(f"{split}/{PLAN}" for split in splits)]
    written = [READOUT, MANIFEST, *(f"{split}/{name}" for split in splits for name in (IMAGES, FINDINGS))]
    distributed.on_main(partial(require_unclaimed, folder, begun, written))
    whole = distributed.on_main(partial(is_whole_table, folder))
    # A table stays what it is: a statistic that it lacks is no reason to encode every image again.
    known = ELEMENTS if peaks else {name: version for name, version in ELEMENTS.items() if name != PEAKS}
    elements = elements_of(read_json(folder / TABLE)) if (folder / TABLE).exists() else known
    told = {PEAKS: peaks} if PEAKS in elements or not peaks else {}
    peaks = told.get(PEAKS, 0)
    normalization = {INPUT_NORMALIZATION: name} if (name := input_normalization(sae)) else {}
    fixed = {
        "format_version": FORMAT_VERSION,
        "model": tensors_fingerprint(model.encoder_state()),
        "sae": tensors_fingerprint(sae.state_dict()),
        "heads": {concept: tensors_fingerprint(head.state_dict()) for concept, head in heads.items()},
        "dataset": dataset.fingerprint,
        "preprocessing": dataset.preprocessing.fingerprint,
        "image_size": list(dataset.image_size),
        "hook_name": layer.hook_name,
        "gradcam": cams,
        **normalization,
        **model.inputs.settings,
    }
    if new := elements_beyond_the_first(elements):
        fixed[ELEMENTS_KEY] = new
    if peaks:
        fixed[PEAKS] = peaks
    if (settings := settings_in(folder, sae)) is not None:
        fixed[SETTINGS] = settings
    header = {
        "format_version": FORMAT_VERSION,
        ELEMENTS_KEY: dict(elements),
        **told,
        "splits": splits,
        "concepts": list(dataset.concepts),
        VOCABULARY: dataset.vocabulary.to_json(),
        "heads": list(heads),
        "hook_name": layer.hook_name,
        "readout": layer.readout_kind,
        "gradcam": cams,
        "d_sae": int(sae.cfg.d_sae),
        "d_in": int(sae.cfg.d_in),
        "grid": list(layer.grid),
        "image_size": list(dataset.image_size),
        **normalization,
        "provenance": {
            "inputs": fixed,
            "dataset": dataset.name,
            **made_of(dataset),
            "model": plain(getattr(model.model, "source", {})),
            "sae": plain(sae.cfg.to_dict()),
            "packages": package_versions(),
            **environment(),
        },
    }
    gradcams = {name: GradCam(layer.rest, heads[name], device=device) for name in cams if layer.rest is not None}
    encoder = _Encoder(layer, gradcams, peaks, len(dataset))
    for number, split in enumerate(splits):
        part = dataset.select(split=split)
        kept = _Maps()
        if split in map_splits:
            before = LatentTable(folder, header={**header, "splits": splits[:number]})
            kept = _Maps(
                _chosen(map_latents, before, "map_latents", before.d_sae),
                _chosen(map_channels, before, "map_channels", before.d_in),
                tuple(cams),
                _groups(map_groups, before) if peaks else {},
                map_everywhere,
            )
        plan = {
            **fixed,
            "split": split,
            "images": sha256_of_json(part.images["image_id"].tolist()),
            "map_latents": list(kept.latents),
            "map_channels": list(kept.channels),
            **({"map_images": "all"} if kept.everywhere else {}),
            **({"map_groups": groups} if (groups := kept.listed_groups) else {}),
            "batch_size": batch_size,
        }
        compute = partial(encoder.encode, part, kept=kept, batch_size=batch_size, num_workers=num_workers)
        run_shards(folder / split, plan, len(part), shard_size, compute, description=f"encode {split}")
        if not whole:
            distributed.on_main(partial(_write_labels, folder / split, part))

    def complete() -> None:
        if not is_whole_table(folder) and layer.readout_kind == "linear":
            _write_readout(folder / READOUT, sae, heads)
        seal_table(folder, header)

    distributed.on_main(complete)
    return LatentTable(folder)


def settings_in(folder: Path, sae: SAE[Any]) -> dict[str, Any] | None:
    """The SAE's settings for a table's plan; None in the folder of an older table, whose plan does not have them."""
    header = folder / TABLE
    is_older = header.exists() and SETTINGS not in read_json(header)["provenance"]["inputs"]
    return None if is_older else sae_settings(sae)


def seal_table(folder: Path, header: Mapping[str, Any]) -> None:
    """Write the header of a table whose parts are there, last: a folder with it is complete."""
    if not is_whole_table(folder):
        for place in (folder, *(folder / split for split in header["splits"])):
            remove_temporaries(place)  # of a run that was killed between its shards and here
        files = {name: sha256_of_file(folder / name) for name in _files_beside(header)}
        write_json(folder / TABLE, sealed({**header, FILES: files}))


def _files_beside(header: Mapping[str, Any]) -> list[str]:
    """The files of a table beside its shards."""
    of_splits = [f"{split}/{name}" for split in header["splits"] for name in (IMAGES, FINDINGS, DONE)]
    return [*of_splits, *([READOUT] if header["readout"] == "linear" else [])]


def is_whole_table(folder: Path) -> bool:
    """Whether a table is complete and nothing in it was changed."""
    if not (folder / TABLE).exists():
        return False
    return changed_file(folder, read_json(folder / TABLE)) is None


def _write_labels(folder: Path, part: StudyDataset) -> None:
    for name, frame in ((IMAGES, part.images), (FINDINGS, part.findings)):
        write_parquet(folder / name, frame)


def _chosen(choice: MapChoice, before: LatentTable, name: str, width: int) -> tuple[int, ...]:
    wanted = entries(choice(before) if callable(choice) else choice, name)
    return tuple(np.unique(indices(wanted, name, width)).tolist())


def _groups(choice: GroupChoice, before: LatentTable) -> dict[str, dict[int, float]]:
    found = choice(before) if callable(choice) else choice
    if not isinstance(found, Mapping) or not all(isinstance(group, Mapping) for group in found.values()):
        raise InputError(f"map_groups are {shown(found)}: give the weight of each latent, {{name: {{latent: weight}}}}")
    checked = {}
    for name, group in found.items():
        text(name, "a name of map_groups")
        latents = indices(list(group), f"the latents of group {name}", before.d_sae, distinct=True).tolist()
        weights = [between(weight, f"a weight of group {name}", -np.inf, np.inf) for weight in group.values()]
        checked[name] = dict(zip(latents, weights, strict=True))
    return checked


def rows_at_once(sae: SAE[Any]) -> int:
    """Rows that are encoded together, so that latents and reconstruction take about 34 MB each at any width."""
    return max(1, NUMBERS_AT_ONCE // max(int(sae.cfg.d_sae), int(sae.cfg.d_in)))


def _write_readout(path: Path, sae: SAE[Any], heads: Mapping[str, nn.Linear]) -> None:
    decoder = sae.W_dec.detach().double().cpu()
    decoder_bias = sae.b_dec.detach().double().cpu()
    tensors = {}
    for concept, head in heads.items():
        weight, bias = weight_and_bias(head, "cpu")
        tensors[f"weight.{concept}"] = decoder @ weight.T
        tensors[f"offset.{concept}"] = decoder_bias @ weight.T + bias
    write_safetensors(path, tensors)


@dataclass(frozen=True)
class _Maps:
    """Whose maps over positions are kept in one split."""

    latents: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    gradcam: tuple[str, ...] = ()
    groups: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    everywhere: bool = False  # of every image, or of those with a box

    @property
    def listed_groups(self) -> list[Any]:
        """The groups as JSON has them, whose keys are texts."""
        return [[name, list(map(list, group.items()))] for name, group in self.groups.items()]

    def __bool__(self) -> bool:
        return bool(self.latents or self.channels or self.gradcam)


@dataclass
class _EncodedImage:
    """What the SAE says about one image.

    Attributes:
        columns: Its columns of the table.
        sums: Its share of the sums over positions.
        mean_features: (d_in,) float64, mean of the layer over positions.
        mean_decoded: (d_in,) float64, the same of the reconstruction.
        decoded: (h, w, d_in) the reconstruction, where heads read more of it than its mean.
    """

    columns: dict[str, torch.Tensor]
    sums: dict[str, torch.Tensor]
    mean_features: torch.Tensor
    mean_decoded: torch.Tensor
    decoded: torch.Tensor | None


class _Encoder:
    """Turns images of a dataset into the tensors of one shard of the table."""

    def __init__(self, layer: EncodedLayer, gradcams: Mapping[str, GradCam], n_peaks: int, n_images: int) -> None:
        self.layer, self.gradcams, self.n_peaks, self.n_images = layer, gradcams, n_peaks, n_images

    @torch.inference_mode()
    def encode(
        self, part: StudyDataset, items: range, *, kept: _Maps, batch_size: int, num_workers: int
    ) -> dict[str, torch.Tensor]:
        layer = self.layer
        has_box = set(part.findings.dropna(subset=["xmin"])["image_id"])
        ids = part.images["image_id"]
        columns: dict[str, list[torch.Tensor]] = {}
        totals: dict[str, torch.Tensor] = {}
        map_images = []
        for first, images in image_batches(part, items, batch_size, num_workers):
            with layer.model.inputs.of_rows(part.images.iloc[first : first + len(images)]):
                reading = layer.model.read(images.to(layer.device), layer.hook_name)
            encoded = []
            for offset, value in enumerate(reading.value):
                row = first + offset
                if not torch.isfinite(value).all():
                    raise InputError(
                        f"the model gives features that are not finite for image {ids[row]}; check its weights"
                    )
                with_maps = bool(kept) and (kept.everywhere or ids[row] in has_box)
                encoded.append(self._encode_one(value, kept, with_maps=with_maps))
                if with_maps:
                    map_images.append(row - items.start)
                for head in kept.gradcam if with_maps or self.n_peaks else ():
                    one = slice(offset, offset + 1)
                    cam = self.gradcams[head](reading.raw[one], reading.value[one]).float()
                    encoded[-1].columns.update(self._peaks(f"gradcam.{head}", cam))
                    if with_maps:
                        columns.setdefault(f"gradcam.{head}", []).append(cam[0].cpu())
            for name, logits in self._logits(reading.raw, reading.head_input, encoded).items():
                columns.setdefault(name, []).extend(logits.cpu())
            for one_image in encoded:
                for name, tensor in one_image.columns.items():
                    columns.setdefault(name, []).append(tensor.cpu())
                for name, tensor in one_image.sums.items():
                    totals[name] = totals[name] + tensor if name in totals else tensor
        n_latents = torch.tensor([0] + [len(indices) for indices in columns["indices"]])
        tensors = {"indptr": n_latents.cumsum(0), "map_images": torch.tensor(map_images, dtype=torch.int64)}
        tensors["map_latents"] = torch.tensor(kept.latents, dtype=torch.int64)
        tensors["map_channels"] = torch.tensor(kept.channels, dtype=torch.int64)
        for name, group in kept.groups.items():
            tensors[f"map_groups.{name}.latents"] = torch.tensor(list(group), dtype=torch.int64)
            tensors[f"map_groups.{name}.weights"] = torch.tensor(list(group.values()), dtype=torch.float64)
        for name, pieces in columns.items():
            is_flat = name in ("indices", "mean", "max") or name.startswith(f"{PEAKS}.")
            tensors[name] = torch.cat(pieces) if is_flat else torch.stack(pieces)
        self._tell_size(tensors)
        return {**tensors, **{f"total.{name}": value.cpu() for name, value in totals.items()}}

    def _peaks(self, name: str, maps: torch.Tensor) -> dict[str, torch.Tensor]:
        """The columns of the peaks of maps (k, h, w); none where none are kept."""
        if not self.n_peaks:
            return {}
        return stored(peaks_of(maps, self.n_peaks), torch.arange(len(maps), device=maps.device), name)

    def _tell_size(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Say once, after the first shard, what peaks will take on disk."""
        if self.n_peaks and self.n_images:
            nbytes = sum(value.nbytes for name, value in tensors.items() if name.startswith(f"{PEAKS}."))
            whole = nbytes / (len(tensors["indptr"]) - 1) * self.n_images
            logger.info("the peaks of all %d images will take about %.3g MB", self.n_images, whole / 1e6)
            self.n_images = 0

    def _logits(
        self, raw: torch.Tensor, head_input: torch.Tensor | None, encoded: Sequence[_EncodedImage]
    ) -> dict[str, torch.Tensor]:
        """(B, n_out) float64 logits of every head, without and with the SAE."""
        if head_input is None or self.layer.rest is None:
            return {}
        if self.layer.readout_kind == "linear":
            # In float64 throughout, so that the linear form of an intervention agrees with these to rounding.
            own = torch.stack([image.mean_features for image in encoded])
            with_sae = torch.stack([image.mean_decoded for image in encoded])
        else:
            decoded = torch.stack([image.decoded for image in encoded if image.decoded is not None]).to(raw.dtype)
            own = head_input.double()
            with_sae = self.layer.rest.head_input(self.layer.rest.replace(raw, decoded)).double()
        logits = {}
        for concept, (weight, bias) in self.layer.heads.items():
            logits[f"logits.{concept}"] = own @ weight.T + bias
            logits[f"logits_with_sae.{concept}"] = with_sae @ weight.T + bias
        return logits

    def _encode_one(self, value: torch.Tensor, kept: _Maps, *, with_maps: bool) -> _EncodedImage:
        """One image's value (h, w, d_in), a block of positions at a time; maps are whole, and of few images, or peaks.

        A group's map is of every image of a split.
        """
        sae = self.layer.sae
        height, width, d_in = value.shape
        rows = value.reshape(-1, d_in)
        total = torch.zeros(sae.cfg.d_sae, dtype=torch.float64, device=rows.device)
        maximum = torch.full((sae.cfg.d_sae,), -torch.inf, device=rows.device)
        fires = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=rows.device)
        # Read by heads alone, and not by those that read the mean.
        is_read = self.layer.rest is not None and self.layer.readout_kind != "linear"
        decoded = torch.empty(rows.shape, dtype=torch.float32, device=rows.device) if is_read else None
        sums = {name: torch.zeros(d_in, dtype=torch.float64, device=rows.device) for name in MOMENTS}
        sums["n_positions"] = torch.tensor(len(rows))
        sums["l0"] = torch.zeros((), dtype=torch.int64, device=rows.device)
        decoded_sum = torch.zeros(d_in, dtype=torch.float64, device=rows.device)
        maps, finder = [], PeakFinder(self.n_peaks, width)
        group_maps = torch.zeros((len(kept.groups), len(rows)), dtype=torch.float64, device=rows.device)
        for start in range(0, len(rows), rows_at_once(sae)):
            chunk = rows[start : start + rows_at_once(sae)]
            rows_in, lengths = normalized(sae, chunk)
            latents = sae.encode(rows_in)
            output = rescaled(self.layer.decode(latents), lengths)
            if decoded is not None:
                decoded[start : start + len(chunk)] = output
            decoded_sum += output.sum(0, dtype=torch.float64)
            total += latents.sum(0, dtype=torch.float64)
            torch.maximum(maximum, latents.amax(0), out=maximum)
            fires |= (latents != 0).any(0)
            sums["l0"] += torch.count_nonzero(latents)
            sums["sse"] += (output - chunk).square_().sum(0, dtype=torch.float64)
            sums["sum"] += chunk.sum(0, dtype=torch.float64)
            sums["sum_sq"] += chunk.double().square_().sum(0)
            if kept.latents and with_maps:
                maps.append(latents[:, list(kept.latents)])
            if self.n_peaks:
                finder.add(latents)
            for number, group in enumerate(kept.groups.values()):
                weights = torch.tensor(list(group.values()), dtype=torch.float64, device=rows.device)
                group_maps[number, start : start + len(chunk)] = latents[:, list(group)].double() @ weights
        fired = torch.nonzero(fires).squeeze(1)
        mean_features = sums["sum"] / len(rows)
        columns = {
            "indices": fired.to(torch.int32),
            "mean": (total / len(rows))[fired].float(),
            "max": maximum[fired].float(),
            "mean_channels": mean_features.float(),
        }
        if maps:
            columns["maps"] = torch.cat(maps).T.reshape(-1, height, width).float()
        if kept.channels:
            channel_maps = rows[:, list(kept.channels)].T.reshape(-1, height, width).float()
            columns |= self._peaks("channels", channel_maps)
            columns |= {"channel_maps": channel_maps} if with_maps else {}
        if self.n_peaks:
            columns |= stored(finder.found(), fired, "latents")
        for name, group_map in zip(kept.groups, group_maps.float(), strict=True):
            columns |= self._peaks(f"group.{name}", group_map.reshape(1, height, width))
        if decoded is not None:
            decoded = decoded.reshape(value.shape)
        return _EncodedImage(columns, sums, mean_features, decoded_sum / len(rows), decoded)
