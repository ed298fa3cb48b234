"""Language models in this process: image-text-to-text pipelines of transformers, which send nothing anywhere."""

__all__ = ["local_model", "LocalModel"]

import hashlib
import time
from typing import Any

import torch

from mammosae_plugin.adapters.language_models import Answer, Question
from mammosae_plugin.arguments import between, shown, whole
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path

TASK = "image-text-to-text"


def local_model(
    model: Any, *, device: str | None = None, temperature: float = 0.0, max_tokens: int = 1024
) -> "LocalModel":
    """A model of transformers that reads texts and pictures, in this process.

    Args:
        model: its name on the Hub or its folder, such as "google/medgemma-4b-it"; or a pipeline that is loaded
            (`transformers.pipeline("image-text-to-text", ...)`).
        device: where it runs; None: the first GPU, or else the CPU. A loaded pipeline stays where it is.
        temperature: 0 for the likeliest answer.
        max_tokens: longest answer.

    Raises:
        InputError: transformers is not installed, or there is no such model, or it reads no pictures.

    Example:
        >>> model = local_model("google/medgemma-4b-it")   # doctest: +SKIP
    """
    settings = {
        "temperature": between(temperature, "temperature", 0, 2),
        "max_tokens": whole(max_tokens, "max_tokens", least=1),
    }
    if isinstance(model, str):
        name, pipe = model, _pipeline(model, device)
    elif getattr(model, "task", None) == TASK and callable(model):
        name, pipe = str(getattr(model.model, "name_or_path", "") or type(model.model).__name__), model
    else:
        raise InputError(f"the model is {shown(model)}: give a name, or a transformers pipeline of task {TASK}")
    is_folder = local_path(name).is_dir()  # whose place on this machine is nobody's business
    return LocalModel(
        local_path(name).resolve().name if is_folder else name, pipe, settings | {"weights": _weights(pipe)}
    )


class LocalModel:
    """A `LanguageModel` of transformers; `local_model` makes it.

    Attributes:
        name: the model's name on the Hub, or that of its folder.
        host: None, as nothing leaves this process.
        settings: temperature, longest answer, and a digest of some of its weights, which tells versions apart.
    """

    host: str | None = None

    def __init__(self, name: str, pipe: Any, settings: dict[str, Any]) -> None:
        self.name, self.settings, self._pipe = name, settings, pipe

    def answer(self, question: Question, *, seed: int) -> Answer:
        """Answer one question; the same one with the same seed alike."""
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part.convert("RGB")}
            for part in question.parts
        ]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": question.instruction}]},
            {"role": "user", "content": content},
        ]
        temperature = self.settings["temperature"]
        drawn = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        started = time.monotonic()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = self._pipe(
                text=messages,
                return_full_text=False,
                generate_kwargs={"max_new_tokens": self.settings["max_tokens"], **drawn},
            )
        text = str(found[0]["generated_text"])
        return Answer(text, time.monotonic() - started)


def _weights(pipe: Any) -> str:
    """A digest of the first numbers of every tensor, which a training changes; all of them would take minutes."""
    found = hashlib.sha256()
    for name, tensor in pipe.model.state_dict().items():
        first = tensor.detach().flatten()[:16].float().cpu().numpy()
        found.update(f"{name} {tuple(tensor.shape)}".encode() + first.tobytes())
    return found.hexdigest()


def _pipeline(name: str, device: str | None) -> Any:
    try:
        from transformers import pipeline
    except ImportError as error:
        raise InputError("local models need transformers: pip install 'mammosae-plugin[language]'") from error
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    make: Any = pipeline
    try:
        return make(TASK, model=name, device=torch.device(place), model_kwargs={"torch_dtype": "auto"})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"transformers cannot load {name} as {TASK} ({said[:200]}); check the name, log in with `hf auth login` if "
            "its page asks for its terms to be accepted, or start a server for it"
        ) from error
