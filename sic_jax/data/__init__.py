"""Training images: where they come from, and the batches that are cut of them."""
