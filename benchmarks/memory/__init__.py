"""What page faults cost a training."""
