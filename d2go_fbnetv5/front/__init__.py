"""After a search: the networks of every task that no other one beats in both loss and cost."""

from d2go_fbnetv5.front.run import find_front

__all__ = ["find_front"]
