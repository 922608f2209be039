"""Files and random state: atomic writes, and safe reading of untrusted files."""
