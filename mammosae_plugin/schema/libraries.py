"""Where networks come from, as `adapters.classifier.library_of` names it: what readers are told, and what is cited."""

__all__ = ["cited", "LIBRARIES", "libraries_used", "library_title", "MAMMO_CLIP"]

from collections.abc import Iterable, Mapping
from typing import Any

MAMMO_CLIP = "mammo_clip"
LIBRARIES: dict[str, tuple[str, str]] = {
    MAMMO_CLIP: (
        "Mammo-CLIP",
        "S. Ghosh, C. B. Poynton, S. Visweswaran, K. Batmanghelich. Mammo-CLIP: A Vision Language Foundation Model to "
        "Enhance Data Efficiency and Robustness in Mammography. MICCAI 2024.",
    ),
    "timm": ("timm", "R. Wightman. PyTorch Image Models. 2019. doi:10.5281/zenodo.4414861."),
    "torchvision": (
        "torchvision",
        "TorchVision maintainers and contributors. TorchVision: PyTorch's Computer Vision library. 2016.",
    ),
    "transformers": (
        "transformers",
        "T. Wolf and others. Transformers: State-of-the-Art Natural Language Processing. EMNLP 2020, System "
        "Demonstrations.",
    ),
    "open_clip": (
        "OpenCLIP",
        "G. Ilharco, M. Wortsman, R. Wightman and others. OpenCLIP. 2021. doi:10.5281/zenodo.5143773.",
    ),
    "function": ("a function", ""),
}
"""By name: what readers know it as, and its citation."""


def library_title(name: str | None) -> str | None:
    """What readers know a library as."""
    return LIBRARIES[name][0] if name in LIBRARIES else name


def libraries_used(models: Iterable[Mapping[str, Any]], config: Mapping[str, Any]) -> list[str]:
    """Those of a study's models; of a study from before they were noted, timm where it was named, else Mammo-CLIP."""
    of_timm = {model["name"] for model in config.get("models", []) if model.get("timm")}
    used = [row.get("library", "timm" if row["name"] in of_timm else MAMMO_CLIP) for row in models]
    return list(dict.fromkeys(used))


def cited(names: Iterable[str]) -> list[str]:
    """The citations of libraries, each once; of a function there is none."""
    return [text for name in dict.fromkeys(names) if (text := LIBRARIES.get(name, ("", ""))[1])]
