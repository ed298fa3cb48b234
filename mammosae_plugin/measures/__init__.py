"""The one definition of every measure."""
