"""CPU seconds and memory of a process that extracts and encodes, from its start: a line of JSON after each part.

Of an EfficientNet-B5 with random weights on two images of 1520 x 912, whose rows a top-k SAE of 2,048 x 16,384 encodes.
`scale.py` runs it; every number is from the start of the process on.
"""

import json
import re
import tempfile
import time
from pathlib import Path

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.activations import extract_activations
from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.datasets import VinDrMammo, make_phantoms
from mammosae_plugin.latents import encode_latents

PARTS = ("imports", "network made and read", "two images extracted", "two images encoded")
SIZE = (1520, 912)


def tell(part: str, uncounted: float = 0.0) -> None:
    """CPU seconds and the largest memory of this process until now."""
    most = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert most is not None
    print(json.dumps({"step": part, "cpu_s": time.process_time() - uncounted, "memory_mb": int(most[1]) / 1024}))


def main() -> None:
    tell(PARTS[0])
    with tempfile.TemporaryDirectory() as temporary:
        folder, start = Path(temporary), time.process_time()
        make_phantoms(folder / "phantoms", n_patients=2, images_per_patient=1, image_size=SIZE)
        drawing = time.process_time() - start
        network = new_classifier("tf_efficientnet_b5", 1, seed=0)
        torch.save(network.state_dict(), folder / "b5.pt")
        network.load_state_dict(torch.load(folder / "b5.pt", weights_only=True))
        tell(PARTS[1], drawing)
        model, images = HookedVisionModel(network, ["bn2"]), VinDrMammo(folder / "phantoms", image_size=SIZE)
        extract_activations(model, images, folder / "rows", hook_name="bn2", fraction=0.25, dtype="float16")
        tell(PARTS[2], drawing)
        metadata = SAEMetadata(hook_name="bn2.hook_out")
        sae = TopKSAE(TopKSAEConfig(d_in=2048, d_sae=16_384, k=32, metadata=metadata))
        encode_latents(model, sae, images, folder / "table", heads={"Mass": network.classifier})
        tell(PARTS[3], drawing)


if __name__ == "__main__":
    main()
