"""What a study writes for others: names of its files, the format of its results, the columns of its findings."""

__all__: list[str] = []
