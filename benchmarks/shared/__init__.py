"""What all questions share: clocks, correctness, shapes, optimizers, options, tables."""
