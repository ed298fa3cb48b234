"""Score cards on the page of published SAEs: which belongs to which SAE, what is staged, and what the page shows."""

__all__ = ["eval_results_of", "score_cards_of", "shown_score_cards", "stage_score_card"]

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mammosae_plugin.errors import InputError
from mammosae_plugin.files import write_json
from mammosae_plugin.hub.portable import portable
from mammosae_plugin.privacy.guard import let_out
from mammosae_plugin.schema.score_card import (
    BESIDE,
    FIGURE,
    SAE,
    SCORE_CARD,
    SCORES,
    ScoreCard,
    read_score_card,
    score_card_in,
    score_card_of,
)
from mammosae_plugin.visualization.score_card import plot_score_card
from mammosae_plugin.visualization.style import save_figure

Place = str | os.PathLike[str]


def score_cards_of(
    tensors: Mapping[str, str],
    given: Place | Mapping[str, Place] | None,
    beside: Mapping[str, Path | None],
    *,
    min_group: int,
) -> dict[str, ScoreCard]:
    """The score cards of SAEs by id: those given, else those that lie beside them.

    Args:
        tensors: By id the fingerprint of the SAE's tensors.
        given: A folder that `mammosae audit` wrote or its score_card.json; by id where there are several SAEs.
        beside: By id a folder in which, or in `audit` in which, one may lie.
        min_group: The fewest groups whose numbers may go out.

    Raises:
        InputError: A score card of another SAE, of none of these, or of fewer groups.
    """
    places: dict[str, Place] = {}
    if isinstance(given, Mapping):
        places = dict(given)
        if unknown := sorted(set(places) - set(tensors)):
            raise InputError(f"score cards are of {', '.join(unknown)}, but the SAEs are {', '.join(tensors)}")
    elif given is not None:
        if len(tensors) > 1:
            raise InputError(
                f"say which of {', '.join(tensors)} the score card is of (ID=PLACE, score_card={{id: place}})"
            )
        places = dict.fromkeys(tensors, given)
    found = {}
    for name, fingerprint in tensors.items():
        folder = beside.get(name)
        place = places.get(name) or (score_card_in(folder) if folder is not None else None)
        if place is None:
            continue
        card = read_score_card(place)
        if card.sae.get("tensors") != fingerprint:
            raise InputError(
                f"{place} is the score card of another SAE than {name}, whose weights differ; audit this one"
            )
        if int(card.rows.get("n_groups") or 0) < min_group:
            raise InputError(
                f"{place} was scored on {card.rows.get('n_groups')} groups, and {min_group} are the fewest whose "
                "numbers may go out; audit on more, or lower --min-group (min_group)"
            )
        found[name] = card
    return found


def stage_score_card(card: ScoreCard, folder: Path) -> dict[str, Any]:
    """Write a score card and its figure, drawn anew, into the folder of a staged SAE; returns the card's content."""
    said: dict[str, Any] = portable(card.to_json())
    write_json(folder / SCORE_CARD, said)
    save_figure(plot_score_card(card), folder / FIGURE)
    let_out(folder / FIGURE)
    return said


def _cards(saes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ScoreCard]]:
    for sae_id, one in saes.items():
        if one.get("score_card"):
            yield sae_id, score_card_of(one["score_card"], f"{sae_id}/{SCORE_CARD}")


def shown_score_cards(saes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By id what the page shows of an audit: its table, sentences, and the table of what needs no SAE."""
    found = {}
    for sae_id, card in _cards(saes):
        heads, rows = card.table()
        found[sae_id] = {"heads": heads, "rows": rows, "said": [card.described(), *card.sentences(), *card.missing()]}
        beside, rows = card.reference_table()
        found[sae_id]["beside"] = {"said": BESIDE, "heads": beside, "rows": rows}
    return found


def eval_results_of(saes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str | None, str, str, float]]:
    """The SAEs' own scores of their audits: id, split, name of the score, its title with d of the seeds, value."""
    for sae_id, card in _cards(saes):
        compared = [one for one in card.comparisons() if one.d is not None]
        for name in card.scored:
            values = card.values(name, SAE)
            if SCORES[name].better and values:
                told = ", ".join(f"{one.control} {one.d:.1f}" for one in compared if one.score == name)
                title = SCORES[name].title
                yield sae_id, card.rows.get("split"), name, f"{title} (d against {told})" if told else title, values[0]
