"""What share of the machine's limit a step reaches."""
