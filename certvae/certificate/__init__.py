"""The certificate: its numbers and its file, the verdict, the metric, the leak tests, and the history of a run."""
