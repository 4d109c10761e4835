"""How long whole training loops take."""
