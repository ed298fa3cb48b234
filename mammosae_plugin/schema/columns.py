"""What a column of a study's tables is: its name, type, unit and meaning, and what it may tell of patients."""

__all__ = ["Column", "leaves", "Privacy", "struct_of"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Privacy = Literal["public", "count", "group", "image", "secret"]
"""What a column may tell.

- `public`: names, settings, and numbers behind which no patient stands.
- `count`: how many images, boxes or patients there are; null where these are few.
- `group`: a statistic of a group of patients; null where the group is small.
- `image`: something of a single image; goes out only where examples were asked for and the dataset's owner allows it.
- `secret`: stays on this machine; what says which of the others are of few patients.
"""


@dataclass(frozen=True)
class Column:
    """One column of a config, or one field of a column that is a list of structs.

    Attributes:
        name: Its name.
        dtype: The type of its values; of lists that of the whole list. `STRUCTS` where it has fields.
        meaning: What it says, in a clause for the card; columns side by side with the same meaning are explained once.
        unit: Of its numbers; empty for texts, flags and pure numbers.
        privacy: What it may tell.
        fields: Where it is a list of structs, their fields.
        longest: How many entries a list in it may have; classes of a concept, where nothing else is said.
        is_json: Whether it is a text that holds JSON.
        each: Of a list over classes, what its entries are called where every class has a row of its own.
        label: What heads it in a table for people; where empty, its name in words.
    """

    name: str
    dtype: pa.DataType
    meaning: str
    unit: str = ""
    privacy: Privacy = "public"
    fields: tuple["Column", ...] = ()
    longest: int = 16
    is_json: bool = False
    each: str = ""
    label: str = ""

    @property
    def field(self) -> pa.Field:
        """It as a field of a schema of pyarrow."""
        return pa.field(self.name, pa.list_(struct_of(self.fields)) if self.fields else self.dtype)

    @property
    def holds_text(self) -> bool:
        """Whether its innermost values are texts."""
        kind = self.dtype
        while pa.types.is_list(kind):
            kind = kind.value_type
        return bool(pa.types.is_string(kind))


def struct_of(fields: Sequence[Column]) -> pa.StructType:
    """The type of a struct."""
    return pa.struct([one.field for one in fields])


def leaves(columns: Sequence[Column]) -> dict[str, Column]:
    """The columns that hold values, fields of structs dotted: "layer", "concepts.ranks", ..."""
    found: dict[str, Column] = {}
    for column in columns:
        found |= {f"{column.name}.{one.name}": one for one in column.fields} or {column.name: column}
    return found
