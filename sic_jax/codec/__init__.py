"""Files: the container, bundles of trained models, and the codec."""
