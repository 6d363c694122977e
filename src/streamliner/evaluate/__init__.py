"""What a model is worth: perplexity, tasks, and how far a cut model still answers as the dense one did."""
