"""The multitask data set of section 3.2: labels that teachers give to images, filtered and kept as an index."""

from d2go_fbnetv5.pseudo_labels import teachers as teachers
from d2go_fbnetv5.pseudo_labels.teacher import Teacher, build_teacher, list_teachers, register_teacher

__all__ = ["Teacher", "build_teacher", "list_teachers", "register_teacher"]
