"""What can be measured of a model with blocks removed."""
