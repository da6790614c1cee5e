"""Models, predictions and checkpoints as files: written whole, read without running anything in them."""
