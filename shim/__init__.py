"""Python side of interception: launching programs on virtual GPUs and the virtual clock."""
