"""How fast models are, in the engine that is to serve them."""
