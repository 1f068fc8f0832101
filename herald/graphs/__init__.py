"""The data-flow graph of one iteration or request: built from a profile, asked, written, drawn. Imports no torch."""
