"""Sources of the torch-free table library; compiled on first use by herald.build."""
