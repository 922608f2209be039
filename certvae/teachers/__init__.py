"""Teachers: fixed distributions over components, given an input."""

from certvae.teachers.base import Teacher, TeacherMismatchError
from certvae.teachers.card import TeacherCard
from certvae.teachers.files import TeacherFileError
from certvae.teachers.labels import LabelTeacher
from certvae.teachers.loading import load_teacher
from certvae.teachers.mixture import GaussianMixtureTeacher
from certvae.teachers.network import NetworkTeacher
from certvae.teachers.shipped import shipped_teachers, teacher_file
from certvae.teachers.table import TargetTable

__all__ = [
    "GaussianMixtureTeacher",
    "LabelTeacher",
    "NetworkTeacher",
    "TargetTable",
    "Teacher",
    "TeacherCard",
    "TeacherFileError",
    "TeacherMismatchError",
    "load_teacher",
    "shipped_teachers",
    "teacher_file",
]
