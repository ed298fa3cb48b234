"""Questions to language models: servers that fail, answers that are none, pictures that stay, runs that go on."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from helpers_language import FAULTS, Asked, language_server
from PIL import Image, PngImagePlugin

from mammosae_plugin.adapters.language_models import (
    Answer,
    NoAnswer,
    Question,
    SendingPermission,
    host_of,
    is_loopback,
    openai_model,
    png_of,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.interpretation.answers import misfit, parse_object
from mammosae_plugin.interpretation.asking import ask_all

WORD = {
    "type": "object",
    "properties": {"word": {"type": "string", "minLength": 1}},
    "required": ["word"],
    "additionalProperties": False,
}
LONG = 60.0
"""Seconds that no plain answer takes, however busy the machine."""


def question(text: str = "hello", *pictures: Image.Image) -> Question:
    return Question((text, *pictures), WORD, "You say one word.")


def questions(n: int) -> dict[str, Question]:
    return {f"q{number}": question(f"word {number}") for number in range(n)}


def echo(asked: Asked) -> str:
    return json.dumps({"word": asked.texts[0]})


@dataclass
class Said:
    """A model in this process that says what it is given, in turn; an exception is raised."""

    says: list[str | Exception]
    name: str = "said"
    host: str | None = None
    seeds: list[int] = field(default_factory=list)

    def answer(self, question: Question, *, seed: int) -> Answer:  # noqa: ARG002 - the protocol's
        self.seeds.append(seed)
        said = self.says.pop(0)
        if isinstance(said, Exception):
            raise said
        return Answer(said, 0.0)


def test_a_server_gets_texts_pictures_seed_and_schema_and_its_answer_and_tokens_come_back():
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    with language_server(echo) as server:
        model = openai_model("some-model", server.url)
        answer = model.answer(question("hello", picture), seed=7)
    (asked,) = server.asked
    assert json.loads(answer.text) == {"word": "hello"} and (answer.n_input_tokens, answer.n_output_tokens) == (100, 7)
    assert (asked.model, asked.seed, asked.texts) == ("some-model", 7, ["hello"])
    assert np.array_equal(np.asarray(asked.pictures[0]), np.asarray(picture))
    assert asked.body["response_format"]["json_schema"]["schema"] == WORD
    assert asked.system.startswith("You say one word.") and json.dumps(WORD) in asked.system


def test_a_model_that_its_server_calls_by_a_path_is_told_without_it():
    with language_server(echo) as server:
        model = openai_model("/srv/models/some-model", server.url)
        model.answer(question(), seed=0)
    assert model.name == "some-model" and server.asked[0].model == "/srv/models/some-model"


def test_pictures_go_out_as_pixels_alone(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("PatientName", "NOBODY^KNOWS")
    path = tmp_path / "patient_17.png"
    Image.new("L", (8, 8), 3).save(path, pnginfo=notes, dpi=(72, 72), icc_profile=b"profile of NOBODY", exif=b"Exif")
    with language_server(echo) as server, Image.open(path) as picture:
        openai_model("m", server.url).answer(question("hello", picture), seed=0)
    (sent,) = server.asked[0].files
    assert b"NOBODY" in path.read_bytes() and sent[:4] == b"\x89PNG"
    kinds = {sent[place - 4 : place] for place in range(4, len(sent)) if sent[place - 4 : place].isalpha()}
    assert {b"IHDR", b"IDAT", b"IEND"} <= kinds and not kinds & {b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"iCCP", b"pHYs"}
    assert b"patient_17" not in json.dumps(server.asked[0].body).encode()


def test_what_is_no_picture_of_8_bits_is_refused():
    for part in (np.zeros((4, 4)), b"\x89PNG", None):
        with pytest.raises(InputError, match="part 2 of a question"):
            question("hello", part)
    for kind in (np.uint16, np.int32, np.float32):
        with pytest.raises(InputError, match="scale it to 8 bits"):
            png_of(Image.fromarray(np.full((4, 4), 300, kind)))
    with pytest.raises(InputError, match="picture is a ndarray"):
        png_of(np.zeros((4, 4)))


@pytest.mark.parametrize("fault", ["429", "500", "break off"])
def test_a_server_that_is_busy_fails_or_breaks_off_is_asked_again(fault):
    with language_server(echo, [fault]) as server:
        answer = openai_model("m", server.url, retries=1, timeout=LONG).answer(question(), seed=0)
    assert json.loads(answer.text) == {"word": "hello"} and server.n_calls == 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [("hang", "silent"), ("break off", "connection"), ("429", "429"), ("500", "fails"), ("not json", "no chat")],
)
def test_a_question_without_an_answer_is_told_and_asked_in_the_next_run(tmp_path, fault, said):
    journal = tmp_path / "answers.jsonl"
    with language_server(echo, [fault, "", fault]) as server:
        patient = openai_model("m", server.url, retries=0, timeout=LONG)
        one = openai_model("m", server.url, retries=0, timeout=0.05) if fault == "hang" else patient
        with pytest.raises(NoAnswer, match=said) as caught:
            one.answer(question(), seed=0)
        server.has_got(1)
        assert not caught.value.final
        assert ask_all(patient, {"q0": question("word 0")}, journal)["q0"].found == {"word": "word 0"}
        with pytest.raises(InputError, match=r"m gave no answer \(.*is kept"):
            ask_all(one, {"q1": question("word 1")}, journal)
        server.has_got(3)
        replies = ask_all(patient, questions(2), journal)
    assert [reply.found for reply in replies.values()] == [{"word": "word 0"}, {"word": "word 1"}]
    assert server.n_calls == 4


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"null", b"3", b'"hi"', b"[1]", b"{}", b'data: {"choices": []}', b"[" * 100_000,
        '{"choices": [{"message": {"content": "\u00e9"}}]}'.encode("latin-1"),
        b'{"choices": {"0": 1}}', b'{"choices": "abc"}', b'{"choices": ["abc"]}', b'{"choices": [null]}',
        b'{"choices": [{"message": null}]}', b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{"message": {"content": [{"image": 1}]}}]}', b'{"choices": [{"message": {"content": [["a"]]}}]}',
    ],
)  # fmt: skip
def test_what_is_no_chat_completion_is_no_answer_and_asked_in_the_next_run(tmp_path, body):
    bodies = [body]
    with language_server(lambda asked: bodies.pop() if bodies else echo(asked)) as server:
        model = openai_model("m", server.url, timeout=LONG)
        first = ask_all(model, questions(2), tmp_path / "answers.jsonl")
        assert "no chat completion" in first["q0"].failure and first["q1"].found == {"word": "word 1"}
        assert ask_all(model, questions(2), tmp_path / "answers.jsonl")["q0"].found == {"word": "word 0"}
    assert server.n_calls == 3


@pytest.mark.parametrize(
    "usage", ['{"prompt_tokens": NaN, "completion_tokens": 1e400}', "[1]", '{"prompt_tokens": "many"}', "null"]
)
def test_tokens_are_whole_numbers_or_unknown_and_texts_in_parts_are_joined(tmp_path, usage):
    parts = [{"type": "text", "text": '{"word": '}, {"type": "text", "text": '"a"}'}]
    body = f'{{"choices": [{{"message": {{"content": {json.dumps(parts)}}}}}], "usage": {usage}}}'.encode()
    with language_server(lambda _: body) as server:
        reply = ask_all(openai_model("m", server.url), questions(1), tmp_path / "answers.jsonl")["q0"]
    assert reply.found == {"word": "a"} and (reply.answer.n_input_tokens, reply.answer.n_output_tokens) == (None, None)


def test_an_answer_that_drips_is_given_up(monkeypatch):
    monkeypatch.setattr("mammosae_plugin.adapters.language_models._TOTAL", 1e-4)
    with language_server(echo, ["drip"]) as server, pytest.raises(NoAnswer, match="drips"):
        openai_model("m", server.url, timeout=LONG, retries=0).answer(question(), seed=0)


def test_how_long_a_server_asks_to_wait_is_told():
    with language_server(echo, ["503"]) as server, pytest.raises(NoAnswer, match="asks to wait 3600 s"):
        openai_model("m", server.url, retries=0).answer(question(), seed=0)


def test_one_question_without_an_answer_stops_no_others():
    replies = ask_all(Said([NoAnswer("it hung"), '{"word": "b"}']), questions(2), None)
    assert replies["q0"].found is None and replies["q0"].failure == "no answer: it hung"
    assert replies["q1"].found == {"word": "b"}


def test_a_dead_server_is_one_line_and_not_many_time_outs():
    with language_server(echo) as server:
        url = server.url
    model = openai_model("m", url, retries=0)
    with pytest.raises(InputError, match="m gave no answer to 3 questions in a row"):
        ask_all(model, questions(250), None)


@pytest.mark.parametrize("fault", ["401", "404"])
def test_a_wrong_key_model_or_address_is_said_at_once(fault):
    with language_server(echo, [fault]) as server, pytest.raises(InputError, match="key|has no m"):
        openai_model("m", server.url).answer(question(), seed=0)
    assert server.n_calls == 1


def test_a_server_that_sends_requests_on_to_another_is_not_followed():
    with (
        language_server(echo) as other,
        language_server(echo, ["redirect"], elsewhere=other.url) as server,
        pytest.raises(InputError, match="not followed"),
    ):
        openai_model("m", server.url).answer(question(), seed=0)
    assert (server.n_calls, other.n_calls) == (1, 0)


def test_of_a_server_that_forces_no_schema_it_is_asked_in_words():
    with language_server(echo, ["400 response_format"] * 9) as server:
        model = openai_model("m", server.url)
        for _ in range(2):
            assert model.answer(question(), seed=0).text == '{"word": "hello"}'
    forms = [asked.body.get("response_format", {}).get("json_schema", {}).get("strict") for asked in server.asked]
    assert forms == [True, False, None, None]


def test_a_server_that_keeps_to_no_schema_to_the_letter_is_asked_loosely():
    with language_server(echo, ["400 response_format"]) as server:
        model = openai_model("m", server.url)
        for _ in range(2):
            assert model.answer(question(), seed=0).text == '{"word": "hello"}'
    assert [asked.body["response_format"]["json_schema"]["strict"] for asked in server.asked] == [True, False, False]


def test_of_a_setting_that_a_server_refuses_only_that_is_left_out():
    with language_server(echo, ["400 max_tokens", "400 temperature"]) as server:
        openai_model("m", server.url, max_tokens=9).answer(question(), seed=3)
    last = server.asked[-1].body
    assert last["max_completion_tokens"] == 9 and not {"max_tokens", "temperature"} & last.keys()
    assert last["seed"] == 3 and "response_format" in last


def test_a_question_that_a_server_refuses_is_a_failure_and_asked_by_the_next_run(tmp_path):
    with language_server(echo, ["400"] * 3) as server:
        model = openai_model("m", server.url)
        replies = ask_all(model, questions(2), tmp_path / "answers.jsonl")
        assert replies["q0"].found is None and "refuses (400" in replies["q0"].failure
        assert replies["q1"].found == {"word": "word 1"}
        assert server.n_calls == 4  # with a schema, loosely, without, and the second question
        assert ask_all(model, questions(2), tmp_path / "answers.jsonl")["q0"].found == {"word": "word 0"}
    assert server.n_calls == 5


def test_a_server_that_refuses_the_first_five_questions_is_unfit_and_one_that_refuses_later_ones_is_not():
    with pytest.raises(InputError, match=r"no answer to 5 questions in a row \(no pictures\)"):
        ask_all(Said([NoAnswer("no pictures", final=True)] * 5), questions(250), None)
    later = ask_all(Said(['{"word": "a"}', *[NoAnswer("not this", final=True)] * 9]), questions(10), None)
    assert [reply.failure for reply in later.values()] == ["", *["no answer: not this"] * 9]
    assert ask_all(Said([NoAnswer("not this", final=True)]), questions(1), None)["q0"].found is None


NONSENSE = ["bad json", "truncated", "wrong schema", "empty", "no choices"]


@pytest.mark.parametrize("fault", NONSENSE)
def test_nonsense_is_asked_again_with_another_seed_and_then_a_failure(fault, tmp_path):
    with language_server(echo, [fault, "", fault, fault, fault]) as server:
        model = openai_model("m", server.url)
        for _ in range(2):
            replies = ask_all(model, questions(2), tmp_path / "answers.jsonl", seed=5)
            assert replies["q0"].found == {"word": "word 0"} and replies["q0"].tries == 2
            assert replies["q1"].found is None and replies["q1"].failure and replies["q1"].tries == 3
    assert [asked.seed for asked in server.asked] == [5, 6, 5, 6, 7]


@pytest.mark.parametrize("fault", ["prose", "fence"])
def test_words_and_fences_around_an_answer_do_not_matter(fault):
    with language_server(echo, [fault]) as server:
        assert ask_all(openai_model("m", server.url), questions(1), None)["q0"].found == {"word": "word 0"}


def test_an_answer_that_the_asker_refuses_is_nonsense():
    replies = ask_all(
        Said(['{"word": "no"}', '{"word": "yes"}']),
        questions(1),
        None,
        check=lambda found: "a refusal" if found["word"] == "no" else None,
    )
    assert replies["q0"].found == {"word": "yes"} and replies["q0"].tries == 2


def test_a_run_goes_on_where_it_was_and_other_questions_models_and_seeds_are_asked_anew(tmp_path):
    journal = tmp_path / "answers.jsonl"
    picture = Image.new("L", (4, 4), 9)
    asked = {**questions(3), "picture": question("look", picture)}
    with language_server(echo) as server:
        model = openai_model("m", server.url)
        first = ask_all(model, asked, journal)
        assert server.n_calls == 4
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed while it wrote
        assert ask_all(model, asked, journal) == first and server.n_calls == 6
        assert [line["key"] for line in map(json.loads, journal.read_text().splitlines())] == [
            "q0",
            "q1",
            "q2",
            "picture",
        ]
        brighter = {"picture": question("look", Image.new("L", (4, 4), 10))}
        others = [
            (model, {"q0": question("another")}, 0),
            (model, brighter, 0),
            (model, {"q0": asked["q0"]}, 1),
            (openai_model("m2", server.url), {"q0": asked["q0"]}, 0),
            (openai_model("m", server.url, temperature=1), {"q0": asked["q0"]}, 0),
        ]
        for number, (who, what, seed) in enumerate(others, start=7):
            ask_all(who, what, journal, seed=seed)
            assert server.n_calls == number
        assert ask_all(model, asked, journal) == first and server.n_calls == 11


def test_whatever_a_server_says_can_be_kept(tmp_path):
    said = 'a lone half of a sign \ud83d, \x00 and\nnew lines {"word": "a"}'
    for _ in range(2):
        reply = ask_all(Said([said]), questions(1), tmp_path / "answers.jsonl")["q0"]
        assert reply.text == said and reply.found == {"word": "a"}


def test_every_answer_is_on_the_disk_before_the_next_question_goes_out(tmp_path):
    journal = tmp_path / "new" / "answers.jsonl"
    held = []

    def counts(asked: Asked) -> str:
        held.append(len(journal.read_text().splitlines()) if journal.exists() else 0)
        return echo(asked)

    with language_server(counts) as server:
        ask_all(openai_model("m", server.url), questions(4), journal)
    assert held == [0, 1, 2, 3]


def test_a_damaged_journal_is_named_with_its_line(tmp_path):
    (tmp_path / "answers.jsonl").write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1 of .*answers.jsonl is no answer"):
        ask_all(Said([]), questions(1), tmp_path / "answers.jsonl")


def test_questions_are_made_when_their_turn_comes():
    made = []

    def make(number: int) -> Question:
        made.append(number)
        return question(str(number))

    model = Said(['{"word": "a"}', '{"word": "b"}'])
    ask_all(model, {"a": lambda: make(0), "b": lambda: make(len(model.seeds))}, None)
    assert made == [0, 1]


def test_pictures_go_to_no_other_machine_without_a_permission_and_not_unencrypted(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    picture = Image.new("L", (4, 4))
    with pytest.raises(InputError, match=r"stay on this machine.*192\.0\.2\.1"):
        openai_model("m", "https://192.0.2.1/v1", key_from="OPENAI_API_KEY").answer(question("x", picture), seed=0)
    allowed = SendingPermission("phantom", "none", "192.0.2.1")
    with pytest.raises(InputError, match="unencrypted"):
        openai_model("m", "http://192.0.2.1/v1", key_from="OPENAI_API_KEY", permission=allowed).answer(
            question("x", picture), seed=0
        )
    with pytest.raises(InputError, match=r"permission is for 192\.0\.2\.1, but https://192\.0\.2\.2/v1"):
        openai_model("m", "https://192.0.2.2/v1", key_from="OPENAI_API_KEY", permission=allowed)


def test_a_key_comes_from_the_environment_and_none_goes_to_this_machine_unasked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="the environment variable OPENAI_API_KEY"):
        openai_model("m", "https://api.openai.com/v1")
    with pytest.raises(InputError, match="MY_KEY"):
        openai_model("m", "http://127.0.0.1:1/v1", key_from="MY_KEY")
    for unfit in (" ", "k\u00e9y-of-mine", "two\nkey-of-mine", "a\tkey-of-mine", "a\x7fkey-of-mine"):
        monkeypatch.setenv("MY_KEY", unfit)
        with pytest.raises(InputError, match="MY_KEY") as caught:
            openai_model("m", "http://127.0.0.1:1/v1", key_from="MY_KEY")
        assert "of-mine" not in str(caught.value)
    with pytest.raises(InputError, match="not the key itself") as caught:
        openai_model("m", "http://127.0.0.1:1/v1", key_from="sk-abcdef")
    assert "abcdef" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("MY_KEY", "mine\n")
    with language_server(echo) as server:
        openai_model("m", server.url).answer(question(), seed=0)
        openai_model("m", server.url, key_from="MY_KEY").answer(question(), seed=0)
    keys = [asked.headers.get("authorization", "") for asked in server.asked]
    assert "secret" not in keys[0] and keys[1] == "Bearer mine"
    assert openai_model("m", "https://api.openai.com/v1").host == "api.openai.com"
    for other in ("192.0.2.1", "openai.com.example.org", "notopenai.com"):
        with pytest.raises(InputError, match="OpenAI alone.*--key-from"):
            openai_model("m", f"https://{other}/v1")
        assert openai_model("m", f"https://{other}/v1", key_from="OPENAI_API_KEY").host == other


def test_of_the_environment_a_server_gets_its_key_alone(monkeypatch):
    monkeypatch.setenv("MY_KEY", "mine")
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "a-house")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer a-house\nX-House: a-house")
    with language_server(echo) as server:
        openai_model("m", server.url, key_from="MY_KEY").answer(question(), seed=0)
    assert server.asked[0].headers["authorization"] == "Bearer mine"
    assert "a-house" not in str(server.asked[0].headers)


def test_a_key_that_a_server_tells_is_neither_shown_nor_kept(monkeypatch, tmp_path):
    journal = tmp_path / "answers.jsonl"
    key = "abcd(efgh" * 12  # longer than what is told of an error, so that no part of it is left over
    monkeypatch.setenv("MY_KEY", key)
    with language_server(lambda asked: json.dumps({"word": asked.headers["authorization"]}), ["402"]) as server:
        model = openai_model("m", server.url, key_from="MY_KEY")
        replies = ask_all(model, questions(2), journal)
    assert "refuses (402" in replies["q0"].failure and "Bearer [key]" in replies["q0"].failure
    assert replies["q1"].found == {"word": "Bearer [key]"}
    assert "efgh" not in str(replies).lower() and "efgh" not in journal.read_text()


def test_keys_of_others_in_what_a_server_says_are_not_shown():
    said = b'{"error": {"message": "upstream refused Bearer xyz.123, then sk-proj-abc_123"}}'
    with language_server(lambda _: said) as server, pytest.raises(NoAnswer, match="upstream refused") as caught:
        openai_model("m", server.url).answer(question(), seed=0)
    assert "xyz" not in str(caught.value) and "abc_123" not in str(caught.value)


def test_a_proxy_of_the_environment_does_not_get_what_is_for_this_machine(monkeypatch):
    with language_server(lambda _: "{}") as proxy, language_server(echo) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert openai_model("m", server.url, retries=0).answer(question(), seed=0).text == '{"word": "hello"}'
    assert proxy.n_calls == 0 and server.n_calls == 1


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST")],
        *[(host, False) for host in ("0.0.0.0", "127.1", "2130706433", "localhost.example.org", "127.0.0.1.org")],
        *[(host, False) for host in ("::", "::ffff:192.0.2.1", "192.168.0.1", "")],
    ],
)  # fmt: skip
def test_only_the_loopback_addresses_are_this_machine(host, here):
    assert is_loopback(host) is here


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000", "ftp://127.0.0.1/v1", "http://", "http://127.0.0.1:x/v1", "http://user:word@127.0.0.1/v1",
        "http://127.0.0.1@192.0.2.1/v1", "http://[::1/v1", "http://127.0.0.1/v1?to=x", "",
        "http://127.0.0.1\n.example.org/v1", "http://127.0.0.1 /v1", "http://127\u30020\u30020\u30021/v1",
        "http://127.0.0.1#@192.0.2.1/", "http://local\thost/v1", "http://\u24dbocalhost/v1",
        "http://127.0.0.1\\@192.0.2.1/v1",
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_server_is_refused(url):
    with pytest.raises(InputError):
        openai_model("m", url)
    with pytest.raises(InputError):
        host_of(url)


NAMES = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ('{"name": "a"}', "a"),
        ('{"name": "a", "why": "b"}', "a"),
        ('<think>{"name": "b"}?</think> {"name": "a"}', "a"),
        ('{"name": "a"} {"name": "a"}', "a"),
        ('a set {x, y} and {"name": "a {b}"}', "a {b}"),
        ('{"name": "a"} or {"name": "b"}', None),
        ('{"outer": {"name": "a"}', None),
        ('{"outer": {"name": "a"} wrong} ', None),
        ('{"name": "a", "name": "b"}', None),
        ('[{"name": 5}]', None),
        ('{"name": NaN}', None),
        ('{"name": "half a sign \\ud83d"}', None),
        ("{" * 5000, None),
        ("", None),
    ],
)
def test_an_answer_is_one_whole_object_or_none(answer, name):
    found, why = parse_object(answer, NAMES)
    assert found == (None if name is None else {"name": name}) and bool(why) is (name is None)
    assert ("half a sign" in why) is ("half a sign" in answer)


@pytest.mark.parametrize(
    ("schema", "fits", "does_not"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 3}, [1, 3, 2.0], [0, 4, 1.5, True, "1"]),
        ({"type": ["string", "null"], "minLength": 1, "maxLength": 2}, ["a", None], ["", "abc", 1]),
        ({"type": "array", "items": {"enum": [1, "a"]}}, [[1], ["a", 1], []], [[True], [1, "b"], {}]),
        ({"minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [1, 2, 3]]),
        ({"type": "boolean"}, [True], [1, None]),
        ({"type": "number"}, [1, 0.5], [float("inf"), "1"]),
    ],
)  # fmt: skip
def test_schemas_are_checked(schema, fits, does_not):
    assert [misfit(value, schema) for value in fits] == [None] * len(fits)
    assert all(misfit(value, schema) for value in does_not)


def test_a_schema_that_would_not_be_checked_is_refused():
    with pytest.raises(InputError, match="pattern"):
        misfit("a", {"type": "string", "pattern": "b"})


def test_the_servers_faults_are_all_tried_here():
    source = Path(__file__).read_text()
    assert all(f'"{fault}"' in source for fault in FAULTS)
