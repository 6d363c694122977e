"""Text -> token windows."""
