"""Whether latents are named after labels alone: what else is known of images may tell of sites, machines, patients."""

__all__ = ["are_labels"]

from collections.abc import Iterable, Mapping
from typing import Any

from mammosae_plugin.schema.names_of_latents import BY_LABELS


def are_labels(names: Iterable[Mapping[str, Any]], config: Any, data: Any) -> bool:
    """Whether every name by labels is a label of a study's data, or a value of a column that the study shares.

    Args:
        names: rows of `schema.names_of_latents.NAMES`.
        config: the study's configuration, as findings tell it.
        data: what they tell of its data.
    """
    asked = _inside(config, "analysis", "names")
    columns = {*(_inside(asked, "by_labels").get("labels") or ()), *(asked.get("share") or ())}
    labels = {*columns}
    for concept in _inside(data).get("vocabulary") or ():
        labels |= {concept["name"], *(f"{concept['name']}={one}" for one in concept["classes"])}
    starts = tuple(f"{column}{sign}" for column in columns for sign in "= ")
    told = (str(row.get("name")) for row in names if row.get("method") == BY_LABELS)
    return all(name in labels or name.startswith(starts) for name in told)


def _inside(value: Any, *keys: str) -> Mapping[str, Any]:
    """What lies below keys of JSON, where that is an object; else an empty one."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}
