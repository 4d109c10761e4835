"""Steps of a running training, taken a second time by the reference and compared."""
