"""How parameters and state are stored: time, memory and quality."""
