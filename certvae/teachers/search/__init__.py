"""The search for a Gaussian-mixture teacher: principal components, EM of a grid of candidates, and a choice."""

from certvae.teachers.search.module import TeacherSearch
from certvae.teachers.search.selection import SelectionCriteria
from certvae.teachers.search.settings import TeacherSearchError
from certvae.teachers.search.streams import EvenBatches

__all__ = ["EvenBatches", "SelectionCriteria", "TeacherSearch", "TeacherSearchError"]
