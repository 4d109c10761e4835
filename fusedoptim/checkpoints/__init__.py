"""State dicts: what is checked when one is loaded, and the conversion of other libraries'."""
