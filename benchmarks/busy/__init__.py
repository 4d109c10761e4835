"""How a step fares where the processor is not its own."""
