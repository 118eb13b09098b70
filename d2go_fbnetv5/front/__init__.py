"""After a search: the networks of every task that no other one beats in both loss and cost."""
