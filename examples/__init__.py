"""Programs to read and to begin from; see docs/language-models.md."""
