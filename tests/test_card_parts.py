"""Cards that programs and people write together: what people wrote stays, and what changes is said."""

import pytest
import yaml

from mammosae_plugin.errors import InputError
from mammosae_plugin.hub.card_parts import FRONT_MATTER, Joined, join_cards, mark

TEXT = "# SAEs\n\nFirst words.\n\n## Load\n\n```markdown\n## no section\n```\n\n## Measured\n\n| l0 |\n|---|\n| 5 |"
FRONT = "license: mit\ntags:\n- saelens\n"


def card(text: str = TEXT, front: str = FRONT) -> str:
    return f"---\n{front}---\n\n{mark(text)}\n"


def without_marks(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("<!-- mammosae:"))


def test_a_new_card_without_marks_is_taken_as_it_is() -> None:
    assert join_cards(card(), "# Mine") == Joined("# Mine", ())


def test_front_matter_that_cannot_be_read_is_not_lost() -> None:
    with pytest.raises(InputError, match="front matter of the card on the Hub is no YAML"):
        join_cards(card(front="license: mit\nlanguage: [en\n"), card())


def test_every_section_is_marked_and_fenced_lines_begin_none() -> None:
    assert mark(TEXT).count("<!-- mammosae:begin ") == 3
    assert without_marks(mark(TEXT)).split() == TEXT.split()


def test_what_people_wrote_between_around_and_below_stays_where_it_was() -> None:
    there = card().replace(
        "\n\n<!-- mammosae:begin measured", "\n\n## Thanks\n\nTo the readers.\n\n<!-- mammosae:begin measured"
    )
    there = there.replace("---\n\n<!--", "---\n\nA banner.\n\n<!--") + "\nContact us.\n"
    joined = join_cards(there, card(TEXT.replace("| 5 |", "| 6 |")))
    order = ["A banner.", "# SAEs", "## Load", "## Thanks", "To the readers.", "## Measured", "| 6 |", "Contact us."]
    places = [joined.text.index(words) for words in order]
    assert places == sorted(places) and "| 5 |" not in joined.text
    told = "\n".join(joined.changes)
    assert "written anew: measured" in told and "load" not in told
    for kept in ("A banner.", "## Thanks To the readers.", "Contact us."):
        assert f'kept as people wrote it: "{kept}"' in told
    assert join_cards(joined.text, joined.text).text == joined.text


def test_new_sections_follow_the_one_before_and_old_ones_are_taken_out() -> None:
    new = TEXT.replace("## Measured", "## Limits\n\nFew.\n\n## Results")
    joined = join_cards(card() + "\nTheirs.\n", card(new))
    assert [line for line in joined.text.splitlines() if line.startswith("## ")][-2:] == ["## Limits", "## Results"]
    assert joined.text.endswith("Theirs.\n") or "Theirs." in joined.text
    told = "\n".join(joined.changes)
    assert "new: limits, results" in told and "taken out: measured" in told


def test_a_card_without_marks_is_all_theirs_and_stays_below() -> None:
    joined = join_cards("# Mine\n\n## Load\n\nby hand\n", card())
    assert joined.text.index("## Measured") < joined.text.index("# Mine") < joined.text.index("by hand")


def test_what_was_said_by_options_stays_where_none_are_given() -> None:
    said = TEXT.replace("## Load", "## About\n\nAuthors: A. B.\n\n## Load")
    assert "Authors: A. B." in join_cards(card(said), card()).text
    other = join_cards(card(said), card(said.replace("A. B.", "C. D."))).text
    assert "Authors: C. D." in other and "A. B." not in other


OURS, PAPER, CODE = (f"- {name}: [x](https://example.org/{name})" for name in ("SAEs", "paper", "code"))


@pytest.mark.parametrize(
    ("there", "now", "kept", "gone"),
    [
        (("## About\n\nOld words.\n\nAuthors: A. B.",), ("## About\n\nNew words.",), ["New words.", "A. B."], ["Old"]),
        (("## About\n\nOld words.",), ("## About\n\nAuthors: C. D.",), ["Old words.\n\nAuthors: C. D."], []),
        ((f"## Links\n\n{OURS}\n{PAPER}",), (f"## Links\n\n{OURS}",), [f"{OURS}\n{PAPER}"], []),
        ((f"## Links\n\n{PAPER}",), (f"## Links\n\n{OURS}\n{CODE}",), [f"{OURS}\n{CODE}"], [PAPER]),
        ((f"## Links\n\n{OURS}\n{PAPER}",), (), [f"## Links\n\n{PAPER}"], [OURS]),
        (("## About\n\nOld words.", f"## Links\n\n{PAPER}"), (), ["Old words.", PAPER], []),
    ],
)
def test_authors_description_and_links_stay_each_by_itself(
    there: tuple[str, ...], now: tuple[str, ...], kept: list[str], gone: list[str]
) -> None:
    old, new = (card("\n\n".join(["# SAEs", *parts, "## Load\n\nSo."])) for parts in (there, now))
    joined = join_cards(old, new).text
    assert all(words in joined for words in kept) and not any(words in joined for words in gone)
    assert joined.count("begin about") + joined.count("begin links") == len(there)
    assert joined.index("begin load") > max(joined.find(f"begin {name}") for name in ("about", "links"))


@pytest.mark.parametrize(
    ("there", "key", "value", "said"),
    [
        ("license: mit\nlanguage: en\ntags:\n- saelens\n", "language", "en", "kept: language"),
        ("license: apache-2.0\ntags:\n- saelens\n", "license", "mit", "changed: license"),
        ("license: mit\ntags:\n- breast\n", "tags", ["saelens", "breast"], "changed: tags"),
        ("license: mit\nbase_model: old/one\ntags:\n- saelens\n", "base_model", None, "changed: base_model"),
    ],
)
def test_entries_of_the_front_matter_that_are_not_ours_stay(there: str, key: str, value: object, said: str) -> None:
    joined = join_cards(card(front=there), card())
    front = FRONT_MATTER.match(joined.text)
    assert front and yaml.safe_load(front[1]).get(key) == value
    assert said in "\n".join(joined.changes)
