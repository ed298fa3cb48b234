"""Names for arrays of one shape, for signatures: `help` and editors show what stands beside the type."""

__all__ = ["Boxes", "FeatureMap", "Images", "LatentMaps", "Rows"]

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

Images = Annotated[torch.Tensor, "(B, C, H, W) float32, as the network's own preprocessing gives them"]
FeatureMap = Annotated[torch.Tensor, "(B, C, h, w), as inside the network"]
Rows = Annotated[torch.Tensor, "(n, C), what an SAE reads: positions of a map, or one vector per image"]
LatentMaps = Annotated[NDArray[np.float32], "(n_latents, h, w), activations over the positions of one image"]
Boxes = Annotated[NDArray[np.float32], "(n, 4) xyxy, pixels of the model's input"]
