"""What a run shares beyond one process: the host-time model."""
