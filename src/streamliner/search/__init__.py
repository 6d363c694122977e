"""The methods, one file each, and what they give: the frontier and the plan."""
