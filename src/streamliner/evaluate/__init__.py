"""What a cut lost: perplexity, tasks, stability, and use as a draft, compared with the dense model."""
