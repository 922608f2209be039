"""Files: written whole or not at all, read within limits where a stranger may have made them; random state."""
