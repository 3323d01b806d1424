"""What is installed, what this machine has, and what each member can: the report of `deepen doctor`."""
