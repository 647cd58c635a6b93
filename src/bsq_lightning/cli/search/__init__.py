"""A budget instead of a knob: trials bracket it, the best is trained to its end."""
