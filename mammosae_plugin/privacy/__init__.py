"""What may leave this machine: the guard, its rules, and the search for what identifies a patient."""
