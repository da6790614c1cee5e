"""A page that says what a model is and how well it fits: one pass over the data, figures, a template."""
