"""The commands ``fit``, ``protocol``, ``certify``, ``verify`` and ``diagnose``."""
