"""What the outputs of a head that is trained already stand for: classes of the dataset's concepts, put together."""

__all__ = ["class_groups", "head_of_outputs"]

from collections.abc import Sequence

from torch import nn

from mammosae_plugin.config.maps import ModelConfig, Outputs
from mammosae_plugin.datasets import Concept, Vocabulary
from mammosae_plugin.datasets.concepts import nearest_names
from mammosae_plugin.errors import InputError

Groups = tuple[tuple[str, ...], ...]


def class_groups(models: Sequence[ModelConfig], vocabulary: Vocabulary) -> dict[str, Groups]:
    """The classes of each concept that are told apart, where those are not the dataset's own.

    Args:
        models: The study's models.
        vocabulary: The dataset's concepts.

    Returns:
        By concept, the classes that make up each new one, in the concept's order.

    Raises:
        InputError: An output of no class of the concept, a class of two outputs, or models that group classes otherwise
            than each other.
    """
    found: dict[str, tuple[str, Groups]] = {}
    for model in models:
        for name, outputs in (model.outputs or {}).items():
            where = f"outputs of {model.name}/{name}"
            concept = vocabulary.named(name, f"{where}: the dataset")
            groups = _groups(outputs, concept, where)
            first = found.setdefault(name, (model.name, groups))
            if first[1] != groups:
                raise InputError(
                    f"{where} tell other classes apart than those of {first[0]}; models of one study are compared on "
                    "the same classes: give both the same, or each its own study"
                )
    trivial = {name: tuple((label,) for label in vocabulary[name].classes) for name in found}
    return {name: groups for name, (_, groups) in found.items() if groups != trivial[name]}


def _groups(outputs: Outputs, concept: Concept, where: str) -> Groups:
    """The groups of classes that the outputs stand for, in the order of the concept's classes."""
    if isinstance(outputs, int):
        if not concept.is_binary or outputs < 0:
            raise InputError(
                f"{where} are {outputs}: one output, numbered from 0, says whether a finding is there; {concept.name} "
                f"has the classes {', '.join(concept.classes)}, so list for every output the class that it stands for"
            )
        return tuple((label,) for label in concept.classes)
    groups = [tuple([entry] if isinstance(entry, str) else entry) for entry in outputs if entry is not None]
    named = [label for group in groups for label in group]
    for label in named:
        if label not in concept.classes:
            near = nearest_names(label, concept.classes) or f" (it has {', '.join(concept.classes)})"
            raise InputError(f"{where}: {concept.name} has no class {label!r}{near}")
    if twice := [label for label in dict.fromkeys(named) if named.count(label) > 1]:
        raise InputError(f"{where}: the class {twice[0]!r} belongs to two outputs; give it to one")
    if len(groups) < 2 or not all(groups):
        raise InputError(f"{where} tell no two classes of {concept.name} apart; list the class of every output")
    order = {label: number for number, label in enumerate(concept.classes)}
    return tuple(sorted((tuple(sorted(group, key=order.__getitem__)) for group in groups), key=lambda g: order[g[0]]))


def head_of_outputs(head: nn.Linear | None, outputs: Outputs, concept: Concept, where: str) -> nn.Linear:
    """The linear head that a concept's classifier is: the rows of its outputs in the order of its classes.

    Of two classes with an output each it has one, the difference of the two, which decides the same probabilities.

    Args:
        head: The network's own head.
        outputs: What its outputs stand for.
        concept: The dataset's concept, before its classes were put together.
        where: Whose outputs they are, for messages.

    Raises:
        InputError: The head has fewer outputs, or more.
    """
    n = 0 if head is None else head.out_features
    groups, wrong = _groups(outputs, concept, where), ""
    if isinstance(outputs, int):
        rows, wrong = [outputs], f"name output {outputs}, counted from 0" if outputs >= n else ""
    else:
        wrong = f"list {len(outputs)} outputs" if len(outputs) != n else ""
        first = [entry if isinstance(entry, str) or entry is None else entry[0] for entry in outputs]
        rows = [next(row for row, label in enumerate(first) if label in group) for group in groups]
    if head is None or wrong:
        raise InputError(f"{where} {wrong or 'are of a head'}, but the network has {n or 'none'}")
    weight = head.weight.detach()[rows]
    bias = (head.weight.new_zeros(n) if head.bias is None else head.bias.detach())[rows]
    if len(rows) == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    made = nn.Linear(head.in_features, len(weight), dtype=weight.dtype)
    made.load_state_dict({"weight": weight.clone(), "bias": bias.clone()})
    return made
