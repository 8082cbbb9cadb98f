"""What the model runs on: processes, memory, folders."""
