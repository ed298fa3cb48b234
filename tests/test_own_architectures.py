"""An architecture that a user registered with SAELens trains, is saved, loaded in another process and spliced."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_own_architecture import NAME, ShrinkingSAE, registered
from helpers_training import rows_store
from sae_lens import BatchTopKTrainingSAE, TopKTrainingSAE

from mammosae_plugin.adapters import CheckpointFormatError, load_vision_sae
from mammosae_plugin.errors import InputError
from mammosae_plugin.hub.policies import SAE as POLICY
from mammosae_plugin.training import SAETraining, train_sae
from mammosae_plugin.training.parallel import over_processes

SMALL = {"d_sae": 48, "epochs": 2.4, "batch_size": 32, "sparsity": 3e-3, "dead_feature_window": 4}

ELSEWHERE = """
import json, sys
import torch
from helpers_own_architecture import register

register()
from mammosae_plugin.adapters import HookedVisionModel, load_vision_sae

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.AdaptiveAvgPool2d(1)).eval()
sae = load_vision_sae(sys.argv[1])
sae.cfg.metadata.hook_name = "1.hook_out"
hooked = HookedVisionModel(model, ["1"])
images = torch.randn(2, 3, 8, 8)
edit = [("1.hook_out.hook_sae_acts_post", lambda acts, hook: 0 * acts)]
with torch.no_grad():
    value = model[:2](images).permute(0, 2, 3, 1)
    by_hand = sae.decode(sae.encode(value)).mean((1, 2))
    spliced = hooked.run_with_saes(images, saes=sae).flatten(1)
    exact = hooked.run_with_saes(images, saes=sae, use_error_term=True).flatten(1)
    edited = hooked.run_with_hooks_with_saes(images, saes=sae, fwd_hooks=edit).flatten(1)
    plain = model(images).flatten(1)
print(json.dumps({
    "latents": sae.encode(torch.linspace(-1, 1, 64).reshape(4, 16)).tolist(),
    "spliced": torch.allclose(spliced, by_hand, atol=1e-5) and not torch.allclose(spliced, plain, atol=1e-3),
    "exact": torch.allclose(exact, plain, atol=1e-5),
    "edited": torch.allclose(edited, sae.b_dec.expand(2, 16), atol=1e-5),
}))
"""


def test_a_registered_architecture_trains_and_is_spliced_in_another_process(tmp_path):
    store, folder = rows_store(tmp_path / "rows"), tmp_path / "sae"
    with registered():
        config = SAETraining(architecture=NAME, architecture_settings={"shrink": 0.2}, **SMALL)
        sae = train_sae(store, folder, config)
        assert isinstance(sae, ShrinkingSAE) and sae.cfg.shrink == 0.2
        assert sae.cfg.metadata.training_architecture_details["l1_coefficient"] == pytest.approx(3e-3 * 16)
        assert json.loads((folder / "training.json").read_text())["config"]["architecture_settings"] == {"shrink": 0.2}
        assert not [*POLICY.entries_of("sae/training.json", "").unknown({"config": config.model_dump()})]
        assert "lambda" in (folder / "README.md").read_text()
        again = train_sae(store, folder, config)
        torch.testing.assert_close(again.W_dec, sae.W_dec, rtol=0, atol=0)
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder)], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    expected = sae.encode(torch.linspace(-1, 1, 64).reshape(4, 16))
    torch.testing.assert_close(torch.tensor(found.pop("latents")), expected, rtol=1e-5, atol=1e-6)
    assert found == {"spliced": True, "exact": True, "edited": True}
    with pytest.raises(CheckpointFormatError, match=f"no inference SAE of the architecture '{NAME}'; register it with"):
        load_vision_sae(folder)
    with pytest.raises(InputError, match="does not know it"):
        SAETraining(architecture=NAME)


def test_what_a_registered_architecture_lacks_is_told_before_the_first_step(tmp_path):
    store = rows_store(tmp_path / "rows")
    with registered():
        with pytest.raises(InputError, match=f"{NAME!r} needs shrink; give architecture_settings"):
            train_sae(store, tmp_path / "sae", SAETraining(architecture=NAME, **SMALL))
        with pytest.raises(InputError, match="no setting 'shrnk'; it has decoder_init_norm, lp_norm, shrink"):
            SAETraining(architecture=NAME, architecture_settings={"shrnk": 1})
        with pytest.raises(InputError, match=r"k does nothing .* \(it is for topk, "):
            SAETraining(architecture=NAME, k=4)
    with registered(for_use=False), pytest.raises(InputError, match="no inference SAE of the architecture"):
        config = SAETraining(architecture=NAME, architecture_settings={"shrink": 0.2}, **SMALL)
        train_sae(store, tmp_path / "other", config)


def test_plans_of_trainings_without_further_settings_are_as_before():
    assert "architecture_settings" not in SAETraining().model_dump()
    assert "architecture_settings" not in SAETraining(architecture_settings={}).acting()
    with_one = SAETraining(architecture_settings={"lp_norm": 2.0})
    assert SAETraining(**with_one.model_dump()) == with_one and with_one.acting()["architecture_settings"]


def test_only_batch_top_k_saes_are_others_over_several_processes():
    class Own(BatchTopKTrainingSAE):
        pass

    assert over_processes(TopKTrainingSAE) is TopKTrainingSAE
    assert issubclass(over_processes(Own), Own) and over_processes(Own).get_activation_fn is not Own.get_activation_fn
