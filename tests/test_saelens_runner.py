"""SAELens's training runner on cached rows of images, by the lines that docs/activations.md gives."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers_training import rows_store
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
)

from mammosae_plugin.activations import write_saelens_dataset
from mammosae_plugin.adapters import load_sae


@pytest.mark.filterwarnings("ignore")
def test_saelens_runner_trains_on_cached_rows_and_its_sae_loads(tmp_path: Path) -> None:
    store = rows_store(tmp_path / "rows")
    context = write_saelens_dataset(store, tmp_path / "saelens")
    config = LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(
            d_in=store.d_in, d_sae=48, l1_coefficient=0.1, normalize_activations="expected_average_only_in"
        ),
        model_name="vit", hook_name=store.hook_name, dataset_path="images", context_size=context,
        use_cached_activations=True, cached_activations_path=str(tmp_path / "saelens"), training_tokens=640,
        train_batch_size_tokens=32, store_batch_size_prompts=4, n_batches_in_buffer=4, lr=1e-3, lr_warm_up_steps=0,
        device="cpu", act_store_device="cpu", checkpoint_path=None, output_path=str(tmp_path / "out"),
        logger=LoggingConfig(log_to_wandb=False), autocast=False,
    )  # fmt: skip
    no_text, no_model = Dataset.from_list([{"tokens": [0] * context}]), torch.nn.Identity()
    runner = LanguageModelSAETrainingRunner(config, override_dataset=no_text, override_model=no_model)  # type: ignore[arg-type]
    runner.run()
    sae = load_sae(tmp_path / "out")
    assert sae.cfg.normalize_activations == "none" and sae.cfg.metadata.hook_name == store.hook_name
    assert torch.isfinite(sae(store[:8])).all()
