"""Labels, responsibilities and densities of rows: lazily, or written region by region."""
