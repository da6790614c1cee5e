"""Where samples come from, and where labels go."""
