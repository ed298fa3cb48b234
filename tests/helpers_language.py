"""Language models for tests: a server on this machine whose answers a function makes, well or badly as planned."""

import base64
import io
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Asked:
    """A request as the server got it."""

    body: dict[str, Any]
    headers: dict[str, str]
    path: str

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def seed(self) -> int | None:
        return self.body.get("seed")

    @property
    def _parts(self) -> list[dict[str, Any]]:
        return [part for one in self.body["messages"] if isinstance(one["content"], list) for part in one["content"]]

    @property
    def system(self) -> str:
        return str(self.body["messages"][0]["content"])

    @property
    def texts(self) -> list[str]:
        """The texts of the question, in order, without the system's."""
        return [part["text"] for part in self._parts if part["type"] == "text"]

    @property
    def files(self) -> list[bytes]:
        """The pictures as they were sent."""
        urls = [part["image_url"]["url"] for part in self._parts if part["type"] == "image_url"]
        return [base64.b64decode(url.partition(",")[2]) for url in urls]

    @property
    def pictures(self) -> list[Image.Image]:
        return [Image.open(io.BytesIO(held)) for held in self.files]


@dataclass
class LanguageServer:
    """What `language_server` gives."""

    url: str
    asked: list[Asked] = field(default_factory=list)

    @property
    def n_calls(self) -> int:
        return len(self.asked)

    def has_got(self, n: int) -> None:
        """Wait until so many requests have come: who gives one up may be ahead of the server."""
        while self.n_calls < n:
            time.sleep(0.001)


FAULTS = (
    *("prose", "fence", "bad json", "truncated", "wrong schema", "empty", "no choices", "not json"),
    *("429", "500", "400", "401", "404", "redirect", "hang", "break off"),
    *("402", "503", "drip"),
)
"""What a server can do in place of a plain answer: the first two are answers all the same."""


@contextmanager
def language_server(
    answer: Callable[[Asked], str | bytes], faults: Sequence[str] = (), *, elsewhere: str = ""
) -> Iterator[LanguageServer]:
    """A server on 127.0.0.1 with /v1/chat/completions.

    Args:
        answer: what it says, of a request; bytes are the whole body of its response.
        faults: what it does to the first requests, one after the other: "" is a plain answer, the others are of
            `FAULTS`, or "400 " and the setting that it refuses ("402" tells the key that it got, "503" asks to wait for
            an hour); behind the plan all answers are plain.
        elsewhere: the address of another server, where "redirect" sends requests on to.
    """
    assert not {fault for fault in faults if fault and not fault.startswith("400 ")} - {*FAULTS}
    closing = threading.Event()
    guard = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for the client's acknowledgement of its head

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with guard:
                server.asked.append(Asked(body, {name.lower(): said for name, said in self.headers.items()}, self.path))
                number = len(server.asked) - 1
            fault = faults[number] if number < len(faults) else ""
            if fault == "hang":
                closing.wait()
                self.close_connection = True
            elif fault == "break off":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
            elif fault == "redirect":
                self._send(307, b"", Location=f"{elsewhere}/chat/completions")
            elif fault == "400 response_format" and "response_format" not in body:
                self._answer(server.asked[number])
            elif fault[:3].isdecimal():
                key = self.headers["Authorization"] if fault == "402" else ""
                told = {
                    "error": {"message": f"no: {fault}{key} {key[7:]} {key[7:].upper()}", "param": fault[4:] or None}
                }
                wait = {"Retry-After": "3600"} if fault == "503" else {"retry-after-ms": "1"}
                self._send(int(fault[:3]), json.dumps(told).encode(), **wait)
            elif fault == "drip":
                self.send_response(200)
                self.send_header("Connection", "close")
                self.end_headers()
                with suppress(OSError):  # whoever asked has gone
                    for _ in range(200):
                        self.wfile.write(b" ")
                        closing.wait(0.01)
                    self.wfile.write(b'{"choices": []}')
                self.close_connection = True
            elif fault == "not json":
                self._send(200, b"<html>a proxy's page</html>", **{"Content-Type": "text/html"})
            else:
                self._answer(server.asked[number], fault)

        def _answer(self, asked: Asked, fault: str = "") -> None:
            said = answer(asked)
            if isinstance(said, bytes):
                self._send(200, said)
                return
            told = {
                "": said,
                "prose": f"Looking at {{these}} pictures I find:\n{said}\nI hope that this helps.",
                "fence": f"```json\n{said}\n```",
                "bad json": said.replace('"', ""),
                "truncated": '{"outer": ' + said + ', "more": {"na',
                "wrong schema": '{"something": "else"}',
                "empty": "",
                "no choices": "",
            }[fault]
            message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": told}}
            body = {
                "id": "1", "object": "chat.completion", "created": 0, "model": asked.model,
                "choices": [] if fault == "no choices" else [message],
                "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
            }  # fmt: skip
            self._send(200, json.dumps(body).encode())

        def _send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server = LanguageServer(f"http://127.0.0.1:{http.server_address[1]}/v1")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            closing.set()
            http.shutdown()
            thread.join()


class LabelledPictures:
    """Pictures of rows that have labels, which whoever sees their pixels can look up: `WholeImages` for tests."""

    def __init__(self, labels: Sequence[frozenset[str]], seed: int = 0) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
        self._images = [Image.fromarray(one) for one in pixels]
        self._labels = {image.tobytes(): own for image, own in zip(self._images, labels, strict=True)}

    def whole(self, image_row: int) -> Image.Image:
        return self._images[image_row]

    def labels(self, picture: Image.Image) -> frozenset[str]:
        return self._labels[picture.convert("L").tobytes()]


def judging_oracle(pictures: LabelledPictures) -> Callable[[Asked], str]:
    """Answers a judge's questions by the labels of the pictures in them."""

    def answer(asked: Asked) -> str:
        own = [pictures.labels(picture) for picture in asked.pictures]
        said = asked.texts[0]
        if "\nA: " in said:
            names = re.findall(r"^[A-E]: (.*)$", said, re.MULTILINE)
            share = [sum(name in labels for labels in own) for name in names]
            order = sorted(range(len(names)), key=lambda place: (-share[place], place))
            return json.dumps({"order": " > ".join("ABCDE"[place] for place in order)})
        fits = [re.findall(r"^Description: (.*)$", said, re.MULTILINE)[0] in labels for labels in own]
        if "`odd`" in said:
            return json.dumps({"odd": 1 + min(range(len(fits)), key=fits.__getitem__)})
        return json.dumps({"fits": fits})

    return answer


def judging_at_random(seed: int = 0) -> Callable[[Asked], str]:
    """Answers a judge's questions without a look at the pictures."""
    chance = random.Random(seed)

    def answer(asked: Asked) -> str:
        n = len(asked.files)
        if "\nA: " in asked.texts[0]:
            return json.dumps({"order": ", ".join(chance.sample("ABCDE", 5))})
        if "`odd`" in asked.texts[0]:
            return json.dumps({"odd": chance.randint(1, n)})
        return json.dumps({"fits": [chance.random() < 0.5 for _ in range(n)]})

    return answer


_CHAT = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endfor %}"
)


def tiny_vision_model(folder: Path) -> Path:
    """A folder with a LLaVA of two layers and random weights, its tokenizer and image processor, as from the Hub."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", *(f"w{number}" for number in range(59))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=["<image>"], **special)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=16),
        text_config=LlamaConfig(**sizes, vocab_size=len(words), max_position_embeddings=2048, pad_token_id=0),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=16, vision_feature_select_strategy="default", chat_template=_CHAT,
        num_additional_image_tokens=1,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
