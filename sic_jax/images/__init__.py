"""Picture files: reading, writing and colour."""
