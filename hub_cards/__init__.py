"""Jinja templates of the cards that accompany what the package writes and publishes."""

__all__: list[str] = []
