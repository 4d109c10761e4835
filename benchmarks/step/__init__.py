"""How long the step alone takes."""
