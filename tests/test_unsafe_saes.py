"""SAEs that must not be applied as they are: checkpoints with the scale of their rows beside them, and misfits.

Every door that takes an SAE refuses what `add_sae` refuses, and a checkpoint of SAELens's trainer comes in folded.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_study import random_sae
from helpers_training import ARCHITECTURES, small_training, store_of
from sae_lens import SAE, SAETrainer, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from torch import nn
from typer.testing import CliRunner

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.adapters import CheckpointFormatError, HookedVisionModel, load_vision_sae
from mammosae_plugin.adapters.input_scaling import NOT_IN_THE_WEIGHTS
from mammosae_plugin.adapters.visaebench import for_visaebench
from mammosae_plugin.cli import app
from mammosae_plugin.errors import InputError
from mammosae_plugin.hub.saes import origin_of, stage_saes
from mammosae_plugin.latents import encode_latents, encode_rows
from mammosae_plugin.study.audit import audit_sae
from mammosae_plugin.training import save_sae, train_sae
from mammosae_plugin.training.new_sae import new_training_sae

D_IN = 16
SCALER = "activation_scaler.json"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Vectors, one per image, far from the size that a scaled SAE is trained on."""
    generator = torch.Generator().manual_seed(0)
    rows = 7 * torch.randn(200, D_IN, generator=generator) + 2
    return store_of(rows, tmp_path_factory.mktemp("store") / "rows", rows_per_image=1)


class Checkpoint:
    """What SAELens's own trainer left in the middle of a run, and its SAE at that moment."""

    def __init__(self, store: ActivationStore, folder: Path, architecture: str, scaling: str) -> None:
        config = small_training(architecture=architecture)
        said = SAEMetadata(hook_name="bn2.hook_out")
        self.sae: TrainingSAE[Any] = new_training_sae(config, D_IN, metadata=said, device="cpu")
        self.sae.cfg.normalize_activations = scaling  # type: ignore[assignment]
        settings = SAETrainerConfig(
            total_training_samples=40 * 32, train_batch_size_samples=32, lr=3e-3, lr_end=3e-3, device="cpu",
            lr_scheduler_name="constant", lr_warm_up_steps=0, lr_decay_steps=0, n_restart_cycles=1, adam_beta1=0.9,
            adam_beta2=0.999, autocast=False, dead_feature_window=10, feature_sampling_window=100, n_checkpoints=0,
            checkpoint_path=None, save_final_checkpoint=False, logger=LoggingConfig(log_to_wandb=False),
            n_batches_for_norm_estimate=10,
        )  # fmt: skip
        batches = store.batches(32)
        self.trainer = SAETrainer(settings, self.sae, batches)
        scaler = self.trainer.activation_scaler
        estimate = scaler.estimate_scaling_factor if scaling == NOT_IN_THE_WEIGHTS[0] else scaler.estimate_whitening
        estimate(D_IN, batches, 10)
        for _ in range(20):
            self.trainer.step(next(batches))
            self.trainer.n_training_steps += 1
        self.trainer.save_checkpoint("now", base_path=folder)
        (self.folder,) = folder.iterdir()

    @torch.no_grad()
    def by_saelens(self, rows: torch.Tensor, scratch: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and reconstruction of rows by SAELens alone: its form for use, on rows scaled by its scaler."""
        self.sae.save_inference_model(scratch)
        used: SAE[Any] = SAE.load_from_disk(scratch)
        scaler = self.trainer.activation_scaler
        latents = used.encode(scaler.scale(rows))
        return latents, scaler.unscale(used.decode(latents))


@pytest.mark.parametrize("scaling", NOT_IN_THE_WEIGHTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_of_saelens_is_folded_when_it_is_loaded(
    architecture: str, scaling: str, store: ActivationStore, tmp_path: Path
) -> None:
    made = Checkpoint(store, tmp_path / "run", architecture, scaling)
    if architecture == "matching_pursuit" and scaling == "covariance_whitening":
        # Its encoding is no affine map, so that SAELens folds no whitening either.
        with pytest.raises(CheckpointFormatError, match="is not an SAE that sae-lens .* can load"):
            load_vision_sae(made.folder)
        return
    rows = store.rows_of(range(40))
    latents, expected = made.by_saelens(rows, tmp_path / "inference")
    assert (latents != 0).any()
    found = load_vision_sae(made.folder)
    assert found.cfg.normalize_activations == "none"
    with torch.no_grad():
        scale = float((expected - found.decode(found.encode(rows))).abs().max() / expected.abs().max())
    assert scale < 1e-5
    assert ((found.encode(rows) != 0) == (latents != 0)).float().mean() > 0.999
    said = "folded_scaling_factor" if scaling == NOT_IN_THE_WEIGHTS[0] else "folded_whitening"
    assert said in found.cfg.metadata
    saved = SAE.load_from_disk(save_sae(found, tmp_path / "saved"))  # what it becomes for others is folded too
    torch.testing.assert_close(saved.decode(saved.encode(rows)), expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_saelens_goes_out_folded(store: ActivationStore, tmp_path: Path) -> None:
    made = Checkpoint(store, tmp_path / "run", "standard", NOT_IN_THE_WEIGHTS[0])
    rows = store.rows_of(range(40))
    _, expected = made.by_saelens(rows, tmp_path / "inference")
    stage_saes({"one": origin_of(made.folder)}, tmp_path / "staged")
    staged = SAE.load_from_disk(tmp_path / "staged" / "one")
    assert staged.cfg.normalize_activations == "none"
    torch.testing.assert_close(staged.decode(staged.encode(rows)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "beside", "message"),
    [
        (
            "none",
            {"scaling_factor": 0.5},
            "says normalize_activations 'none', but activation_scaler.json beside it has",
        ),
        (NOT_IN_THE_WEIGHTS[0], {"scaling_factor": -1.0}, "says that rows are scaled by -1.0"),
        (NOT_IN_THE_WEIGHTS[0], {}, "is damaged \\(KeyError\\)"),
    ],
)
def test_a_scale_that_contradicts_is_refused(said: str, beside: dict[str, Any], message: str, tmp_path: Path) -> None:
    sae = random_sae(D_IN)
    sae.cfg.normalize_activations = said
    sae.save_model(tmp_path)
    (tmp_path / SCALER).write_text(json.dumps(beside))
    with pytest.raises(CheckpointFormatError, match=message):
        load_vision_sae(tmp_path)


def test_the_ways_out_of_the_refusal_work(store: ActivationStore, tmp_path: Path) -> None:
    """The scaler is put back beside the checkpoint, or the scale is folded by hand."""
    made = Checkpoint(store, tmp_path / "run", "standard", NOT_IN_THE_WEIGHTS[0])
    rows = store.rows_of(range(40))
    _, expected = made.by_saelens(rows, tmp_path / "inference")
    bare = tmp_path / "bare"
    shutil.copytree(made.folder, bare, ignore=shutil.ignore_patterns(SCALER))
    unfolded = load_vision_sae(bare)
    with pytest.raises(InputError, match=rf"would see them unscaled.* with its {SCALER}, or fold it in"):
        encode_rows(store, unfolded, tmp_path / "table")
    unfolded.fold_activation_norm_scaling_factor(made.trainer.activation_scaler.scaling_factor)
    encode_rows(store, unfolded, tmp_path / "table")
    torch.testing.assert_close(unfolded.decode(unfolded.encode(rows)), expected, rtol=1e-4, atol=1e-4)
    shutil.copy(made.folder / SCALER, bare)
    encode_rows(store, load_vision_sae(bare), tmp_path / "table")  # the same table


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("nested", [False, True])
def test_what_scales_each_row_itself_is_encoded_as_saelens_does(
    scaling: str, nested: bool, store: ActivationStore, tmp_path: Path
) -> None:
    config = {**random_sae(D_IN).cfg.to_dict(), "normalize_activations": scaling}
    config["metadata"] = {"hook_name": "bn2", **({"levels": [16, config["d_sae"]]} if nested else {})}
    sae = SAE.from_dict(config)
    sae.load_state_dict(random_sae(D_IN).state_dict())
    table = encode_rows(store, sae, tmp_path / "table")
    rows = store.rows_of(range(len(store.image_ids)))
    with torch.no_grad():
        latents = sae.encode(rows)
        sse = (sae.decode(latents) - rows).square().sum()
    torch.testing.assert_close(torch.from_numpy(table.max_latents.toarray()), latents.relu(), rtol=1e-4, atol=1e-5)
    assert table.reconstruction_sums("training")["sse"].sum() == pytest.approx(float(sse), rel=1e-4)


# -- every door refuses the same ---------------------------------------------------------------------------------------


def changed(**settings: Any) -> SAE[Any]:
    sae = random_sae(D_IN)
    metadata = {**sae.cfg.metadata.to_dict(), **settings.pop("metadata", {})}
    return SAE.from_dict({**sae.cfg.to_dict(), **settings, "metadata": metadata})


def said_afterwards(scaling: str) -> SAE[Any]:
    sae = random_sae(D_IN)
    sae.cfg.normalize_activations = scaling
    return sae


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "no SAE": (lambda: nn.Linear(D_IN, 32), "Linear.*: give a SAELens SAE|a Linear is no SAE"),
    "layout": (lambda: changed(metadata={"layout": "channels_first"}), "wants the layout 'channels_first'"),
    "transcoder": (
        lambda: changed(architecture="transcoder", d_out=D_IN, apply_b_dec_to_input=False),
        "is a transcoder",
    ),
    "other output": (
        lambda: changed(metadata={"hook_name_out": "fc.hook_out"}),
        "is a transcoder|no hook point .fc.hook_out.",
    ),
    "heads": (
        lambda: changed(reshape_activations="hook_z", metadata={"hook_name": "bn2_z"}),
        "for attention heads|no hook point",
    ),
    "in a batch": (
        lambda: new_training_sae(
            small_training(architecture="batchtopk"), D_IN, metadata=SAEMetadata(hook_name="bn2"), device="cpu"
        ),
        "reads positions together",
    ),
    "unfolded scale": (lambda: changed(normalize_activations=NOT_IN_THE_WEIGHTS[0]), "would see them unscaled"),
    "unfolded whitening": (lambda: changed(normalize_activations=NOT_IN_THE_WEIGHTS[1]), "would see them unscaled"),
    "scaling only said": (lambda: said_afterwards("layer_norm"), "would see them unscaled"),
    "unknown normalisation": (
        lambda: changed(metadata={"input_normalization": "unit_l7"}),
        "which this version cannot do",
    ),
    "width": (lambda: random_sae(D_IN + 1), "width|channels"),
}
"""SAEs that no door lets in, and what is said of each."""


class Net(nn.Module):
    """A network whose map `bn2` has the width of the SAEs."""

    def __init__(self) -> None:
        super().__init__()
        self.bn2 = nn.Conv2d(3, D_IN, 16, 16)
        self.fc = nn.Linear(D_IN, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(self.bn2(x).mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def model() -> Iterator[HookedVisionModel]:
    with HookedVisionModel(Net(), ["bn2"], example_input=torch.zeros(1, 3, 96, 64)) as hooked:
        yield hooked


Door = Callable[[Any, HookedVisionModel, Any, ActivationStore, Path], Any]
DOORS: dict[str, Door] = {
    "add_sae": lambda sae, model, _data, _store, _to: model.add_sae(sae),
    "encode_latents": lambda sae, model, data, _store, to: encode_latents(
        model, sae, data, to, heads={"Mass": model.model.fc}
    ),
    "encode_rows": lambda sae, _model, _data, store, to: encode_rows(store, sae, to),
    "audit": lambda sae, _model, _data, store, to: audit_sae(sae, store, to),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("unfit", UNFIT)
def test_every_door_refuses_what_add_sae_refuses(
    unfit: str, door: str, model: HookedVisionModel, phantoms: Any, store: ActivationStore, tmp_path: Path
) -> None:
    make, message = UNFIT[unfit]
    with pytest.raises(InputError, match=message):
        DOORS[door](make(), model, phantoms, store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not model.acts_to_saes


@pytest.mark.parametrize("unfit", [name for name in UNFIT if name != "width"])  # it is given no rows
def test_visaebench_is_given_no_unfit_sae(unfit: str) -> None:
    make, message = UNFIT[unfit]
    with pytest.raises(InputError, match=message):
        for_visaebench(make())


@pytest.mark.parametrize("unfit", ["layout", "unfolded scale"])
def test_the_command_refuses_the_same_with_one_line(unfit: str, store: ActivationStore, tmp_path: Path) -> None:
    make, message = UNFIT[unfit]
    make().save_model(tmp_path / "sae")
    arguments = ["encode", "--rows", str(store.folder), "--sae", str(tmp_path / "sae"), "-o", str(tmp_path / "out")]
    found = CliRunner(env={"COLUMNS": "400"}).invoke(app, arguments)
    assert found.exit_code == 2 and message in " ".join(found.output.split())
    assert not (tmp_path / "out").exists()


def test_abstopk_trains_saves_loads_splices_and_encodes(
    model: HookedVisionModel, phantoms: Any, store: ActivationStore, tmp_path: Path
) -> None:
    train_sae(store, tmp_path / "sae", small_training(architecture="abstopk"), metadata={"layout": "channels_last"})
    sae = load_vision_sae(tmp_path / "sae")
    assert sae.cfg.architecture() == "abstopk"
    rows = store.rows_of(range(40))
    latents = sae.encode(rows)
    assert (torch.count_nonzero(latents, dim=1) == 4).all() and (latents < 0).any() and (latents > 0).any()
    assert torch.equal(SAE.load_from_disk(tmp_path / "sae").encode(rows), latents)
    model.run_with_saes(torch.randn(1, 3, 96, 64), saes=sae)
    table = encode_latents(model, sae, phantoms, tmp_path / "maps", heads={"Mass": model.model.fc})
    assert table.d_sae == sae.cfg.d_sae
    assert encode_rows(store, sae, tmp_path / "rows").max_latents.nnz > 0
