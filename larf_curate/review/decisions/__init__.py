"""What people answered, merged into one decision a row, and the rows that follow from it."""
