"""What a study found, as it lies on disk or was published: tables, readers' notes, and reading both back."""
