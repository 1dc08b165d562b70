"""The training side: supervisors that mind trainers, and the trainers themselves."""
