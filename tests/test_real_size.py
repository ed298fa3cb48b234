"""A study at the real size, in a file of its own so that it runs beside the other long ones."""

import subprocess
import sys

import pytest
import torch
from helpers_adapters import fixture_checkpoint, fixture_downstream
from helpers_study import results_of, small_phantoms, write_study

# The command in a process whose only child it is, since what the system tells is the most that any child took.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, "-m", "mammosae_plugin", *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow
def test_the_real_path_at_the_real_size_in_four_gigabytes(tmp_path):
    """16 phantoms of 1520 x 912, a full B5 in the originals' file formats, an SAE of 2048 x 16384, one command."""
    small_phantoms(tmp_path / "data", n_patients=8, image_size=(1520, 912), seed=2)
    torch.save(fixture_checkpoint("b5"), tmp_path / "b5.tar")
    torch.save(fixture_downstream("b5"), tmp_path / "mass.pth")
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(1, 16384, 2048, generator=generator) / 2048**0.5
    bias = torch.zeros(1, 2048)
    sae = {
        "tied_bias": bias,
        "pre_encoder_bias._bias_reference": bias,
        "post_decoder_bias._bias_reference": bias,
        "encoder._weight": encoder,
        "encoder._bias": torch.zeros(1, 16384),
        "decoder._weight": encoder.transpose(1, 2).contiguous(),
    }
    torch.save(sae, tmp_path / "sparse_autoencoder_final.pt")
    settings = {
        "output": "out",
        "data": {"root": "data", "phantom": True},
        "concepts": ["Mass"],
        "models": [{"name": "finetuned", "encoder": "b5.tar", "classifiers": {"Mass": "mass.pth"}}],
        "sae": {"path": "sparse_autoencoder_final.pt"},
        "analysis": {"n_bootstrap": 100},
        "report": {"n_images": 1},
    }
    del sae, encoder
    file = write_study(tmp_path, settings)
    command = [sys.executable, "-c", MEASURED, "study", "--config", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = results_of(tmp_path / "out")
    assert found["models"][0]["architecture"] == "tf_efficientnet_b5"
    assert found["models"][0]["grid"] == [48, 29]
    assert found["sae"]["d_sae"] == 16384
    gigabytes = int(result.stdout.split()[-1]) / 2**20
    assert gigabytes < 4, f"the study took {gigabytes:.1f} GiB"
