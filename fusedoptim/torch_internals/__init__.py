"""What is known here of the inside of torch: private names, modes, hooks, mappings, DTensors."""
