"""The norm of all gradients, wherever they lie, and how a step clips by it."""
