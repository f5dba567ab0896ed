"""Who decides which row: rows assigned to people, and a third person for conflicts."""
