"""What a run leaves on disk, and the processes of a run."""
