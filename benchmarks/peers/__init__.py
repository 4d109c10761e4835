"""How other packages' steps compare."""
