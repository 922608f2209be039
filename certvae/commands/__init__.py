"""The commands ``fit``, ``protocol``, ``certify`` and ``verify``."""
