"""What a run keeps on disk: files, journal, cache; and the processes that share it."""
