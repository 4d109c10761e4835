"""How the cost of a step grows."""
