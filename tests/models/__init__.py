"""Models of many libraries and kinds, and the columns that are found in each: docs/models.md."""
