"""Sources of the op hook; compiled on first use, against the installed torch, by herald.build."""
